#!/bin/sh
# Compares protos/ with the image of the last tagged release. An image rather than a git reference, because a
# shallow clone has no tags. `make baseline` writes it when a release is tagged.
set -eu
cd "$(dirname "$0")/.."
baseline=protos/baseline.binpb
if [ ! -f "$baseline" ]; then
    echo "buf breaking: skipped, there is no $baseline (no release has been tagged)."
    exit 0
fi
.venv/bin/buf breaking --against "$baseline"
echo "buf breaking: nothing breaks since the last release."
