#!/usr/bin/env bash
# Trains on this machine, on all its GPUs or in N processes:
#
#     launchers/local.sh configs/sd3/adrpo.toml --set seed=1
#     launchers/local.sh -n 2 configs/demo/image_adrpo.toml
#
# The script passes its arguments to `adrpo-scale train`. Ctrl-C saves and stops (exit code 85: the
# same command resumes); a second Ctrl-C ends at once.
set -u
processes=${CUDA_VISIBLE_DEVICES+$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .)}
if [[ -z $processes ]]; then
    # Without a driver nvidia-smi is missing, or lists nothing.
    processes=$(nvidia-smi --list-gpus 2>/dev/null | grep -c .)
fi
if [[ ${1:-} == -n ]]; then
    processes=${2:-}
    shift 2 2>/dev/null || shift
fi
if (($# == 0)) || [[ ! $processes =~ ^[0-9]+$ ]]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
((processes > 0)) || processes=1
# A free port, so that several runs fit on one machine.
read -ra prefix <<<"${ADRPO_PREFIX:-}"
export MASTER_PORT=${MASTER_PORT:-$(${prefix[@]+"${prefix[@]}"} "${ADRPO_PYTHON:-python}" -c \
    'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
# Seals the messages of the ranks' first meeting.
export ADRPO_SECRET=${ADRPO_SECRET:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
export MASTER_ADDR=127.0.0.1 ADRPO_NODES=localhost ADRPO_NODE=0 ADRPO_PROCESSES=$processes
exec "$(dirname "$0")/node.sh" -m adrpo_scale train "$@"
