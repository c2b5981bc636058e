#!/bin/sh
# Makes .venv from requirements.lock and installs this repository into it, editable. Safe to run again.
# Usage: tools/setup.sh [PYTHON]. Without PYTHON a usable .venv keeps its interpreter.
set -eu
cd "$(dirname "$0")/.."

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }
version() { "$1" -c 'import platform; print(platform.python_version())'; }

python=${1:-}
if [ -n "$python" ]; then
    supported "$python" || { echo "setup: $python is not a Python 3.11 or 3.12." >&2; exit 1; }
    if [ -d .venv ] && ! { supported .venv/bin/python && [ "$(version .venv/bin/python)" = "$(version "$python")" ]; }; then
        rm -rf .venv
    fi
elif [ -d .venv ] && ! supported .venv/bin/python; then
    rm -rf .venv
fi

if [ ! -d .venv ]; then
    for candidate in ${python:-python3.11 python3.12 python3 python}; do
        if supported "$candidate"; then python=$candidate; break; fi
    done
    if [ -z "$python" ]; then
        echo "setup: no Python 3.11 or 3.12 found; name one with 'make setup PYTHON=...'." >&2
        exit 1
    fi
    echo "setup: .venv with Python $(version "$python")"
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "setup: '$python -m venv' failed; on Debian and Ubuntu install the python3-venv package." >&2
        exit 1
    fi
fi

with_uv() {
    uv --version >/dev/null 2>&1 &&
        uv pip install -q --python .venv/bin/python --require-hashes -r requirements.lock &&
        uv pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
}

# uv does not read pip's configuration, so where pip knows of a mirror and uv does not, pip is the way that works.
with_pip() {
    .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
    .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock &&
        .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
}

with_uv || with_pip
echo "setup: ready, $(.venv/bin/python --version) in .venv"
