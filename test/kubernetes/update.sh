#!/usr/bin/env bash
# Moves this module to a release of Kubernetes: writes go.mod from the go.mod that
# the release was published with, and tidies it. Nothing to do by hand but to name
# the version, such as ./update.sh v1.36.3; without one, that of go.mod is taken.
#
# kube-apiserver comes from k8s.io/kubernetes, which replaces its own libraries by
# directories beside it. Replacements count in a main module only, so they are
# repeated here with the versions that those libraries were published as.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

die() { printf 'kubernetes: %s\n' "$*" >&2; exit 1; }

command -v go >/dev/null || die "go is not installed"
version=${1:-$(go list -mod=readonly -m -f '{{.Version}}' k8s.io/kubernetes)}
[[ $version == v1.* ]] || die "$version is not a version such as v1.36.3"
libraries=v0.${version#v1.}
published=$(cd "$(mktemp -d)" && go mod download -json "k8s.io/kubernetes@$version" | awk -F '"' '$2 == "GoMod" { print $4 }')
[ -n "$published" ] || die "$version cannot be downloaded"
etcd=$(awk '$1 == "go.etcd.io/etcd/server/v3" { print $2 }' "$published")
kustomize=$(awk '$1 == "sigs.k8s.io/kustomize/api" { print $2 }' "$published")
mapstructure=$(cd ../traefik && go list -mod=readonly -m -f '{{.Version}}' github.com/mitchellh/mapstructure)
language=$(awk '$1 == "go" { print $2 }' "$published")

{
	cat <<-MOD
		// Written by update.sh.
		module github.com/opencommit/requestmirror/test/kubernetes

		go $language

		tool (
			go.etcd.io/etcd/server/v3
			k8s.io/kubernetes/cmd/kube-apiserver
			k8s.io/kubernetes/cmd/kubectl
		)

		require (
			// What Traefik decodes options with, in its version.
			github.com/mitchellh/mapstructure $mapstructure
			github.com/opencommit/requestmirror v0.0.0
			github.com/standard-webhooks/standard-webhooks/libraries v0.0.1
			go.etcd.io/etcd/server/v3 $etcd
			k8s.io/api $libraries
			k8s.io/apimachinery $libraries
			k8s.io/apiserver $libraries
			k8s.io/client-go $libraries
			k8s.io/kubernetes $version
			sigs.k8s.io/kustomize/api $kustomize
			sigs.k8s.io/kustomize/kyaml $kustomize
			sigs.k8s.io/yaml v1.6.0
		)

		replace (
			github.com/opencommit/requestmirror => ../../
	MOD
	awk -v version="$libraries" '$2 == "=>" && $3 ~ /^\.\/staging\// { print "\t" $1 " => " $1 " " version }' "$published"
	echo ")"
} >go.mod
go mod tidy
