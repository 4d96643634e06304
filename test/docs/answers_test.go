package docs

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/opencommit/requestmirror"
)

// TestTheAnswersOnThePageAreThoseOfThePlugin is for the table of what it turns down.
func TestTheAnswersOnThePageAreThoseOfThePlugin(t *testing.T) {
	const secret = "a long random text"
	_, table, _ := strings.Cut(readPage(t, "docs/how-to/troubleshoot.md"), "## The plugin itself answers")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := regexp.MustCompile("(?m)^\\| (\\d{3}, `[^`]+`) \\|").FindAllStringSubmatch(table, -1)
	said := []string{}
	for _, row := range rows {
		said = append(said, strings.ReplaceAll(row[1], "`", ""))
	}
	got := []string{}
	for _, request := range []struct {
		size   int
		signed bool
		memory string
	}{{100, false, "64Mi"}, {2 << 20, true, "64Mi"}, {512 << 10, true, "64Ki"}} {
		config, err := decode(map[string]any{
			"watchURL": "http://127.0.0.1:1", "memoryLimit": request.memory,
			"authenticate": map[string]any{"secrets": []string{secret}, "onFailure": "reject"},
		})
		if err != nil {
			t.Fatal(err)
		}
		handler, err := requestmirror.New(canceled(t), next, config, t.Name()+request.memory)
		if err != nil {
			t.Fatal(err)
		}
		body := bytes.Repeat([]byte("x"), request.size)
		req := httptest.NewRequest("POST", "/", bytes.NewReader(body))
		if request.signed {
			mac := hmac.New(sha256.New, []byte(secret))
			mac.Write(body)
			req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req)
		got = append(got, fmt.Sprintf("%d, %s", w.Code, strings.TrimSpace(w.Body.String())))
	}
	if strings.Join(got, "\n") != strings.Join(said, "\n") {
		t.Errorf("got\n%s\nin troubleshoot.md\n%s", strings.Join(got, "\n"), strings.Join(said, "\n"))
	}
}
