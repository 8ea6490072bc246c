#!/usr/bin/env bash
# What the host must have: a compiler for the native helper, runc and a static busybox for
# containers. As root the missing ones are installed; otherwise they are named, and the project
# does without: a pure fallback of the helper on x86, processes instead of containers.
set -euo pipefail

missing=()
need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
PATH="$PATH:/usr/sbin:/sbin"
need gcc gcc
need runc runc
need busybox busybox-static
python="$(command -v python3.11 || command -v python3 || true)"
if [ -z "$python" ]; then
    missing+=(python3 python3-venv python3-dev)
else
    "$python" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    "$python" - <<'PY' || missing+=(python3-dev)
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))
PY
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "not installed: ${missing[*]} (as root: apt-get install ${missing[*]})" >&2
    [ -n "$python" ] && "$python" -c 'import ensurepip' 2>/dev/null || exit 1
    exit 0
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
