#!/bin/sh
# Makes .native, an environment in which the core and the simulator's driver are compiled. It holds this package, as it
# is, and takes everything else from .venv, so it is made in whole or not at all.
set -eu
cd "$(dirname "$0")/.."

compiler=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_config_var("CC").split()[0])')
if ! command -v "$compiler" >/dev/null; then
    echo "native: the C compiler '$compiler' is not installed; on Debian and Ubuntu it is in the package gcc." >&2
    exit 1
fi

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
