#!/usr/bin/env bash
# Everything that docs/performance.md wants from one GPU, in under nine minutes: the Triton kernels against their
# references, each operation by every implementation, training, distillation, sampling. Tables, JSON, charts and which goals
# are met go to a folder.
#
#   bash launch/measure.sh runs/measured        # on a GPU of 80 GB and more
#   SMALL=1 bash launch/measure.sh runs/tried   # the same commands on a small model, anywhere
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
OUT=${1:?usage: bash launch/measure.sh FOLDER}
PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$OUT"

full=configs/2p7b.json distill=configs/distill_2p7b.json batch=30 rounds=10 micro=8
distilled=(--set training.global_batch=8 --set training.micro_batch=8)
if [[ -n ${SMALL:-} ]]; then
    full=configs/tiny.json distill=configs/distill_tiny.json batch=4 rounds=1 distilled=()
elif (($(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1) < 130000)); then
    # Four roles of 2.4 B parameters do not fit: those of the largest model that is made for one GPU.
    distilled+=(--set "model=$("$PYTHON" -c "import json; print(json.dumps(json.load(open('configs/single_gpu.json'))['model']))")")
fi
END=$((SECONDS + 530))
failed=()

part() {  # name, seconds at most, command; none begins when the time is over
    local name=$1 limit=$2 begin=$SECONDS
    shift 2
    ((limit <= END - SECONDS)) || limit=$((END - SECONDS))
    if ((limit <= 0)); then
        failed+=("$name")
        echo "-- $name: no time left"
        return
    fi
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

train() {  # name, micro-batch, arguments: a step of one micro-batch
    local name=$1 size=$2
    shift 2
    bench "$name" 80 train --config "$full" --set training.global_batch="$size" --set training.micro_batch="$size" \
        --set training.checkpointing=true "$@"
}

# What matters most comes first.
part tests 80 "$PYTHON" -m pytest -q tests/test_triton.py -m 'not long' -p no:cacheprovider
bench kernels 120 kernels --config "$full" --batch "$batch"
train train_full "$micro" --set zero.stage=1
bench infer 60 infer --config "$full"
bench distill 80 distill --config "$distill" "${distilled[@]}"
train train_fp8 "$micro" --set zero.stage=1 --set training.fp8=true
train train_zero2 "$micro" --set zero.stage=2
train train_batch4 4 --set zero.stage=1
train train_batch2 2 --set zero.stage=1
part memory 80 "$PYTHON" launch/plan.py --config configs/single_gpu.json --measure --json "$OUT/memory.json"
"$PYTHON" launch/measured.py "$OUT" --charts "$OUT"
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi
