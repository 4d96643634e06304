#!/usr/bin/env bash
# Builds the kube-apiserver, the etcd and the kubectl that the tests of Kubernetes run, from
# the versions pinned in go.mod beside this file, and takes the custom resources and the
# RBAC of Traefik from the version pinned in test/traefik. The last line of standard
# output is the directory of the programs; everything else is said on standard error.
#
#   KUBERNETES_BIN=/path/to/dir   take the programs from there, build none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
programs=(etcd kube-apiserver kubectl)

say() { printf 'kubernetes: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
. ./progress.sh

command -v go >/dev/null || die "go is not installed; it is needed to build Kubernetes"

# directory MODULE prints where a module that Traefik is built of is unpacked.
directory() {
	local version
	version=$(cd ../traefik && go list -mod=readonly -m -f '{{.Version}}' "$1") || die "cannot read the version of $1"
	go mod download -json "$1@$version" | awk -F '"' '$2 == "Dir" { print $4 }'
}

# What users of Traefik apply before anything else, as Traefik publishes it.
traefik=$(cd ../traefik && go list -mod=readonly -m -f '{{.Version}}' github.com/traefik/traefik/v3) ||
	die "cannot read the version of Traefik"
if [ ! -d "bin/traefik-$traefik" ]; then
	mkdir -p bin
	tmp=$(mktemp -d bin/.definitions-XXXXXX)
	docs=$(directory github.com/traefik/traefik/v3)/docs/content/reference/dynamic-configuration
	cp "$docs"/kubernetes-{crd-definition-v1,crd-rbac,gateway-rbac}.yml "$tmp/" || die "Traefik $traefik has its definitions elsewhere"
	for kind in gatewayclasses gateways httproutes grpcroutes backendtlspolicies referencegrants tlsroutes listenersets; do
		file=$(directory sigs.k8s.io/gateway-api)/config/crd/standard/gateway.networking.k8s.io_$kind.yaml
		[ ! -f "$file" ] || cp "$file" "$tmp/gateway-$kind.yml"
	done
	chmod -R u+w "$tmp"
	mv "$tmp" "bin/traefik-$traefik"
	say "took the definitions of Traefik $traefik"
fi

if [ -n "${KUBERNETES_BIN:-}" ]; then
	for program in "${programs[@]}"; do
		[ -x "$KUBERNETES_BIN/$program" ] || die "KUBERNETES_BIN=$KUBERNETES_BIN has no executable file $program"
	done
	say "using KUBERNETES_BIN"
	echo "$KUBERNETES_BIN"
	exit 0
fi

version=$(go list -mod=readonly -m -f '{{.Version}}' k8s.io/kubernetes) ||
	die "cannot read the version of Kubernetes from go.mod"
bin=$PWD/bin/$version

missing=()
for program in "${programs[@]}"; do
	[ -x "$bin/$program" ] || missing+=("$program")
done
if [ ${#missing[@]} = 0 ]; then
	say "$version is built already"
	echo "$bin"
	exit 0
fi

mkdir -p bin
# To a name of its own first, so that an interrupted build never looks like a
# finished one and two builds at once do not write to the same file.
tmp=$(mktemp -d bin/.build-XXXXXX)
trap 'abandon; rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# compile NAME LDFLAGS PACKAGE builds a program.
compile() { attend "$1" go build -mod=readonly -ldflags "-s -w $2" -o "$tmp/$1" "$3"; }

say "building ${missing[*]} $version; a first build takes 3 to 9 minutes on two cores and downloads 600 MB, later runs skip it"
started=$SECONDS
mkdir -p "$bin"
# Without a version of its own the server does not know which ones it can emulate.
stamp="-X k8s.io/component-base/version.gitVersion=$version"
for program in "${missing[@]}"; do
	case $program in
	etcd) compile etcd "" go.etcd.io/etcd/server/v3 ;;
	*) compile "$program" "$stamp" "k8s.io/kubernetes/cmd/$program" ;;
	esac
	"$tmp/$program" --help >/dev/null || die "the $program that was built does not start"
	mv "$tmp/$program" "$bin/"
done
say "built $version in $((SECONDS - started)) s"
echo "$bin"
