#!/usr/bin/env bash
# The node image: Debian's root, kind's own files, Kubernetes, and the cluster's images. usage: node.sh WORK KIND IMAGE
# WORK is what images.sh left, KIND the directory of kind's module. kind's files are taken as they are, but for what is said here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.env"
work=$1 kind=$2/images/base/files image=$3
node=$work/rootfs
init='["/usr/local/bin/entrypoint","/sbin/init","systemd.unified_cgroup_hierarchy=0","systemd.legacy_systemd_cgroup_controller=1"]'
[ ! -e /sys/fs/cgroup/cgroup.controllers ] || init='["/usr/local/bin/entrypoint","/sbin/init"]'

# change FILE PATTERN TEXT: TEXT after the one line that PATTERN matches; kind may have moved it.
change() {
  [ "$(grep -c -- "$2" "$1")" = 1 ] || { echo "$1: not one line with: $2: look at what this version of kind does" >&2; exit 1; }
  local text
  text=$(sed 's/\\/\\\\/g; $!s/$/\\/' <<<"$3")
  sed -i "/$2/a\\
$text" "$1"
}

rm -f "$node/etc/resolv.conf"
(cd "$kind" && find etc -type f) | while read -r f; do install -D -m 0644 "$kind/$f" "$node/$f"; done
install -D -m 0755 -t "$node/usr/local/bin" "$kind/usr/local/bin/entrypoint" "$here/files/crictl"
install -D -m 0755 -t "$node/kind/bin" "$kind"/kind/bin/*
install -D -m 0644 -t "$node/kind/manifests" "$here"/files/default-*.yaml
printf %s "$KUBERNETES" >"$node/kind/version"
mkdir -p "$node/etc/kubernetes/manifests" "$node/opt/cni"

entrypoint=$node/usr/local/bin/entrypoint
# systemd would mount the cgroup v1 controllers that the host has not mounted, for the whole machine.
change "$entrypoint" "log_info 'detected cgroupns'" \
  "    awk '/^#/ || \$2 != 0' /proc/cgroups >/kind/mounted-cgroups
    mount --bind /kind/mounted-cgroups /proc/cgroups"
# The kubelet sets these for the whole machine: it gets copies to set. And containerd gets the images that are in this one.
change "$entrypoint" "log_info 'making mounts shared'" \
  '  for f in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    mkdir -p "/kind/sysctl/${f%/*}"
    cat "/proc/sys/$f" >"/kind/sysctl/$f"
    mount --bind "/kind/sysctl/$f" "/proc/sys/$f"
  done
  mount --bind /kind/images /var/lib/containerd/io.containerd.content.v1.content'
rm -f "$node"/usr/lib/sysctl.d/*.conf "$node/etc/sysctl.d/99-sysctl.conf" # systemd-sysctl does, too

# containerd, crun and the CNI plugins are Debian's; ocifit makes do with the capabilities that there are. With runc, and cgroups
# made by systemd, a pod's beginning and end cost a third more: 0.9 s of processor time instead of 0.6 to 0.75.
ln -sf /usr/bin/containerd "$node/usr/local/bin/containerd"
mv "$node/usr/lib/cni" "$node/opt/cni/bin"
mv "$node"/opt/cni/bin/portmap{,.debian}
install -m 0755 "$work/bin/nodad" "$work/bin/plainpackets" "$here/files/portmap" "$node/opt/cni/bin/"
install -m 0755 "$work/bin/ocifit" "$node/usr/local/bin/ocifit"
install -D -m 0755 "$here/files/runc" "$node/usr/local/sbin/runc"
sed -i 's#registry.k8s.io/pause:[0-9.]*#registry.k8s.io/pause:'"$PAUSE_TAG"'#; s#restrict_oom_score_adj = false#restrict_oom_score_adj = true#
  s#SystemdCgroup = true#SystemdCgroup = false#; /^\[proxy_plugins/,/^$/d' "$node/etc/containerd/config.toml"
# Nobody reads kubelet's statistics here: once a minute is often enough.
sed -i 's/^KUBELET_EXTRA_ARGS=.*/& --cgroup-driver=cgroupfs --housekeeping-interval=1m/' "$node/etc/default/kubelet"
grep -q cgroupfs "$node/etc/default/kubelet" && ! grep -q 'SystemdCgroup = true' "$node/etc/containerd/config.toml" ||
  { echo "the cgroup driver is not that of kubelet and containerd: look at what this version of kind does" >&2; exit 1; }
# Of containerd, its shims and the CNI plugins a good part is the garbage collector's, whose heaps are small: see gcPercent.
install -D -m 0644 /dev/stdin "$node/etc/systemd/system/containerd.service.d/collector.conf" <<<$'[Service]\nEnvironment=GOGC=400'
install -m 0755 "$work/bin/kubernetes" "$node/usr/bin/kubernetes"
for n in kubelet kubeadm kubectl; do ln -sf kubernetes "$node/usr/bin/$n"; done

# What kind's own Dockerfile does to systemd.
units=$node/lib/systemd/system
rm -f "$units"/multi-user.target.wants/* "$node"/etc/systemd/system/*.wants/* "$units"/local-fs.target.wants/* "$units"/basic.target.wants/* \
  "$units"/sockets.target.wants/*{udev,initctl}* "$units"/sysinit.target.wants/systemd-tmpfiles-setup.service
echo ReadKMsg=no >>"$node/etc/systemd/journald.conf"
for u in kubelet containerd undo-mount-hacks; do chroot "$node" systemctl enable $u.service; done
chroot "$node" systemctl mask systemd-binfmt.service dbus.{service,socket} systemd-ask-password-{console,wall}.path # two inotify instances less, of which a machine has few
# Without kind's hook that hides the host's product files: it starts a shell and five commands for each container.
chroot "$node" ctr oci spec | jq 'del(.process.rlimits)' >"$node/etc/containerd/cri-base.json"

# Docker copies what is below /var for each node, a thousand files as slowly as 200 MB: what need not be there is elsewhere.
mv "$node/var/lib/dpkg" "$node/usr/share/dpkg-state"
ln -s ../../usr/share/dpkg-state "$node/var/lib/dpkg"
rm -rf "$node"/var/cache/*

container=ambientlab-node-build-$$
trap 'docker rm -f $container >/dev/null 2>&1 || true; docker rmi "$image-base" >/dev/null 2>&1 || true' EXIT
tar -C "$node" --numeric-owner -cf - . | docker import -c 'ENV container=docker' -c "ENTRYPOINT $init" - "$image-base" >/dev/null
# Preload the images, as `kind build node-image` does.
docker run -d --name $container --stop-signal SIGRTMIN+3 --privileged --network none --entrypoint sleep "$image-base" infinity >/dev/null
docker exec -i $container bash -c '
  containerd >/var/log/containerd.log 2>&1 & pid=$!
  until ctr version >/dev/null 2>&1; do kill -0 $pid || { cat /var/log/containerd.log; exit 1; }; sleep 0.1; done
  ctr -n k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack --digests - || exit
  kill $pid; wait $pid
  mv /var/lib/containerd/io.containerd.content.v1.content /kind/images && mkdir /var/lib/containerd/io.containerd.content.v1.content || exit
  rm -rf /run/containerd /var/log/containerd.log' <"$work/images.tar"
docker commit --change "ENTRYPOINT $init" $container "$image" >/dev/null
