#!/usr/bin/env bash
# Measures everything that docs/performance.md wants from one GPU: the Triton kernels against their references, each
# operation by every implementation, their tiles, training, distillation, sampling, resuming. A folder gets tables, JSON,
# charts, and which goals are met.
#
#   bash launch/measure.sh runs/measured        # on a GPU of 80 GB or more; what fits into 570 s
#   bash launch/measure.sh runs/measured "" train_fp8 train_plain            # these parts alone
#   SMALL=1 bash launch/measure.sh runs/tried   # the same commands on a small model, anywhere
#   bash launch/measure.sh /tmp/measured OUT/measured.tgz   # packs what is there into one file after each part
#
# Kernels that were compiled ahead (python -m tests.kernels.compile_ahead .triton) are found in .triton.
# LIMIT=300 makes it 300 s: parts that would begin later are named and left out. On a machine without a network bring the
# wheels that launch/wheels.sh collects; this checkout need not be installed. Parts whose libraries are missing are left
# out.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
OUT=${1:?usage: bash launch/measure.sh FOLDER [ARCHIVE [PART...]]} ARCHIVE=${2:-}
CHOSEN=("${@:3}")
PYTHON=${PYTHON:-.venv/bin/python}
# The most important first.
PARTS=(tests kernels tiles train_full train_eager memory resume sample distill train_fp8 train_fp8_rows train_plain train_zero2 memory_distill)
for name in "${CHOSEN[@]}"; do
    [[ " ${PARTS[*]} " == *" $name "* ]] || { echo "$name: no part; there are ${PARTS[*]}" >&2; exit 1; }
done
gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader,nounits 2>/dev/null | head -n 1; }
has() { "$PYTHON" -c "import importlib.util as u; exit(u.find_spec('$1') is None)" 2>/dev/null; }

full=configs/2p7b.json distill=configs/distill_2p7b.json memory=configs/single_gpu.json batch=30 rounds=5
sized=(--set training.global_batch=8 --set training.micro_batch=8) other=(--batches 4) distilled=("${sized[@]}") parts=(--no-parts)
chosen='bfloat16 or padding or one_modulation or compilation' scale=1 lengths=(128 64)
if [[ -n ${SMALL:-} ]]; then
    full=configs/tiny.json distill=configs/distill_tiny.json memory=configs/tiny.json batch=4 rounds=1
    parts=() chosen='swiglu and bfloat16' scale=4 lengths=(24 12) # a CPU is slow
elif [[ ! $(gpu memory.total) =~ ^[0-9]+$ ]]; then
    echo "no GPU here (nvidia-smi lists none); SMALL=1 runs the same commands on a small model" >&2
    exit 1
elif (($(gpu memory.total) < 130000)); then
    # Four roles of 2.4 B parameters do not fit: take the largest model for one GPU, together with its parts.
    parts=() distilled+=(--set "model=$("$PYTHON" -c "import json; from audiox_trainer.trainer.core.config_reader import read_config; print(json.dumps(read_config('$memory')['model']))")")
fi
if ! "$PYTHON" -c 'import audiox_trainer' 2>/dev/null; then # this checkout under the name of its package
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    mkdir "$site/audiox_trainer"
    ln -s "$PWD"/{configs,kernels,launch,models,trainer} "$site/audiox_trainer/"
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
[[ ! -d .triton ]] || export TRITON_CACHE_DIR=$PWD/.triton
mkdir -p "$OUT" || exit
BEGIN=$SECONDS DUE=0 LIMIT=$((${LIMIT:-570} * scale))
failed=() left=()

pack() { # everything so far, into a file that is never half written
    [[ -z $ARCHIVE ]] || { tar -czf "$ARCHIVE.partial" -C "$OUT" . && mv "$ARCHIVE.partial" "$ARCHIVE"; }
}

