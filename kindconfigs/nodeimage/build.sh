#!/usr/bin/env bash
# Makes a kind node image and prints its name on the last line of standard output; progress goes to standard error.
#
#   build.sh [--offline] [--force] [--keep DIR]
#
# Where a registry answers, that is kind's own image. Elsewhere, or with --offline, it is built from Debian packages and Go
# modules; that needs root (for debootstrap, which is installed, as jq is), and takes about six minutes on 2 cores, 25 s when only ours has changed.
# An image whose inputs have not changed is not built again, but with --force. --keep leaves the files of the build in DIR.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=${AMBIENTLAB_BIN:-$root/bin}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ambientlab/nodeimage
repository=ambientlab/node
export CGO_ENABLED=0 GOTOOLCHAIN=local
. "$here/versions.env"

say() { echo "node-image: $*" >&2; }
die() { say "$1"; exit 1; }

offline= force= keep=
while [ $# -gt 0 ]; do
  case $1 in
    --offline) offline=1 ;;
    --force) force=1 ;;
    --keep) keep=${2:?--keep wants a directory}; shift ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) die "unknown argument $1: see --help" ;;
  esac
  shift
done

# kind's source is in its module: its files go into the image, and it names the image that it would pull.
kind_dir() { (cd "$root/tools/kind" && go mod download sigs.k8s.io/kind && go list -m -f '{{.Dir}}' sigs.k8s.io/kind); }

# pulled prints kind's own image, if it is here or can be pulled.
pulled() {
  local image
  image=$(sed -n 's/^const Image = "\(.*\)"$/\1/p' "$1/pkg/apis/config/defaults/image.go")
  docker image inspect "$image" >/dev/null 2>&1 || timeout 600 docker pull -q "$image" >/dev/null 2>&1 || return 1
  echo "$image"
}

# inputs is a digest of all that the offline image is made of, but the state of the Debian mirror.
inputs() {
  { (cd "$here" && find . -type f ! -name '*_test.go' -print0 | sort -z | xargs -0 sha256sum)
    sha256sum <"$bin/nodenet"
    (cd "$root/tools/kind" && sha256sum go.mod); } | sha256sum | cut -c1-12
}

# timed NAME FILE COMMAND...: runs COMMAND with its output in a log, and notes how long it took and how large FILE got.
timed() {
  local name=$1 file=$2 from=$SECONDS log=$work/log/${1// /-}
  shift 2
  say "$name ..."
  "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; die "$name failed; the end of its output is above"; }
  printf '%-24s %4d s  %s\n' "$name" $((SECONDS - from)) "$(du -sh --apparent-size "$file" 2>/dev/null | cut -f1)" >>"$work/laps"
}

# cached NAME KEY COMMAND...: COMMAND makes the file that is its last argument, unless it was made from the same inputs.
cached() {
  local name=$1 file=$cache/$2
  shift 2
  if [ -s "$file" ]; then
    printf '%-24s    -    cached\n' "$name" >>"$work/laps"
  else
    timed "$name" "$file.part" "$@" "$file.part"
    mv "$file.part" "$file"
  fi
}

key() { sha256sum | cut -c1-12; }

rootfs() { "$here/rootfs.sh" "$work/rootfs" && tar -C "$work/rootfs" --numeric-owner -cf "$1" . && rm -rf "$work/rootfs"; }

kubernetes() {
  local v=k8s.io/component-base/version minor=${KUBERNETES#v1.}
  (cd "$here/kubernetes" && go build -trimpath -tags selinux,notest -o "$1" -ldflags "-s -w -X $v.gitVersion=$KUBERNETES \
    -X $v.gitMajor=1 -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean -X $v.gitCommit=offline -X $v.buildDate=2026-01-01T00:00:00Z" .)
}

ours() {
  (cd "$root" && go build -trimpath -ldflags '-s -w' -o "$work/bin/" ./kindconfigs/nodeimage/{ocifit,pause,nodad,plainpackets})
  cp "$bin/nodenet" "$work/bin/"
}

docker info >/dev/null 2>&1 || die "no Docker daemon answers: start one (as root on Debian: tools/docker.sh), or set DOCKER_HOST"
kind=$(kind_dir)
if [ -z "$offline" ]; then
  if image=$(pulled "$kind"); then
    say "kind's own image can be had"
    docker tag "${image%%@*}" "$repository:current" 2>/dev/null || docker tag "$image" "$repository:current"
    echo "$repository:current"
    exit 0
  fi
  say "kind's own image cannot be pulled: building one from Debian packages and Go modules"
fi
[ -x "$bin/nodenet" ] || die "no $bin/nodenet: run make build"
image=$repository:$KUBERNETES-$(inputs)
if [ -z "$force" ] && docker image inspect "$image" >/dev/null 2>&1; then
  say "$image is there already"
  docker tag "$image" "$repository:current"
  echo "$image"
  exit 0
fi
[ "$(id -u)" = 0 ] || die "building needs root, for debootstrap: run it with sudo, or where a registry answers"
missing=()
for c in debootstrap jq; do command -v $c >/dev/null || missing+=($c); done
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || die "missing: ${missing[*]}: install them with your system's package manager"
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir "$work/log" "$work/bin"
began=$SECONDS

rootfs_key=rootfs-$( (cat "$here/rootfs.sh"; echo "$DEBIAN") | key).tar
kubernetes_key=kubernetes-$( (cat "$here"/kubernetes/*.go "$here"/kubernetes/go.*; echo "$KUBERNETES"; go env GOVERSION GOARCH) | key)
cached "Debian root" "$rootfs_key" rootfs &
debian=$!
cached "Kubernetes" "$kubernetes_key" kubernetes
timed "our programs" "$work/bin" ours
wait $debian || die "no Debian root"
cp "$cache/$kubernetes_key" "$work/bin/kubernetes"
mkdir "$work/rootfs"
tar -C "$work/rootfs" -xf "$cache/$rootfs_key"
timed "container images" "$work/images.tar" "$here/images.sh" "$work"
timed "node image" "$work/none" "$here/node.sh" "$work" "$kind" "$image"
docker tag "$image" "$repository:current"

{ echo; cat "$work/laps"; printf '%-24s %4d s  %s\n' "$image" $((SECONDS - began)) "$(docker image inspect -f '{{.Size}}' "$image" | numfmt --to=iec)"; } >&2
if [ -n "$keep" ]; then mkdir -p "$keep" && cp -a "$work/." "$keep/"; fi
# Of older images of ours only what stands in a cluster is kept; docker refuses to remove those.
docker images -q --no-trunc --filter "reference=$repository" | sort -u | grep -vx "$(docker image inspect -f '{{.Id}}' "$image")" | xargs -r docker rmi -f >/dev/null 2>&1 || true
echo "$image"
