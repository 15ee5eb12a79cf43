#!/usr/bin/env bash
# Measures everything that docs/performance.md wants from one GPU, in under ten minutes: the Triton kernels against their
# references, each operation by every implementation, training, distillation, sampling. A folder gets tables, JSON, charts,
# and which goals are met.
#
#   bash launch/measure.sh runs/measured        # on a GPU of 80 GB or more
#   SMALL=1 bash launch/measure.sh runs/tried   # the same commands on a small model, anywhere
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
OUT=${1:?usage: bash launch/measure.sh FOLDER}
PYTHON=${PYTHON:-.venv/bin/python}
gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader,nounits 2>/dev/null | head -n 1; }

full=configs/2p7b.json distill=configs/distill_2p7b.json memory=configs/single_gpu.json batch=30 rounds=5
sized=(--set training.global_batch=8 --set training.micro_batch=8) other=(--batches 2 4) distilled=("${sized[@]}") parts=(--no-parts)
chosen='bfloat16 or padding or one_modulation or compilation' scale=1
if [[ -n ${SMALL:-} ]]; then
    full=configs/tiny.json distill=configs/distill_tiny.json memory=configs/tiny.json batch=4 rounds=1
    parts=() chosen='swiglu and bfloat16' scale=4 # a CPU is slow
elif [[ ! $(gpu memory.total) =~ ^[0-9]+$ ]]; then
    echo "no GPU here (nvidia-smi lists none); SMALL=1 runs the same commands on a small model" >&2
    exit 1
elif (($(gpu memory.total) < 130000)); then
    # Four roles of 2.4 B parameters do not fit: take the largest model for one GPU, together with its parts.
    parts=() distilled+=(--set "model=$("$PYTHON" -c "import json; from audiox_trainer.trainer.core.config_reader import read_config; print(json.dumps(read_config('$memory')['model']))")")
fi
"$PYTHON" -c 'import audiox_trainer, deepspeed' 2>/dev/null || {
    echo "$PYTHON has no audiox_trainer or DeepSpeed: run make setup, or name another with PYTHON=" >&2
    exit 1
}
mkdir -p "$OUT" || exit
for name in tests kernels train_full distill sample train_fp8 train_zero2 train_plain memory memory_distill; do
    rm -f "$OUT/$name".{json,txt,log,svg} # of an earlier run
done
BEGIN=$SECONDS DUE=0
failed=()

part() {  # name, seconds, command: it may also use the time that earlier ones have left
    local name=$1 begin=$SECONDS limit
    DUE=$((DUE + scale * $2)) limit=$((BEGIN + DUE - SECONDS))
    shift 2
    if timeout -k 5 "$limit" "$@" >"$OUT/$name.txt" 2>"$OUT/$name.log"; then
        echo "-- $name: $((SECONDS - begin)) s"
    else
        failed+=("$name")
        echo "-- $name: failed after $((SECONDS - begin)) of $limit s; the end of $OUT/$name.log:"
        tail -n 5 "$OUT/$name.log"
    fi
    if [[ $name == tests ]]; then
        tail -n 3 "$OUT/$name.txt"
    else
        grep -vE '^(\[|MA |CPU Virt|begin|before|after|end) *' "$OUT/$name.txt" | tail -n 40
    fi
}

bench() {  # name, seconds, arguments of launch/bench.py
    local name=$1 seconds=$2
    shift 2
    part "$name" "$seconds" "$PYTHON" launch/bench.py "$@" --rounds "$rounds" --out "$OUT/$name.json"
}

train() {  # name, seconds, arguments: a step of one micro-batch, with the operations that were fastest
    local name=$1 seconds=$2 table=()
    shift 2
    [[ ! -f $OUT/kernels.json ]] || table=(--set "kernels.benchmark_file=$OUT/kernels.json")
    bench "$name" "$seconds" train --config "$full" "${sized[@]}" "${table[@]}" "$@"
}

# 560 s in total, the most important first. A part that hangs takes no time from later ones. On a GPU the parts spend
# theirs on importing (12 s each) and compiling (which later ones find cached), not on the measured steps.
part tests 55 "$PYTHON" -m pytest -q tests/kernels/test_triton.py -m 'not long' -k "$chosen" -p no:cacheprovider
bench kernels 140 kernels --config "$full" --batch "$batch"
train train_full 85 --set zero.stage=1 --only deepspeed "${other[@]}"
bench distill 65 distill --config "$distill" "${distilled[@]}" "${parts[@]}"
bench sample 45 sample --config "$full"
if [[ -z ${SMALL:-} ]] || "$PYTHON" -c 'import torchao' 2>/dev/null; then
    train train_fp8 40 --set zero.stage=1 --set training.fp8=true --only deepspeed
fi
train train_zero2 30 --set zero.stage=2 --only deepspeed
train train_plain 35 --only plain
part memory 30 "$PYTHON" launch/plan.py --config "$memory" "${sized[@]}" --measure --json "$OUT/memory.json"
part memory_distill 35 "$PYTHON" launch/plan.py --config "$distill" "${distilled[@]}" --measure --json "$OUT/memory_distill.json"
"$PYTHON" launch/check_goals.py "$OUT" --charts "$OUT"
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi
