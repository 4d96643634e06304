package requestmirror

import "log"

// logError writes a line that an operator should see. Traefik gives a plugin two
// levels: what goes through package log is an error, what is printed is debug;
// os.Stdout, and slog with it, would bypass Traefik's logger. Callers see to it that
// nothing here is per request, and that no text holds a secret, a cookie or a body.
//
// The logger has no prefix and no time, which Traefik's adds, and is made anew each
// time, so that it writes where package log does now.
func logError(text string) {
	log.New(log.Writer(), "", 0).Print(text)
}
