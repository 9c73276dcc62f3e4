#!/usr/bin/env bash
# The node's root file system from Debian packages alone. usage: rootfs.sh DIR
set -euo pipefail
. "$(dirname "$0")/versions.env"
dir=$1
packages=(
  systemd systemd-sysv dbus kmod mount util-linux e2fsprogs procps hostname findutils libc-bin bash ca-certificates
  containerd crun containernetworking-plugins libseccomp2 pigz jq curl
  iptables nftables ebtables conntrack iproute2 ethtool socat
  iputils-ping netcat-openbsd tcpdump busybox # for people who look into a node
)
# The mirror that apt is configured with, if it is.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | head -n 1 || true)
rm -rf "$dir"
debootstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" "$DEBIAN" "$dir" ${mirror:+"$mirror"}
rm -rf "$dir"/var/cache/apt "$dir"/var/lib/apt/lists/* "$dir"/usr/share/{doc,man,locale}/* "$dir"/var/log/*.log
