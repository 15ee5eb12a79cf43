#!/usr/bin/env bash
# Everything that docs/performance.md wants from one GPU, in under nine minutes: the Triton kernels against their
# references, each operation by every implementation, training, distillation, sampling. Tables and JSON go to a folder.
#
#   bash launch/measure.sh runs/measured        # on a GPU of 80 GB and more
#   SMALL=1 bash launch/measure.sh runs/tried   # the same commands on a small model, anywhere
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
OUT=${1:?usage: bash launch/measure.sh FOLDER}
PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$OUT"

full=configs/2p7b.json single=configs/single_gpu.json distill=configs/distill_2p7b.json batch=30 rounds=10
few=(--set training.global_batch=16 --set training.micro_batch=8 --set training.checkpointing=true)
short=(--set training.global_batch=8 --set training.micro_batch=8)
if [[ -n ${SMALL:-} ]]; then
    full=configs/tiny.json single=configs/tiny.json distill=configs/distill_tiny.json batch=4 rounds=1 few=() short=()
fi
failed=()

part() {  # name, seconds at most, command
    local name=$1 limit=$2 begin=$SECONDS
    shift 2
    if timeout "$limit" "$@" >"$OUT/$name.txt" 2>"$OUT/$name.log"; then
        echo "-- $name: $((SECONDS - begin)) s"
    else
        failed+=("$name")
        echo "-- $name: failed after $((SECONDS - begin)) s; the end of $OUT/$name.log:"
        tail -n 5 "$OUT/$name.log"
    fi
    if [[ $name == tests ]]; then
        tail -n 3 "$OUT/$name.txt"
    else
        grep -vE '^(\[|MA |CPU Virt|begin|before|after|end) *' "$OUT/$name.txt" | tail -n 20
    fi
}

bench() {  # name, seconds at most, arguments of launch/bench.py
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$PYTHON" launch/bench.py "$@" --rounds "$rounds" --out "$OUT/$name.json"
}

part tests 80 "$PYTHON" -m pytest -q tests/test_triton.py -m 'not long' -p no:cacheprovider
bench kernels 150 kernels --config "$full" --batch "$batch"
bench infer 70 infer --config "$full"
bench train 70 train --config "$single"
bench train_full 100 train --config "$full" "${few[@]}"
bench distill 70 distill --config "$distill" "${short[@]}" --set "model=$("$PYTHON" -c "
import json; print(json.dumps(json.load(open('$single'))['model']))")"
part memory 100 "$PYTHON" launch/plan.py --config "$single" --measure --json "$OUT/memory.json"
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi
