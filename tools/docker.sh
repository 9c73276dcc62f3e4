#!/usr/bin/env bash
# Sees to a Docker daemon for the kind lab: one that answers is used as it is; elsewhere, as root on Debian or Ubuntu, the
# distribution's is installed and started in the background. Where this machine withholds capabilities from every process,
# containers get those that there are (see kindconfigs/nodeimage/ocifit). usage: docker.sh
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
die() { echo "docker: $*" >&2; exit 1; }

if docker info >/dev/null 2>&1; then exit 0; fi
[ "$(id -u)" = 0 ] || die "no daemon answers: start one, or run this as root"
if ! command -v dockerd >/dev/null; then
  command -v apt-get >/dev/null || die "no daemon answers, and no apt-get to install one: see https://docs.docker.com/engine/install/"
  echo "docker: installing docker.io" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq --no-install-recommends docker.io >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends docker.io >/dev/null; }
fi

state=/var/lib/ambientlab
mkdir -p "$state" /lib/modules # which a node mounts
(cd "$root" && CGO_ENABLED=0 go build -trimpath -o "$state/ocifit.new" ./kindconfigs/nodeimage/ocifit)
mv "$state/ocifit.new" "$state/ocifit"
options=()
missing=$("$state/ocifit" --missing | tr '\n' ' ')
if [ -n "$missing" ]; then
  echo "docker: this machine withholds $missing: containers run without" >&2
  options=(--add-runtime "fit=$state/ocifit" --default-runtime fit)
fi
setsid dockerd --exec-opt native.cgroupdriver=cgroupfs "${options[@]}" >"$state/dockerd.log" 2>&1 </dev/null &
pid=$!
for _ in $(seq 300); do
  if docker info >/dev/null 2>&1; then
    echo "docker: started dockerd as process $pid, its log is $state/dockerd.log" >&2
    exit 0
  fi
  kill -0 $pid 2>/dev/null || break
  sleep 0.1
done
tail -n 20 "$state/dockerd.log" >&2
die "dockerd did not start"
