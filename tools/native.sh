#!/bin/sh
# Makes .native, an environment in which the core and the simulator's driver are compiled. It holds this package, as it
# is, and takes everything else from .venv, so it is made in whole or not at all.
# Usage: tools/native.sh [check]. With `check` it only says, by its status too, whether a C compiler and Python.h are here.
set -eu
cd "$(dirname "$0")/.."

.venv/bin/python -c '
import os, shutil, sys, sysconfig

compiler, header = sysconfig.get_config_var("CC").split()[0], os.path.join(sysconfig.get_path("include"), "Python.h")
missing = [what for what, found in ((compiler, shutil.which(compiler)), (header, os.path.exists(header))) if not found]
if missing:
    sys.exit("native: no " + " and no ".join(missing) + "; Debian and Ubuntu have them in gcc and python3-dev")
'
if [ "${1:-}" = check ]; then exit; fi

site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

rm -rf .native
trap 'rm -rf .native' EXIT
.venv/bin/python -m venv --without-pip .native
site .venv/bin/python >"$(site .native/bin/python)/dependencies.pth"
echo "native: compiling, about a minute on two processors"
HATCH_BUILD_HOOKS_ENABLE=1 .venv/bin/python -m pip --python .native/bin/python install -q --disable-pip-version-check \
    --ignore-installed --no-deps --no-build-isolation .
# As old as its beginning: what changes while it is built makes it out of date.
touch -r .native/pyvenv.cfg .native/bin/hexagent
trap - EXIT
echo "native: ready, .native/bin/hexagent"
