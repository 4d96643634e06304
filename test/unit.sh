#!/usr/bin/env bash
# Runs the unit tests: go test with the arguments given. They run again if the race
# detector itself has crashed: about once in eight runs ThreadSanitizer ends in a SIGSEGV
# in code of its own (StackDepotBase::Put, with Go 1.26), and no test has failed by then.
# Go code that follows a bad pointer panics instead, so that is never taken for it.
set -uo pipefail
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
for attempt in 1 2 3 4 5; do
	go test "$@" 2>&1 | tee "$log"
	code=${PIPESTATUS[0]}
	[ "$code" -ne 0 ] || exit 0
	grep -q '^SIGSEGV: segmentation violation$' "$log" || exit "$code"
	! grep -qE -- '^ *--- FAIL|DATA RACE|^panic: ' "$log" || exit "$code"
	[ "$attempt" -eq 5 ] || echo "unit: the race detector itself has crashed, so the tests run again"
done
echo "unit: the race detector has crashed five times"
exit 1
