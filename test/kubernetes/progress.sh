# Sourced by build.sh and chart.sh, which have say and die.

build= # the process that attend waits for

# attend NAME COMMAND... runs a command that builds something, and says that it is still
# alive. What the command prints is on standard error.
attend() {
	local name=$1 started=$SECONDS next=15
	shift
	"$@" >&2 &
	build=$!
	while kill -0 "$build" 2>/dev/null; do
		# The end of the build cuts the wait for a heartbeat short.
		sleep 1
		if [ $((SECONDS - started)) -ge "$next" ]; then
			say "still building $name, $((SECONDS - started)) s"
			next=$((next + 15))
		fi
	done
	wait "$build" || die "the build of $name failed, see above"
	build=
}

# abandon ends the build that is still running, if one is.
abandon() {
	if [ -n "$build" ] && kill -0 "$build" 2>/dev/null; then kill "$build" 2>/dev/null || true; fi
}
