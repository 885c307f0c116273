# The body of a job that goes on where it was stopped: runs `adrpo-scale "$@"` on the nodes of the job,
# and requeues the job after time limits, preemption and dead nodes. Sourced by train.sbatch,
# sweep.sbatch, evaluate.sbatch and prepare.sbatch, whose trap sets `stopping`.
# shellcheck shell=bash

: "${stopping:=0}"
# shellcheck source=/dev/null
[[ -e slurm/site.env ]] && source slurm/site.env

# The first element's job id is that of the array: Slurm would act on all elements.
job=$SLURM_JOB_ID
[[ -n ${SLURM_ARRAY_TASK_ID:-} ]] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
# True where Slurm has preempted the job and has not requeued it by itself.
is_preempted() {
    [[ $(fact JobState) != RUNNING && ! $(fact PreemptTime) =~ ^(None)?$ ]] &&
        [[ $(fact Restarts) == "$restarts" ]]
}
fact() { scontrol --oneliner show job "$job" | grep -oP "(?<= $1=)\S+"; }
restarts=${SLURM_RESTART_COUNT:-0} # unset in the first start
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
cpus=$(tr , '\n' <<<"$SLURM_JOB_CPUS_PER_NODE" | sed 's/(.*//' | sort -n | head -n 1)
export ADRPO_NODES=$hosts MASTER_ADDR=${hosts%%,*}
export MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + restarts) % 12000))
# Seals the messages of the ranks' first meeting: their port is open to the whole network.
ADRPO_SECRET=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export ADRPO_SECRET
export ADRPO_PROCESSES=${ADRPO_PROCESSES:-${SLURM_GPUS_ON_NODE:-0}}
if ((ADRPO_PROCESSES == 0)); then
    echo "no GPU in this job: add --gpus-per-node=8, or ADRPO_PROCESSES=N for N CPU processes" >&2
    exit 2
fi

# --- the environment of the ranks -----------------------------------------------------------------
scratch=${TMPDIR:-/tmp}/adrpo-$(id -un)
# Node-local caches of compiled kernels: their many small files are slow on a shared filesystem, and
# ranks of different nodes would wait for each other's locks.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor}
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$scratch/cuda}
# Compute nodes have no internet: without this, loading a model waits for a connection's time-out.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} HF_DATASETS_OFFLINE=${HF_DATASETS_OFFLINE:-1}
# Otherwise lines reach the log only when a buffer of 8 kB is full.
export PYTHONUNBUFFERED=1
# A6000s have no NVLink switch. Direct copies between GPUs of one host bridge are fast; across
# sockets they pass through host memory, and on some boards they hang.
export NCCL_P2P_LEVEL=${NCCL_P2P_LEVEL:-PHB}
# Rerouting around a dead link takes longer than NCCL's default time-out (18: 4 s).
export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-22}
# Completions differ in length: with fixed segments memory fragments, and 48 GB run out early.
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}

# --- the step -------------------------------------------------------------------------------------
arguments=("${@//%a/${SLURM_ARRAY_TASK_ID:-%a}}")
jobs=${ADRPO_RUNS:-runs}/.jobs
accidents=$jobs/$SLURM_JOB_ID.accidents
export ADRPO_EXITS=$jobs/$SLURM_JOB_ID-$restarts # a file per node: srun knows only the highest code
mkdir -p "$ADRPO_EXITS" || exit 2
echo "== job $job, restart $restarts, $(date '+%F %T'): $SLURM_JOB_NUM_NODES nodes" \
    "($SLURM_JOB_NODELIST) x $ADRPO_PROCESSES processes: ${arguments[*]}"
