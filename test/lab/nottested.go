package lab

import (
	"errors"
	"os"
)

// NotTested adds what a test leaves out to the file that NOT_TESTED names, if it does. Of
// a package that passes, go test shows nothing, so make shows that file in the end.
func NotTested(what string) error {
	name := os.Getenv("NOT_TESTED")
	if name == "" {
		return nil
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(what + "\n")
	return errors.Join(err, f.Close())
}
