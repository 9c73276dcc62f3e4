#!/usr/bin/env bash
# Runs the scenarios that FOCUS chooses whenever a source file has changed, on a lab that stands between the runs where it can.
# Called by `make watch`; what it is given are variables for `make e2e`. Ctrl-C ends it, and a run that is under way first.
set -uo pipefail
cd "$(dirname "$0")/.."
export AMBIENTLAB_KEEP=1

# sources is a sum of what a run is made of: names, sizes and times of the files that git knows or would add.
sources() {
  git ls-files --cached --others --exclude-standard -z -- '*.go' '*.yaml' go.mod Makefile |
    xargs -0 stat --format='%n %s %Y' 2>/dev/null | cksum
}

trap 'echo; echo "watch: ended; \`bin/lab gc --all\` removes clusters that it kept"; exit 0' INT TERM
while :; do
  seen=$(sources)
  began=$SECONDS
  make --no-print-directory e2e "$@" && said=passed || said=failed
  echo "watch: $said after $((SECONDS - began)) s, waiting for a change (Ctrl-C ends)"
  while [ "$(sources)" = "$seen" ]; do sleep 0.5; done
done
