#!/usr/bin/env bash
# Builds the Traefik that the end-to-end tests, the benchmark and the demo run,
# from the version pinned in go.mod beside this file. The last line of standard
# output is the path of the program; everything else is said on standard error.
#
#   TRAEFIK_BIN=/path/to/traefik   take this one, build nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf 'traefik: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

if [ -n "${TRAEFIK_BIN:-}" ]; then
	[ -x "$TRAEFIK_BIN" ] || die "TRAEFIK_BIN=$TRAEFIK_BIN is not an executable file"
	say "using TRAEFIK_BIN"
	echo "$TRAEFIK_BIN"
	exit 0
fi

command -v go >/dev/null || die "go is not installed; it is needed to build Traefik"
version=$(go list -mod=readonly -m -f '{{.Version}}' github.com/traefik/traefik/v3) ||
	die "cannot read the version of Traefik from go.mod"
bin=$PWD/bin/traefik-$version

if [ -x "$bin" ]; then
	say "$version is built already"
	echo "$bin"
	exit 0
fi

mkdir -p bin
# To a name of its own first, so that an interrupted build never looks like a
# finished one and two builds at once do not write to the same file.
tmp=$(mktemp -d bin/.build-XXXXXX)
build=
cleanup() {
	if [ -n "$build" ] && kill -0 "$build" 2>/dev/null; then kill "$build" 2>/dev/null || true; fi
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "building $version; the first build takes 4 to 8 minutes on two cores, later runs skip it"
started=$SECONDS
go build -mod=readonly -ldflags "-s -w -X github.com/traefik/traefik/v3/pkg/version.Version=$version" \
	-o "$tmp/traefik" github.com/traefik/traefik/v3/cmd/traefik >&2 &
build=$!
# Job control is off, so the wait for a heartbeat must be one that the end of
# the build cuts short: a sleep of a second, not of fifteen.
next=15
while kill -0 "$build" 2>/dev/null; do
	sleep 1
	if [ $((SECONDS - started)) -ge "$next" ]; then
		say "still building, $((SECONDS - started)) s"
		next=$((next + 15))
	fi
done
wait "$build" || die "the build failed, see above"
build=
"$tmp/traefik" version >/dev/null || die "the program that was built does not start"
mv "$tmp/traefik" "$bin"
say "built $version in $((SECONDS - started)) s"
echo "$bin"
