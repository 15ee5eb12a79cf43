#!/usr/bin/env bash
# Collects what a machine without a network lacks to run launch/measure.sh: one with a GPU, Python 3.12, PyTorch,
# Triton, transformers, numpy, einops, matplotlib and pytest. About 11 MB.
#
#   bash launch/wheels.sh .whl          # FP8=1 adds torchao
#   there: python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site
#          PYTHON=python3 bash launch/measure.sh /tmp/measured measured.tgz
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
DIR=${1:?usage: bash launch/wheels.sh FOLDER}
PYTHON=${PYTHON:-.venv/bin/python}
pinned() { grep -E "^$1==" constraints.txt; }

mkdir -p "$DIR"
# The others have wheels of other versions for this Python.
needed=("$(pinned mosaicml-streaming)" "$(pinned pydantic)" "$(pinned pydantic-core)" annotated-types brotli catalogue
    cramjam hjson python-snappy typing-inspection zstd)
[[ -z ${FP8:-} ]] || needed+=("$(pinned torchao)")
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
"$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" -d "$DIR" "${needed[@]}"
# DeepSpeed is published as source; its wheel without compiled operations runs on every Python.
DS_BUILD_OPS=0 "$PYTHON" -m pip wheel -q --no-deps --no-build-isolation -w "$DIR" "$(pinned deepspeed)"
ls -s --block-size=K "$DIR"
