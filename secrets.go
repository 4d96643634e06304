package requestmirror

import (
	"context"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// Traefik's API and debug log show plugin options in clear. So every option that
// holds a secret also takes file:<path>, and the file is looked at again while the
// plugin runs: a new secret counts within a second, without a restart or a reload.
const filePrefix = "file:"

// secret is what was written for a secret option, or what is in the file that it names.
func (r *reader) secret(path, given string) string {
	r.secrets = append(r.secrets, path+"="+given)
	return r.secretIn(path, given)
}

func (r *reader) secretIn(path, given string) string {
	name, named := strings.CutPrefix(given, filePrefix)
	if !named {
		return given
	}
	text, err := r.content(name)
	if err != nil {
		r.problem(path, err.Error(), "a file that Traefik may read")
	}
	return text
}

// content is what is in the file of a secret, or was when it was good.
func (r *reader) content(name string) (string, error) {
	text, ok := r.before[name]
	var err error
	if !ok {
		text, err = readSecretFile(name)
	}
	r.files[name] = text
	return text, err
}

// readSecretFile leaves out what editors and echo put behind the last line.
func readSecretFile(name string) (string, error) {
	content, err := os.ReadFile(name)
	return strings.TrimRight(string(content), "\r\n"), err
}

// changed is the content of those files whose content is not the noted one any more.
// While one cannot be read, it is an error: several may be being replaced.
func changed(files, noted map[string]string) (news map[string]string, err error) {
	news = nil
	err = nil
	for name := range files {
		now, err := readSecretFile(name)
		if err != nil {
			return nil, err
		}
		if before, known := noted[name]; known && now == before {
			continue
		}
		if news == nil {
			news = map[string]string{}
		}
		news[name] = now
	}
	return news, nil
}

// secretFile is a secret that is not the delivery's. Its file is looked at at most once a
// second, by whoever needs it.
type secretFile struct {
	checked int64        // atomic: when that was, Unix time
	reading int64        // atomic: 1 while somebody reads it
	text    atomic.Value // string, stored by who has read it
	name    string       // of the file; "" if the text was configured, and never changes
}

// slowFile is how long a request waits for the file of a secret, which a local disk has in
// less than a thousandth of that. On a mount that hangs one request does, and none after it.
const slowFile = 200 * time.Millisecond

func newSecretFile(name, text string) *secretFile {
	f := &secretFile{name: name}
	f.text.Store(text)
	return f
}

// currentText is the secret, of a file what is in it now.
func currentText(f *secretFile) string {
	if f.name != "" {
		lookAgain(f)
	}
	text, _ := f.text.Load().(string)
	return text
}

func lookAgain(f *secretFile) {
	now := time.Now().Unix()
	before := atomic.LoadInt64(&f.checked)
	if now == before || !atomic.CompareAndSwapInt64(&f.checked, before, now) || !atomic.CompareAndSwapInt64(&f.reading, 0, 1) {
		return
	}
	ctx, done := context.WithTimeout(context.Background(), slowFile)
	go readAgain(f, done)
	<-ctx.Done()
	done()
}

func readAgain(f *secretFile, done context.CancelFunc) {
	defer contain()
	if text, err := readSecretFile(f.name); err == nil && text != "" {
		f.text.Store(text)
	}
	atomic.StoreInt64(&f.reading, 0)
	done()
}
