#!/usr/bin/env bash
# One task of srun as a rank, with torchrun's variables made of Slurm's: srun launch/slurm/rank.sh python launch/pretrain.py ...
set -uo pipefail
trap '' USR2 # a request to stop before the training listens must not kill it; job.sh repeats it
trap : TERM  # Slurm sends it to the rank as well, and this script waits for the rank's code
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
[ "$RANK" = 0 ] || export PYTHONWARNINGS=ignore # those of one rank are enough
export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
"$@"
code=$?
# The first rank that fails is the cause. The others may be killed while they wait for it, and srun returns the highest code.
[ $code = 0 ] || [ -z "${FIRST:-}" ] || { mkdir "$FIRST" && echo $code >"$FIRST/code"; } 2>/dev/null
exit $code
