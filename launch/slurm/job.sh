# What the batch scripts beside this file share; they source it. Submit from the root of the repository.
#
# Variables that a submission may set (sbatch --export=ALL,NAME=VALUE):
#   PYTHON        the interpreter (default: .venv/bin/python if there is one, else python)
#   OUTPUT        folder of the run
#   SET           overrides of the configuration, blank-separated: "training.steps=5000 optimizer.lr=2e-5"
#   PREFLIGHT     options of launch/preflight.py, e.g. "--memory 75 --bandwidth 200"; "no" leaves it out
#   MAX_RETRIES   starts in a row without a new checkpoint before a job gives up (default 3)
#   ONE_HOST      set where several Slurm nodes are one machine

set -uo pipefail
cd "$SLURM_SUBMIT_DIR" || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python)}
NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr '\n' ' ')
# A started-again job gets other ports, so that a process which is still ending does not hold one.
MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 20000))
MASTER_ADDR=${MASTER_ADDR:-${NODES%% *}}
export NODES MASTER_PORT MASTER_ADDR OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

say() { echo "[$(date -u +%FT%TZ)] job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $*"; }

overrides() { # --set A=B for each of SET
  for item in ${SET:-}; do printf -- '--set\n%s\n' "$item"; done
}

ranks() { # COMMAND...: on every task; its code is the worst of theirs
  srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" launch/slurm/rank.sh "$PYTHON" "$@"
}

count_start() { # gives up after MAX_RETRIES starts in a row without a new checkpoint
  mkdir -p "$OUTPUT" || exit 1
  local step count=0 at=none
  step=$(tr -dc 0-9 <"$OUTPUT/latest.json" 2>/dev/null || true)
  [ -f "$OUTPUT/starts" ] && read -r count at <"$OUTPUT/starts"
  [ "$at" = "$SLURM_JOB_ID:${step:-0}" ] || count=0
  if [ "$count" -ge "${MAX_RETRIES:-3}" ]; then
    say "gives up: $count starts in a row made no new checkpoint after step ${step:-0}; see the errors above"
    exit 1
  fi
  echo "$((count + 1)) $SLURM_JOB_ID:${step:-0}" >"$OUTPUT/starts"
}

check_nodes() {
  [ "${PREFLIGHT:-}" = no ] && return
  # shellcheck disable=SC2086  # several options
  ranks launch/preflight.py --output "$OUTPUT" ${PREFLIGHT:-} || finish $?
  MASTER_PORT=$((MASTER_PORT + 1))
}

finish() { # CODE: back into the queue if it is one to try again after, see docs/reliability.md
  case $1 in
    0) say "done" ;;
    75) again "asked to stop, and saved" ;;
    78 | 12[89] | 1[3-5][0-9]) again "ended with code $1: a rank was lost" ;; # 128 + a signal's number
    *) say "ends with code $1 and is not put back into the queue" ;;
  esac
  exit "$1"
}

again() {
  say "$1; goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
}
