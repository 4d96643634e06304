package requestmirror

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"
)

// authentication is how a sender proves that a request is genuine, as GitHub and others
// who call webhooks do: a header has the HMAC-SHA-256 of the body.
type authentication struct {
	header  string // canonical
	prefix  string // before the value
	secrets []*secretFile
	reject  bool // whether what is not genuine is answered with 401; it is not mirrored in any case
}

// proof computes what the header should have, while the body is read. The goroutine that
// reads the body writes it, until it is judged.
type proof struct {
	given    []byte // by the sender; nil if there is nothing that could be right
	declared int64  // Content-Length; -1 unknown

	mu     sync.Mutex // guards all below
	macs   []hash.Hash
	size   int64
	ended  bool // whether the end of the body was read
	judged bool
}

// prove begins the proof of a request, whose body is read through it from now on.
func prove(a *authentication, req *http.Request) *proof {
	p := &proof{given: claim(a, req.Header), declared: req.ContentLength}
	if p.given == nil {
		return p
	}
	for _, secret := range a.secrets {
		p.macs = append(p.macs, hmac.New(sha256.New, []byte(currentText(secret))))
	}
	if req.ContentLength != 0 && req.Body != nil {
		var source io.Reader = &proven{p, req.Body}
		req.Body = &teed{source, req.Body}
	}
	return p
}

// claim is the HMAC that the sender gives: in hexadecimal as GitHub has it, or in base64.
func claim(a *authentication, h http.Header) []byte {
	text, ok := strings.CutPrefix(h.Get(a.header), a.prefix)
	if !ok {
		return nil
	}
	mac, err := hex.DecodeString(text)
	if err != nil {
		mac, err = base64.StdEncoding.DecodeString(text)
	}
	if err != nil || len(mac) != sha256.Size {
		return nil
	}
	return mac
}

// proven is a body on its way through the proof.
type proven struct {
	proof  *proof
	source io.Reader
}

func (r *proven) Read(b []byte) (int, error) {
	n, err := r.source.Read(b)
	addTo(r.proof, b[:n], err == io.EOF)
	return n, err
}

func addTo(p *proof, b []byte, end bool) {
	defer contain()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.judged {
		return // the transport may read on when the handler has returned
	}
	for _, mac := range p.macs {
		_, _ = mac.Write(b)
	}
	p.size += int64(len(b))
	p.ended = p.ended || end
}

// isGenuine says whether the body was read to its end and is the one that was signed. The
// comparison takes the same time whatever is compared.
func isGenuine(p *proof) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.judged = true
	if p.given == nil || !p.ended && p.size != p.declared {
		return false
	}
	right := false
	for _, mac := range p.macs {
		if hmac.Equal(mac.Sum(nil), p.given) {
			right = true
		}
	}
	return right
}
