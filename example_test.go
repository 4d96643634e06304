//go:build !yaegi
// +build !yaegi

package requestmirror_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"

	"github.com/opencommit/requestmirror"
)

// verify says whether a delivery was signed with the secret, by Standard Webhooks:
// the base64 after "whsec_" is the key of an HMAC-SHA-256 over id, timestamp and
// payload. Any of several signatures will do, as there are more while secrets rotate.
func verify(secret string, header http.Header, payload []byte) bool {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return false
	}
	seconds, err := strconv.ParseInt(header.Get("webhook-timestamp"), 10, 64)
	if age := time.Since(time.Unix(seconds, 0)); err != nil || age > 5*time.Minute || age < -5*time.Minute {
		return false // an old delivery that somebody sends again
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", header.Get("webhook-id"), header.Get("webhook-timestamp"), payload)
	for _, signature := range strings.Split(header.Get("webhook-signature"), " ") {
		given, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(signature, "v1,"))
		if err == nil && hmac.Equal(given, mac.Sum(nil)) {
			return true
		}
	}
	return false
}

// A receiver needs the standard library only.
func Example() {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	done := make(chan bool)
	receiver := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		payload, err := io.ReadAll(http.MaxBytesReader(rw, req.Body, 4<<20))
		if err != nil || !verify(secret, req.Header, payload) {
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		// Answer soon, and do the work later: what takes longer than the timeout is sent again.
		rw.WriteHeader(http.StatusNoContent)
		var event struct {
			Type string
			Data struct {
				HTTP struct{ Request struct{ Method string } }
				URL  struct{ Path string }
			}
		}
		if json.Unmarshal(payload, &event) == nil {
			fmt.Println(event.Type)
			fmt.Println(event.Data.HTTP.Request.Method, event.Data.URL.Path)
		}
		close(done)
	}))
	defer receiver.Close()

	config := requestmirror.CreateConfig()
	config.WatchURL = receiver.URL
	config.SigningSecrets = secret
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	handler, err := requestmirror.New(ctx, http.NotFoundHandler(), config, "mirror@file")
	if err != nil {
		panic(err)
	}
	handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/api/comments", nil))
	<-done

	// Output:
	// io.opencommit.requestmirror.request.v1
	// GET /api/comments
}

// A signature is over the bytes that came. Who decodes them and encodes them again
// has other bytes, and finds every delivery forged.
func Example_incorrect() {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	payload := []byte(`{ "size": 1, "content": "<b>" }`)
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "id.%s.%s", timestamp, payload)
	header := http.Header{}
	header.Set("webhook-id", "id")
	header.Set("webhook-timestamp", timestamp)
	header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))

	var decoded map[string]any
	_ = json.Unmarshal(payload, &decoded)
	again, _ := json.Marshal(decoded)
	fmt.Println(verify(secret, header, payload), verify(secret, header, again))
	// Output: true false
}
