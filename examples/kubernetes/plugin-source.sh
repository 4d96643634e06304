#!/usr/bin/env bash
# Prepares the sources of the plugin for a Traefik that cannot download them.
#
#   plugin-source.sh helm              values for Traefik's chart, to use with helm/values-inline.yaml
#   plugin-source.sh configmap SPACE   a ConfigMap in a namespace
#   plugin-source.sh directory [DIR]   a directory with the files, for images, and for kustomize, which
#                                      makes a ConfigMap of it whose name changes with its content;
#                                      plugins-local/ beside this script, if not said otherwise
#
# The first two print YAML, the last one prints where it is.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
set -- "${1:-}" "${2:-}"
[ "$1" != directory ] || set -- "$1" "$(mkdir -p "${2:-$here/plugins-local}" && cd "${2:-$here/plugins-local}" && pwd)"

die() { printf 'plugin-source.sh: %s\n' "$*" >&2; exit 1; }

# What Traefik reads of a plugin: not its tests. All of it is in one directory.
cd "$root"
files=(go.mod .traefik.yml)
for file in *.go; do
	[[ $file == *_test.go ]] || files+=("$file")
done
[ ${#files[@]} -gt 2 ] || die "no sources in $root"
size=$(cat "${files[@]}" | wc -c)
[ "$size" -lt 1000000 ] || die "$size bytes are too many for a ConfigMap"

# sources INDENT prints each file as an entry of a map.
sources() {
	for file in "${files[@]}"; do
		printf '%s%s: |\n' "$1" "$file"
		sed "s/^/$1  /" "$file"
	done
}

case $1 in
helm)
	cat <<-YAML
		experimental:
		  localPlugins:
		    requestmirror:
		      source:
	YAML
	sources '        '
	# Traefik reads sources when it starts, and the chart does not restart it for new ones.
	cat <<-YAML
		deployment:
		  podAnnotations:
		    requestmirror/sources: "$(cat "${files[@]}" | cksum | tr ' ' -)"
	YAML
	;;
configmap)
	[ -n "$2" ] || die "which namespace?"
	cat <<-YAML
		apiVersion: v1
		kind: ConfigMap
		metadata:
		  name: request-mirror-plugin
		  namespace: $2
		data:
	YAML
	sources '  '
	;;
directory)
	dir=$2
	rm -f "$dir"/*.go "$dir"/go.mod "$dir"/.traefik.yml
	cp "${files[@]}" "$dir/"
	{
		cat <<-YAML
			apiVersion: kustomize.config.k8s.io/v1beta1
			kind: Kustomization
			configMapGenerator:
			  - name: request-mirror-plugin
			    namespace: traefik
			    files:
		YAML
		printf '      - %s\n' "${files[@]}"
	} >"$dir/kustomization.yaml"
	echo "$dir"
	;;
*)
	sed -n '2,11s/^# \{0,1\}//p' "$here/plugin-source.sh" >&2
	exit 2
	;;
esac
