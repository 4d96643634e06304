#!/usr/bin/env bash
# Runs the unit tests of the plugin interpreted, by the Yaegi that Traefik embeds:
# once as it is, and once with a Yaegi that was built with the race detector.
# Arguments go to yaegi test, such as -run TestSign.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

say() { printf 'yaegi: %s\n' "$*"; }
die() { say "$*"; exit 1; }

module=$(cd "$root" && go list -m) || die "cannot read the module's path"
version=$(cd "$here" && go list -m -f '{{.Version}}' github.com/traefik/yaegi) || die "cannot read Yaegi's version"
modes="plain race"
if [ "$(go env CGO_ENABLED)" != 1 ]; then
	modes=plain
	say "NOT CHECKED for data races: that takes a C compiler, and there is none"
fi
mkdir -p "$here/bin"
for mode in $modes; do
	bin=$here/bin/yaegi-$version-$mode
	[ -x "$bin" ] && continue
	say "building $version, $mode"
	flags=()
	[ "$mode" = race ] && flags=(-race)
	(cd "$here" && go build "${flags[@]}" -o "$bin" github.com/traefik/yaegi/cmd/yaegi) || die "cannot build Yaegi"
done

# Yaegi wants the GOPATH layout; TMPDIR keeps what the tests write apart.
work=$(mktemp -d) || die "cannot make a directory"
trap 'rm -rf "$work"' EXIT
package=$work/src/$module
mkdir -p "$package" "$work/tmp" || die "cannot lay out $package"
cp "$root"/*.go "$root/.traefik.yml" "$package/" || die "cannot copy the package"
[ ! -d "$root/testdata" ] || cp -r "$root/testdata" "$package/" || die "cannot copy testdata"

failed=0
for mode in $modes; do
	say "testing $module with $version, $mode"
	log=$work/$mode.log
	GOPATH=$work TMPDIR=$work/tmp "$here/bin/yaegi-$version-$mode" test -tags yaegi -v -timeout 20m "$@" "$module" >"$log" 2>&1
	code=$?
	# One line for each test, and all of the output if something is wrong with it.
	ran=$(grep -c '^--- PASS: ' "$log")
	bad=$(grep -c '^ *--- FAIL: ' "$log")
	races=$(grep -c 'WARNING: DATA RACE' "$log")
	if [ "$code" -ne 0 ] || [ "$bad" -ne 0 ] || [ "$races" -ne 0 ] || ! grep -qx PASS "$log"; then
		cat "$log"
		say "$mode: FAILED (exit code $code; $ran tests passed, $bad failed, $races races)"
		failed=1
	elif [ "$ran" -eq 0 ]; then
		cat "$log"
		say "$mode: FAILED, no test ran"
		failed=1
	else
		grep '^--- ' "$log"
		say "$mode: $ran tests passed"
	fi
done
exit $failed
