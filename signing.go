package requestmirror

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// processKey is the key where the operator gave none. It is random, so what it
// makes means nothing to another process.
var processKey = randomKey()

func randomKey() []byte {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		// Never seen since Go 1.24, which ends the process instead.
		key = []byte(time.Now().String())
	}
	return key
}

// sign is the value of webhook-signature by Standard Webhooks: one v1 signature for
// each secret over "id.timestamp.payload", the first secret first.
func sign(secrets [][]byte, id, timestamp string, payload []byte) string {
	head := []byte(id + "." + timestamp + ".")
	list := make([]string, 0, len(secrets))
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write(head)
		mac.Write(payload)
		list = append(list, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(list, " ")
}

// pseudonym stands for a value that may not leave: equal for equal values, of no use
// to whoever does not have the key.
func pseudonym(key []byte, value string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(value))
	return "hmac-sha256:" + hex.EncodeToString(mac.Sum(nil))
}

// markerHeader tells a delivery of this plugin from other requests, so that a
// receiver behind the same router does not make an endless loop. The key makes it
// impossible for a client to hide a request by sending the header.
const markerHeader = "Requestmirror-Delivery"

// markerAge is how long a marker counts, so that one that leaked is soon worth nothing.
const markerAge = 5 * time.Minute

func marker(key []byte, timestamp string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("requestmirror-delivery." + timestamp))
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// isDelivery says whether the request carries a marker made with the key of one of
// the pipelines of this process, or of another replica with the same signing secret.
func isDelivery(req *http.Request) bool {
	mark := req.Header.Get(markerHeader)
	timestamp := req.Header.Get("Webhook-Timestamp")
	if own, rest, found := strings.Cut(mark, ",v1,"); found { // of a repeated request
		timestamp = own
		mark = "v1," + rest
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return false
	}
	age := time.Since(time.Unix(seconds, 0))
	if age > markerAge || age < -markerAge {
		return false
	}
	given := []byte(mark)
	keys, _ := markerKeys.Load().([][]byte)
	for _, key := range keys {
		if hmac.Equal(given, []byte(marker(key, timestamp))) {
			return true
		}
	}
	return false
}
