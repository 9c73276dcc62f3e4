#!/usr/bin/env bash
# Checks for what the build and the tests need beyond Go modules; installs it as root on Debian or Ubuntu, else says how.
set -eu

need_go=$(sed -n "s/^go //p" "$(dirname "$0")/../go.mod")
missing=()
command -v go >/dev/null || { echo "deps: no Go tool chain: install Go $need_go or newer from https://go.dev/dl/" >&2; exit 1; }
have=$(go env GOVERSION | sed 's/^go//')
if [ "$(printf '%s\n%s\n' "$need_go" "$have" | sort -V | head -n 1)" != "$need_go" ]; then
  echo "deps: Go $have is too old: install Go $need_go or newer from https://go.dev/dl/" >&2
  exit 1
fi

PATH=$PATH:/usr/sbin:/sbin
command -v nft >/dev/null || missing+=(nftables) # golden tests compare with it; failure bundles use it
command -v ip >/dev/null || missing+=(iproute2)  # failure bundles: links, routes, sockets
command -v curl >/dev/null || missing+=(curl)    # an HTTP/2 client that is not ours calls a ztunnel
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "deps: missing: ${missing[*]}: install them with your system's package manager" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "deps: missing: ${missing[*]}: run: sudo apt-get install -y ${missing[*]}" >&2
  exit 1
fi
echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq "${missing[@]}" >/dev/null 2>&1 ||
  { apt-get update -qq && apt-get install -y -qq "${missing[@]}" >/dev/null; }
