#!/usr/bin/env bash
# What virtual machines need beyond tools/rig/packages.sh: QEMU, a kernel with its modules, and the
# programs around them. As root the missing ones are installed; otherwise they are named, and that
# is the end.
set -euo pipefail

missing=()
PATH="$PATH:/usr/sbin:/sbin"
need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need qemu-system-x86_64 qemu-system-x86
need busybox busybox-static
need modprobe kmod
need setpriv util-linux
need lspci pciutils
kernel=""
for image in /boot/vmlinuz-*-amd64; do
    [ -e "/lib/modules/${image#/boot/vmlinuz-}/modules.dep" ] && kernel="$image"
done
[ -n "$kernel" ] || missing+=(linux-image-amd64)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "virtual machines need ${missing[*]} (as root: apt-get install ${missing[*]})" >&2
    exit 2
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# no firmware, no boot loader: these kernels only ever start in a virtual machine
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
