#!/usr/bin/env bash
# The container images of a cluster as one archive of `docker save`. usage: images.sh WORK
# Reads WORK/rootfs and WORK/bin; writes WORK/images.tar and WORK/images.txt, the names in it.
# One image holds every program of a cluster under all the names that kubeadm asks for: it is stored once on a node.
set -euo pipefail
. "$(dirname "$0")/versions.env"
work=$1 from=$1/rootfs

# skeleton DIR: what a program expects of a root file system.
skeleton() {
  mkdir -p "$1"/{usr/local/bin,usr/bin,usr/sbin,usr/lib,usr/lib64,etc,tmp,run,var,proc,sys,dev,root}
  chmod 1777 "$1/tmp"
  for d in bin sbin lib lib64; do ln -s "usr/$d" "$1/$d"; done
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$1/etc/passwd"
  printf 'root:x:0:\n' >"$1/etc/group"
  echo 'hosts: files dns' >"$1/etc/nsswitch.conf"
  cp "$from"/etc/{protocols,services} "$1/etc/" 2>/dev/null || true
  cp -a "$from/etc/ssl" "$1/etc/"
}

# copy DIR FILE...: Debian's programs, with the libraries that they name.
copy() {
  local dir=$1 f lib
  shift
  for f; do
    install -D "$(realpath "$from/$f")" "$dir/$f"
    chroot "$from" ldd "/$f" 2>/dev/null | grep -oE '/[^ ]+' | while read -r lib; do
      [ -e "$dir/$lib" ] || install -D "$from/$lib" "$dir/$lib"
    done
  done
}

import() { tar -C "$1" --numeric-owner --owner=0 --group=0 -cf - . | docker import "${@:3}" - "$2" >/dev/null; }

names=()
all=$work/image.all
skeleton "$all"
cp "$work/bin/kubernetes" "$work/bin/nodenet" "$all/usr/local/bin/"
for n in kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd kubectl; do ln -s kubernetes "$all/usr/local/bin/$n"; done
ln -s usr/local/bin/kubernetes "$all/coredns" # where its Deployment looks
copy "$all" usr/sbin/{nft,xtables-nft-multi,conntrack} # for kube-proxy
copy "$all" $(cd "$from" && ls usr/lib/*-linux-gnu/xtables/*.so)
for p in {iptables,ip6tables}{,-save,-restore}; do ln -s xtables-nft-multi "$all/usr/sbin/$p"; done
for n in registry.k8s.io/{kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy}:$KUBERNETES \
  registry.k8s.io/etcd:$ETCD_TAG registry.k8s.io/coredns/coredns:$COREDNS_TAG docker.io/ambientlab/nodenet:built; do names+=("$n"); done
import "$all" "${names[0]}" -c 'ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' -c 'ENTRYPOINT ["/coredns"]'
for n in "${names[@]:1}"; do docker tag "${names[0]}" "$n"; done

mkdir "$work/image.pause"
cp "$work/bin/pause" "$work/image.pause/"
names+=("registry.k8s.io/pause:$PAUSE_TAG")
import "$work/image.pause" "${names[-1]}" -c 'ENTRYPOINT ["/pause"]'

docker save -o "$work/images.tar" "${names[@]}"
printf '%s\n' "${names[@]}" >"$work/images.txt"
docker rmi "${names[@]}" >/dev/null # they are in the archive
rm -rf "$all" "$work/image.pause"