# With --gres on the command line, Slurm would still apply this file's --gpus-per-node to the step.
unset SLURM_GPUS_PER_NODE
# --cpus-per-task: since Slurm 22.05 srun does not inherit it. --kill-on-bad-exit=0: a rank that
# fails must not kill others that are saving; node.sh ends them in time. --wait: a node that is done
# must not kill rank 0 while it prints its summary.
patience=${ADRPO_PATIENCE:-60}
everywhere=(--nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
srun "${everywhere[@]}" --cpus-per-task="$cpus" --kill-on-bad-exit=0 --wait=$((patience + 600)) \
    launchers/node.sh -m adrpo_scale "${arguments[@]}" &
step=$! beat=0
while kill -0 "$step" 2>/dev/null; do
    # Repeated, because srun forwards no signal while it is starting its tasks.
    ((stopping && beat % 10 == 0)) && kill -USR1 "$step"
    # Preemption by CANCEL without grace time kills this script together with the ranks: it can
    # requeue the job only while they save.
    ((stopping && beat++ == 0)) && is_preempted && scontrol requeue "$job"
    sleep 0.5 &
    wait $!
done
wait "$step"
code=$?
stated=$(cat "$ADRPO_EXITS"/* 2>/dev/null | sort -n | tr '\n' ' ')
rm -rf "$ADRPO_EXITS"
rmdir "$jobs" 2>/dev/null # fails while another job uses it

# --- what now -------------------------------------------------------------------------------------
((code == 0)) && rm -f "$accidents" && echo "== done" && exit 0
# A process that failed by itself (codes 1 to 84) decides over those that were killed, hung or lost
# another process. Without any stated code, srun did not start the step or did not see it end.
if [[ -z $stated ]]; then
    echo "== srun failed (code $code)"
    code=86
elif ((${stated%% *} < 85)); then
    code=${stated%% *}
else
    code=$(awk '{ print $NF }' <<<"$stated")
fi
# Asks Slurm for the job's state before a requeue: a cancelled job must not come back, and a job
# that Slurm has requeued itself must not be requeued twice.
ask_slurm() {
    until state=$(fact JobState); do sleep 30; done # the controller may be restarting
    if [[ $state == RUNNING ]]; then
        return
    elif [[ $(fact Restarts) != "$restarts" ]]; then
        echo "== code $code: preempted, or a node died; Slurm has requeued the job" && exit "$code"
    elif ! is_preempted && [[ $(fact Reason) != TimeLimit ]]; then
        echo "== code $code: cancelled, not requeued" && exit "$code"
    fi
}
ask_slurm
# While Slurm has not noticed a dead node, it would give the job the same node again. Once it has, it
# ends this script and requeues the job by itself.
if [[ $code == 86 || $code == 4 ]] && ! timeout 60 srun --overlap "${everywhere[@]}" true; then
    echo "== code $code: a node does not answer; waiting for Slurm to notice"
    code=86
    sleep "${ADRPO_NODE_SECONDS:-600}" &
    wait $!
fi
case $code in
    85) why="asked to stop, or a rank hung" ;;
    86) why="processes lost another one" ;;
    129 | 13? | 14? | 15?) why="a process was killed by signal $((code - 128))" ;;
    *) echo "== code $code: not requeued; fix the error above and submit again" && exit "$code" ;;
esac
# Three starts in a row that end within 10 minutes are a fault, not bad luck: the job is not requeued.
# (A run that has begun counts its own starts without progress: limits.max_stalled_lives.)
if ((code == 85 || SECONDS > 600)); then
    rm -f "$accidents"
else
    mkdir -p "$jobs" && echo "$code" >>"$accidents"
    if (($(wc -l <"$accidents") >= 3)); then
        rm -f "$accidents"
        echo "== code $code: three starts in a row were over at once; not requeued" && exit "$code"
    fi
fi
echo "== code $code, $why: requeue"
ask_slurm
# The requeue ends this script, often before scontrol has answered.
until scontrol requeue "$job"; do
    if [[ $(fact Requeue) == 0 ]]; then
        echo "== requeue is not allowed: submit the same again, or a chain of jobs, see docs/guide/cluster.md" >&2
        break
    fi
    sleep 30 &
    wait $!
    ask_slurm
done
exit "$code"
