#!/usr/bin/env bash
# One task of srun as a rank, with torchrun's variables made of Slurm's: srun launch/slurm/rank.sh python launch/pretrain.py ...
set -euo pipefail
trap '' USR2 # a request to stop that comes before the training listens must not kill it
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
if [ -n "${ONE_HOST:-}" ]; then # several Slurm nodes that are one machine share its memory
  export LOCAL_RANK=$SLURM_PROCID LOCAL_WORLD_SIZE=$SLURM_NTASKS
else
  export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
fi
exec "$@"
