# shellcheck shell=bash
# Shared by the batch scripts in this folder, which source it. Submit from the root of the repository.
#
# Variables that a submission may set (OUTPUT=runs/a sbatch ..., or sbatch --export=ALL,OUTPUT=runs/a ...):
#   OUTPUT        folder of the run
#   PYTHON        the interpreter (default: .venv/bin/python if there is one, else python)
#   PREFLIGHT     options of launch/preflight.py, e.g. "--memory 75 --bandwidth 200"; "no" leaves it out
#   MAX_RETRIES   starts in a row that save nothing new before a job gives up (default 5)
#   WAIT          seconds that the other ranks have to leave once one has ended (default 15)
#   MASTER_ADDR   where the ranks meet (default: the first node)

set -uo pipefail
cd "$SLURM_SUBMIT_DIR" || exit 1
if [ -n "${CONFIG:-}" ] && [ ! -f "$CONFIG" ]; then # before the check of nodes
  echo "error: there is no configuration $CONFIG in $PWD" && exit 1
fi
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python)}
NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr '\n' ' ')
MASTER_ADDR=${MASTER_ADDR:-${NODES%% *}}
# Every launch has its own port, because the former one may still be closing; below those that systems assign.
MASTER_PORT=$((10000 + (SLURM_JOB_ID * 97 + ${SLURM_RESTART_COUNT:-0} * 13) % 20000))
export NODES MASTER_ADDR PYTHONUNBUFFERED=1 SLURM_EXIT_ERROR=80 # srun's own code, none of trainer/core/cli.py
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

LIMIT_NEAR=
MARGIN=45 # seconds before the limit after which nothing is waited for
ASK=USR2 # the signal that asks a rank to stop
trap 'LIMIT_NEAR=yes' USR2 # from Slurm before the time limit, or from a person: scancel --batch --signal=USR2 JOB

say() { echo "[$(date '+%F %T')] job $SLURM_JOB_ID: $*"; }
say "start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_NTASKS tasks of $NODES"

next_port() { # a free port on this node, the first
  export MASTER_PORT=$((MASTER_PORT + 1))
  while (: </dev/tcp/127.0.0.1/$MASTER_PORT) 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
}

ranks() { # COMMAND...: runs on every task; returns the code of the first rank that needs a person, else the highest or srun's
  next_port
  export FIRST=$OUTPUT/ended # made by the first rank that fails
  rm -rf "$FIRST"
  srun --kill-on-bad-exit=0 --wait="${WAIT:-15}" --distribution=block --label \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" launch/slurm/rank.sh "$PYTHON" "$@" &
  local pid=$! told='' end='' code=0
  while kill -0 $pid 2>/dev/null; do
    if [ -z "$LIMIT_NEAR" ]; then
      wait $pid # until it ends, or until the limit is near
    else # more than once: a rank that is still starting does not listen yet
      if [ -z "$told" ]; then
        say "asked to stop before the time limit: the ranks save what they have and leave"
        told=yes end=$(limit)
      fi
      scancel --signal="$ASK" "$SLURM_JOB_ID" 2>/dev/null
      # Slurm does not requeue a job that it ends at the limit itself.
      [ "$(date +%s)" -lt $((end - MARGIN)) ] || again 75 "not all ranks have left in time"
      sleep 2
    fi
  done
  wait $pid || code=$?
  ls "$OUTPUT" >/dev/null 2>&1 # a network file system may still believe that there is none
  case $code:$(cat "$FIRST/code" 2>/dev/null) in
    0:*) return 0 ;;
    *:1 | *:2 | *:76 | *:77 | *:79 | *:81) code=$(cat "$FIRST/code") ;;
  esac
  return "$code"
}

limit() { # when the time limit ends the job, in seconds of `date +%s`
  local end
  end=$(squeue -h -j "$SLURM_JOB_ID" -o %e 2>/dev/null)
  { [ -n "$end" ] && date -d "$end" +%s 2>/dev/null; } || echo 9999999999 # there is none
}

work() { # COMMAND...: returns when it is done. Ranks that were lost are started again here; all else ends the job
  local code
  while :; do
    count_start "$(basename "$1" .py)"
    check_nodes "$@"
    [ -z "$LIMIT_NEAR" ] || again 75 "the time limit is too near to start"
    ranks "$@"
    code=$?
    [ $code = 0 ] && return
    if [ -n "$LIMIT_NEAR" ] || ! lost $code; then leave $code; fi
    say "a rank was lost (code $code, the lines above name it); starts again on the same nodes"
  done
}

lost() { # CODE: hung, or 128 + the number of the signal that ended a rank
  [ "$1" = 78 ] || { [ "$1" -gt 128 ] && [ "$1" -le 192 ]; }
}

leave() { # CODE: ends the job, or requeues it if another start may succeed; see docs/cluster.md
  case $1 in
    75) again "$1" "stopped as requested, and saved" ;;
    1) say "failed: fix what the sentence after 'error:' says, then submit again" ;;
    2) say "failed: the command line is wrong" ;;
    76 | 81) say "a node failed a check: see the line above, and submit again without it: sbatch --exclude=NODE ..." ;;
    77) say "data or checkpoints are damaged: launch/verify.py lists what; restore it, then submit again" ;;
    79) say "diverged: see the line above" ;;
    *)
      if lost "$1"; then
        again "$1" "${LIMIT_NEAR:+stopped before the time limit: }a rank ended with code $1"
      fi
      again "$1" "Slurm could not start the ranks (code $1); is a node gone?"
      ;;
  esac
  say "ends with code $1 and is not requeued"
  exit "$1"
}

again() { # CODE, WHY
  say "$2; requeues itself and will resume from the last checkpoint"
  scontrol requeue "$SLURM_JOB_ID" && exit "$1"
  say "Slurm does not requeue it: submit it again by the same command"
  exit "$1"
}

count_start() { # WORK: gives up after MAX_RETRIES starts in a row that saved nothing new
  local here count=0 before='' limit=${MAX_RETRIES:-5} file=$OUTPUT/$1.starts
  mkdir -p "$OUTPUT" || exit 1
  here="$SLURM_JOB_ID $(progress | cksum | tr ' ' -)"
  [ -f "$file" ] && read -r count before <"$file"
  if [ -n "$before" ] && [ "${before%% *}" != "$SLURM_JOB_ID" ] &&
    squeue -h -t RUNNING -j "${before%% *}" 2>/dev/null | grep -q .; then
    say "job ${before%% *} is running in $OUTPUT: cancel that one first, or give another OUTPUT"
    exit 1
  fi
  [ "$before" = "$here" ] || count=0
  if [ "$count" -ge "$limit" ]; then
    say "gives up: $count starts in a row saved nothing new; see the lines above. What was saved before is intact"
    exit 1
  fi
  echo "$((count + 1)) $here" >"$file"
  [ "$count" = 0 ] || say "attempt $((count + 1)) of at most $limit from the same point"
}

progress() { # what has been saved: which checkpoint is the last, which finished files are in the folder that a script names
  cat "$OUTPUT/latest.json" 2>/dev/null
  case ${KEPT:-} in
    '') ;;
    *://*) date +%F ;; # a bucket is not listed: so many starts per day
    *) find "$KEPT" \( -name compiled -o -name temporary -o -name '.?*' \) -prune -o -type f -print 2>/dev/null | sort ;;
  esac
}

check_nodes() { # COMMAND...: its configuration says what a node must have
  [ "${PREFLIGHT:-}" = no ] && return
  # shellcheck disable=SC2086  # several options
  ranks launch/preflight.py --output "$OUTPUT" ${PREFLIGHT:-} --of "$@" || leave $?
}
