#!/bin/sh
# Says what this machine lacks for building and running shmkv, and how to get it; exit code 1 if anything is missing.
# Usage: check-machine.sh PYTHON
python=${1:-python3}
missing=0

lack() {                         # lack WHAT PACKAGES
  echo "missing: $1" >&2
  echo "    remedy on Debian and Ubuntu: apt-get install $2" >&2
  missing=1
}

if ! command -v "$python" >/dev/null 2>&1; then
  lack "Python ($python is not in PATH; name another with: make PYTHON=...)" "python3 python3-venv python3-dev"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  lack "Python 3.11 or newer (found $("$python" -V 2>&1); name another with: make PYTHON=...)" "python3.11 python3.11-venv python3.11-dev"
else
  "$python" -c 'import venv, ensurepip' 2>/dev/null || lack "the modules venv and ensurepip of $python" "python3-venv"
  "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    lack "the headers of $python (Python.h)" "python3-dev"
fi
if ! echo 'int main(void) { return 0; }' | ${CC:-cc} -x c -o /dev/null - >/dev/null 2>&1; then
  lack "a C compiler that can link (${CC:-cc})" "gcc libc6-dev"
fi
if [ ! -d /dev/shm ] || [ ! -w /dev/shm ]; then
  echo "missing: /dev/shm that this user may write" >&2
  echo "    remedy: mount -t tmpfs -o mode=1777 tmpfs /dev/shm (docker: run with --shm-size=1g)" >&2
  missing=1
fi
exit $missing
