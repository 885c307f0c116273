#!/usr/bin/env bash
# Starts the processes of one node: one per GPU, or ADRPO_PROCESSES of them. It runs once on every
# node, started by srun in slurm/*.sbatch, or by local.sh:
#
#     srun --ntasks-per-node=1 launchers/node.sh -m adrpo_scale train configs/sd3/adrpo.toml
#
# torchrun does not serve here: it turns a rank's exit code 85 ("requeue me") into 1, and dies of
# SIGUSR1. Variables: ADRPO_PROCESSES, ADRPO_NODES (host names, separated by commas), ADRPO_NODE
# (the number of this node), MASTER_ADDR, MASTER_PORT, ADRPO_PYTHON, ADRPO_PREFIX (prefix of every
# process), ADRPO_PATIENCE (seconds that the other ranks may keep running after one has failed;
# default 60).
set -u
if (($# == 0)); then
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit 2
fi
host=$(hostname)
node=${ADRPO_NODE:-${SLURM_NODEID:-0}}
if [[ -z ${ADRPO_NODES:-} && -n ${SLURM_STEP_NODELIST:-} ]]; then # by srun alone
    ADRPO_NODES=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | paste -sd,)
    export MASTER_PORT=${MASTER_PORT:-$((20000 + (SLURM_JOB_ID * 7 + SLURM_STEP_ID) % 12000))}
fi
IFS=, read -ra hosts <<<"${ADRPO_NODES:-$host}"
processes=${ADRPO_PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
patience=${ADRPO_PATIENCE:-60}
read -ra prefix <<<"${ADRPO_PREFIX:-}"

# Before anything else: without a trap, Slurm's signal kills bash. It would also kill ranks that are
# still importing, so they begin with it ignored, and it is sent to them repeatedly.
stopping=0 interrupts=0
trap 'stopping=1' USR1 TERM HUP
trap '' PIPE # a message that nobody reads ends nothing
trap 'stopping=1 interrupts=$((interrupts + 1))' INT

export WORLD_SIZE=$((processes * ${#hosts[@]})) LOCAL_WORLD_SIZE=$processes
export ADRPO_NODES=${ADRPO_NODES:-$host} MASTER_ADDR=${MASTER_ADDR:-${hosts[0]}}
export ADRPO_LAUNCHER=node.sh # for the record of the start
if ((processes > 0)) && [[ -z ${OMP_NUM_THREADS:-} ]]; then
    # Otherwise each process would start a thread for every core of the node.
    cores=$(nproc)
    export OMP_NUM_THREADS=$((cores > processes ? cores / processes : 1))
fi
pids=()
for ((local = 0; local < processes; local++)); do
    (
        trap '' USR1 TERM INT
        export RANK=$((node * processes + local)) LOCAL_RANK=$local
        exec ${prefix[@]+"${prefix[@]}"} "${ADRPO_PYTHON:-python}" "$@"
    ) &
    pids+=($!)
done

# The first failure decides, except 86: such a rank has only lost another one.
code=0 deadline=0 beat=0
while ((${#pids[@]})); do
    for local in "${!pids[@]}"; do
        kill -0 "${pids[local]}" 2>/dev/null && continue
        wait "${pids[local]}"
        ended=$?
        unset "pids[local]"
        ((ended == 0)) && continue
        ((deadline > 0)) || deadline=$((SECONDS + patience))
        if ((code == 0 || code == 86)); then
            code=$ended
            echo "$host: rank $((node * processes + local)) ended with code $ended" >&2
        fi
    done
    ((${#pids[@]})) || break
    ((stopping && beat++ % 5 == 0)) && kill -USR1 "${pids[@]}" 2>/dev/null
    if ((interrupts > 1 || (deadline > 0 && SECONDS > deadline))); then
        kill -KILL "${pids[@]}" 2>/dev/null
    fi
    sleep 0.5 &
    wait $!
done
if [[ -n ${ADRPO_EXITS:-} ]] && ((code != 0)); then
    echo "$code" >"$ADRPO_EXITS/$node"
fi
exit "$code"
