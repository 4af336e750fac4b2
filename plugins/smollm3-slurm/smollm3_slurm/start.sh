# The run is planned. Each start of this job begins it, or continues it from its newest checkpoint.
run={{run}}
export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_PORT={{port}}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
stopped="$run/launcher/stopped"
state() { ls -1 "$run/checkpoints" "$run/trained.json" "$run/report.json" 2>/dev/null; }
before="$(state)"
rm -f "$stopped"

# Each task is one process. One that stopped on request saved its state and did not fail, so its code is kept in a file:
# srun would end the other tasks, which may still be writing.
process='
  stopped=$1; shift
  export WORLD_SIZE=$SLURM_NTASKS RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
  "$@" & process=$!
  trap "again=1; kill -TERM $process 2>/dev/null" TERM
  trap "again=1; kill -USR1 $process 2>/dev/null" USR1
  again=1
  while [ -n "$again" ]; do again=; wait $process; code=$?; done
  case $code in 75|138|143) echo $code > "$stopped"; exit 0;; esac
  exit $code'
{{srun}} bash -c "$process" process "$stopped" \
  {{command}} &
step=$!
trap 'again=1; kill -TERM $step 2>/dev/null' TERM
trap 'again=1; kill -USR1 $step 2>/dev/null' USR1
again=1
while [ -n "$again" ]; do again=; wait $step; code=$?; done
[ -s "$stopped" ] && code="$(cat "$stopped")"

# 138: SIGUSR1, which Slurm sends before the time limit; 75: train.max_time; 143: SIGTERM, of a preemption or scancel.
preempted() { scontrol show job "$SLURM_JOB_ID" | grep -Eq 'PreemptTime=[0-9]'; }
if [ {{requeue}} = yes ] && { [ "$code" = 138 ] || [ "$code" = 75 ] || { [ "$code" = 143 ] && preempted; }; }; then
  if [ "$(state)" = "$before" ]; then
    echo "the job is not requeued: no new step was saved since it began" >&2
  elif scontrol requeue "$SLURM_JOB_ID"; then
    echo "the job is requeued and will continue the run" >&2
    exit 0
  fi
fi
exit "$code"
