#!/usr/bin/env bash
# Runs the tests of Kubernetes: etcd, kube-apiserver, kubectl and Traefik on this machine, without
# containers. Arguments go to go test, such as -run TestTheShipped.
#
#   run.sh --if-built ...   does nothing, and says so, if the programs are not built
#
#   KUBERNETES_BIN, TRAEFIK_BIN   programs to take instead of the ones that are built
#   HELM_CHART, HELM_BIN          Traefik's chart (a directory) and Helm, instead of what chart.sh gets
#   KUBERNETES_CHART=required     fails without them, instead of leaving the chart's values untested
#   KUBERNETES_TIME=required      fails if the tests take more than they may, instead of saying so
#   KUBERNETES_SANDBOX=off        runs what needs no user namespaces
#   KUBERNETES_SANDBOX=required   fails where the system forbids them, instead of skipping what needs them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf 'kubernetes: %s\n' "$*" >&2; }

how=
if [ "${1:-}" = --if-built ]; then
	how=$1
	shift
	if [ -z "${KUBERNETES_BIN:-}" ]; then
		version=$(sed -n 's/^[[:space:]]*k8s\.io\/kubernetes \(v[0-9.]*\).*/\1/p' go.mod)
		for program in etcd kube-apiserver kubectl; do
			[ ! -x "bin/$version/$program" ] || continue
			say "NOT TESTED: $program is not built. make e2e-kubernetes builds and tests, in about five minutes."
			exit 0
		done
	fi
fi

./build.sh >/dev/null
TRAEFIK_BIN=$(../traefik/build.sh)
export TRAEFIK_BIN
if [ -z "${HELM_CHART:-}" ] || [ -z "${HELM_BIN:-}" ]; then
	chart=$(./chart.sh $how)
	HELM_CHART=$(sed -n 1p <<<"$chart") HELM_BIN=$(sed -n 2p <<<"$chart")
fi
export HELM_CHART HELM_BIN
started=$SECONDS
log=$(mktemp)
trap 'rm -f "$log"' EXIT
go vet ./...
code=0
# Three times what it may take on two cores, as these may have other work. Tests wait for
# servers more than they work, so more of them run at a time than there are cores.
go test -count=1 -shuffle=on -parallel 4 -timeout 6m -v "$@" ./... >"$log" 2>&1 || code=$?
# One line for each test, what was not tested, and all of it if something is wrong.
if [ "$code" -ne 0 ]; then
	cat "$log"
	say "FAILED"
	exit "$code"
fi
grep -E '^(--- |ok )' "$log"
{ grep -hoE 'NOT TESTED: .*|NO SANDBOX.*' "$log" || true; } | sort -u | while read -r line; do say "$line"; done
say "passed in $((SECONDS - started)) s"
seconds=$(awk '$1 == "ok" && $3 + 0 > n { n = $3 + 0 } END { printf "%d", n }' "$log")
if [ "$seconds" -gt 120 ]; then
	say "SLOW: the tests took $seconds s, want at most 120 s; the load is $(uptime | sed 's/.*average: //')"
	[ "${KUBERNETES_TIME:-}" != required ] || exit 1
fi
