#!/usr/bin/env bash
# Gets Traefik's Helm chart, by the commit of its release, and builds Helm, from the version
# pinned in helm/go.mod. Prints where the two are; nothing if the chart cannot be had, as it
# comes from GitHub and not by a registry of modules. All else is said on standard error.
#
#   chart.sh --if-built         prints what is there, and gets nothing
#
#   KUBERNETES_CHART=required   fails if the chart cannot be had
#   CHART_REPOSITORY            where to get it from instead of GitHub
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

version=41.3.0
commit=a8a66d0098703627b2cf352c66b1725c196a734a

say() { printf 'kubernetes: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
. ./progress.sh

helm=$(sed -n 's/^require helm\.sh\/helm\/v3 \(v[0-9.]*\).*/\1/p; s/^[[:space:]]*helm\.sh\/helm\/v3 \(v[0-9.]*\).*/\1/p' helm/go.mod)
[ -n "$helm" ] || die "no version of Helm in helm/go.mod"
chart=$PWD/bin/chart-$version program=$PWD/bin/helm-$helm
if [ -d "$chart" ] && [ -x "$program" ]; then
	printf '%s\n' "$chart" "$program"
	exit 0
fi
[ "${1:-}" != --if-built ] || exit 0

mkdir -p bin
tmp=$(mktemp -d bin/.chart-XXXXXX)
trap 'abandon; rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ ! -d "$chart" ]; then
	# A commit is named by its content, so that no other can come in its place.
	git init -q --bare "$tmp/git"
	if ! GIT_TERMINAL_PROMPT=0 timeout 60 git -C "$tmp/git" fetch -q --depth=1 \
		"${CHART_REPOSITORY:-https://github.com/traefik/traefik-helm-chart}" "$commit" 2>"$tmp/error"; then
		[ "${KUBERNETES_CHART:-}" != required ] || die "Traefik's chart $version cannot be had: $(cat "$tmp/error")"
		say "Traefik's chart $version cannot be had here: $(head -1 "$tmp/error")"
		exit 0
	fi
	git -C "$tmp/git" archive "$commit" traefik | tar -x -C "$tmp"
	grep -q "^version: $version\$" "$tmp/traefik/Chart.yaml" || die "commit $commit is not that of version $version"
	mv "$tmp/traefik" "$chart"
	say "took Traefik's chart $version"
fi
say "building Helm $helm; the first build takes 2 to 5 minutes on two cores, later runs skip it"
attend Helm go -C helm build -mod=readonly -ldflags "-s -w" -o "$PWD/$tmp/helm" helm.sh/helm/v3/cmd/helm
"$tmp/helm" version >/dev/null || die "the Helm that was built does not start"
mv "$tmp/helm" "$program"
printf '%s\n' "$chart" "$program"