part() {  # name, seconds, libraries, command: it may also use the time that earlier ones have left
    local name=$1 seconds=$((scale * $2)) libraries=$3 begin=$SECONDS limit library
    shift 3
    [[ ${#CHOSEN[@]} -eq 0 || " ${CHOSEN[*]} " == *" $name "* ]] || return 0
    rm -f "$OUT/$name".{json,txt,log,svg} # of an earlier run
    for library in $libraries; do
        has "$library" || { echo "-- $name: left out, it needs $library"; return 0; }
    done
    if ((DUE + seconds > LIMIT)); then
        left+=("$name")
        return 0
    fi
    DUE=$((DUE + seconds)) limit=$((BEGIN + DUE - SECONDS))
    if timeout -k 5 "$limit" "$@" >"$OUT/$name.txt" 2>"$OUT/$name.log"; then
        echo "-- $name: $((SECONDS - begin)) s"
    else
        failed+=("$name")
        echo "-- $name: failed after $((SECONDS - begin)) of $limit s; the end of $OUT/$name.log:"
        tail -n 5 "$OUT/$name.log"
    fi
    if [[ $name == tests || $name == resume ]]; then
        tail -n 3 "$OUT/$name.txt"
    else
        grep -vE '^(\[|MA |CPU Virt|begin|before|after|end) *' "$OUT/$name.txt" | tail -n 60
    fi
    pack
}

bench() {  # name, seconds, libraries, arguments of launch/bench.py
    local name=$1 seconds=$2 libraries=$3
    shift 3
    part "$name" "$seconds" "$libraries" "$PYTHON" launch/bench.py "$@" --rounds "$rounds" --out "$OUT/$name.json"
}

train() {  # name, seconds, libraries, arguments: a step of one micro-batch, with the operations that were fastest
    local name=$1 seconds=$2 libraries=$3 table=()
    shift 3
    [[ ! -f $OUT/kernels.json ]] || table=(--set "kernels.benchmark_file=$OUT/kernels.json")
    bench "$name" "$seconds" "deepspeed $libraries" train --config "$full" "${sized[@]}" "${table[@]}" "$@"
}

# A part that hangs takes no time from later ones. On a GPU the parts spend theirs on importing (12 s each) and compiling
# (which later ones find cached), not on the measured steps.
part tests 45 pytest "$PYTHON" -m pytest -q tests/kernels/test_triton.py -m 'not long' -k "$chosen" -p no:cacheprovider
bench kernels 110 "" kernels --config "$full" --batch "$batch"
[[ -n ${SMALL:-} ]] || bench tiles 60 "" tiles --config "$full" --batch "$batch"
train train_full 95 "" --set zero.stage=1 --only deepspeed "${other[@]}" --profile
train train_eager 35 "" --set zero.stage=1 --only deepspeed --set training.compile=false --profile
part memory 30 deepspeed "$PYTHON" launch/plan.py --config "$memory" "${sized[@]}" --measure --json "$OUT/memory.json"
part resume 45 "pytest deepspeed streaming" "$PYTHON" -m pytest -q tests/gpu/test_resumed_run.py -p no:cacheprovider
bench sample 45 "" sample --config "$full"
bench distill 75 deepspeed distill --config "$distill" "${distilled[@]}" "${parts[@]}" --text-lengths "${lengths[@]}"
train train_fp8 60 torchao --set zero.stage=1 --set training.fp8=true --only deepspeed
train train_fp8_rows 40 torchao --set zero.stage=1 --set training.fp8=true --set training.fp8_rows=true --only deepspeed
train train_plain 35 "" --only plain
train train_zero2 30 "" --set zero.stage=2 --only deepspeed
part memory_distill 35 deepspeed "$PYTHON" launch/plan.py --config "$distill" "${distilled[@]}" --measure --json "$OUT/memory_distill.json"
"$PYTHON" launch/check_goals.py "$OUT" --charts "$OUT" | tee "$OUT/goals.txt"
pack
if ((${#left[@]})); then
    echo "no time was left for these: bash launch/measure.sh $OUT '$ARCHIVE' ${left[*]}"
fi
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi
