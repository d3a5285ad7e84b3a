#!/usr/bin/env bash
# Runs hmtl_jax on this machine, in one process or several.
#
#   launch/local.sh --config=configs/synthetic.py --workdir=runs/demo
#   launch/local.sh --processes 2 --config=configs/synthetic.py --workdir=runs/two
#
#   --processes N    N processes that train together over loopback; the machine's GPUs are dealt out
#                    evenly. When one fails, the others are stopped. (default 1)
#   --port PORT      where process 0 coordinates (default: a free port)
#   --module MODULE  what to run (default hmtl_jax.main)
#   --python FILE    interpreter (default .venv/bin/python)
#   --dry_run        print the commands and run nothing
#
# --config, --config.x and --workdir are passed on; other flags of the program go behind `--`. Paths are
# read from the root of the repository. JAX_PLATFORMS and CUDA_VISIBLE_DEVICES are kept as they are; to
# XLA_FLAGS, LIBTPU_INIT_ARGS, GLIBC_TUNABLES and XLA_PYTHON_CLIENT_MEM_FRACTION is added what pays on the
# machine's devices (see below, each with its reason), unless you set that very flag. SIGTERM and Ctrl-C reach every process, which saves a checkpoint and ends. The same command goes on
# from there.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { # status, sentence
    printf 'launch/local.sh: %s\n' "$2" >&2
    exit "$1"
}

processes=1 port='' module=hmtl_jax.main python=.venv/bin/python dry_run='' passed=()
while (($#)); do
    case $1 in
    -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit
        ;;
    --dry_run) dry_run=yes ;;
    --processes=* | --port=* | --module=* | --python=*)
        name=${1%%=*}
        printf -v "${name#--}" %s "${1#*=}"
        ;;
    --processes | --port | --module | --python)
        (($# > 1)) || fail 2 "$1 needs a value; see --help."
        printf -v "${1#--}" %s "$2"
        shift
        ;;
    --)
        passed+=("${@:2}")
        break
        ;;
    --config | --config=* | --config.* | --workdir | --workdir=* | [!-]*) passed+=("$1") ;;
    *) fail 2 "unknown option $1; see --help (flags of the program go behind --)." ;;
    esac
    shift
done
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail 2 "--processes $processes is not a positive whole number."
[[ -z $port || $port =~ ^[1-9][0-9]*$ ]] || fail 2 "--port $port is not a port number."
if [[ -z $dry_run ]] && ! command -v "$python" >/dev/null; then
    fail 1 "there is no $python; run launch/setup.sh first, or name an interpreter with --python."
fi

# GPUs, unless JAX is kept from them; and the chips of a TPU VM.
gpus=() tpu=''
if [[ ${JAX_PLATFORMS:-} != cpu ]]; then
    indices=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd, -) || true
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES-$indices}"
    for device in "${TPU_DEVICES:-/dev}"/accel0 "${TPU_DEVICES:-/dev}"/vfio/0; do
        [[ ! -e $device ]] || tpu=yes
    done
fi

default() { # variable, separator, flag=value: is added where the variable does not have the flag
    [[ ${!1:-} == *"${3%%=*}="* ]] || export "$1=${!1:+${!1}$2}$3"
}

# A step touches gigabytes of fresh memory. Huge pages spare the page faults, which are up to a third of its
# time on a CPU (hmtl_jax.main asks for them alone; other modules do not).
default GLIBC_TUNABLES : glibc.malloc.hugetlb=1
if ((${#gpus[@]})); then
    # JAX takes three quarters of a GPU's memory, which no other program shares in a training.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
fi
if ((${#gpus[@]} > 1)) || [[ ${SLURM_NTASKS:-1} != 1 && ${#gpus[@]} -gt 0 ]]; then
    # Gradients are summed while the backward pass goes on, in few large pieces: a ViT-B has 344 MB of them.
    default XLA_FLAGS ' ' --xla_gpu_enable_latency_hiding_scheduler=true
    default XLA_FLAGS ' ' --xla_gpu_all_reduce_combine_threshold_bytes=134217728
    # With mesh.fsdp the weights of a block are gathered, and its gradients scattered, the same way.
    default XLA_FLAGS ' ' --xla_gpu_all_gather_combine_threshold_bytes=134217728
    default XLA_FLAGS ' ' --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
fi
if [[ $tpu ]]; then
    # The same for TPUs: what is summed or gathered goes on beside the products.
    default LIBTPU_INIT_ARGS ' ' --xla_tpu_enable_data_parallel_all_reduce_opt=true
    default LIBTPU_INIT_ARGS ' ' --xla_tpu_data_parallel_opt_different_sized_ops=true
    default LIBTPU_INIT_ARGS ' ' --xla_tpu_enable_async_collective_fusion=true
    default LIBTPU_INIT_ARGS ' ' --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    default LIBTPU_INIT_ARGS ' ' --xla_enable_async_all_gather=true
fi
command=("$python" -m "$module" ${passed[@]+"${passed[@]}"})

run() { # a command; in a dry run, prints it as a line that a shell reads back
    [[ $dry_run ]] || exec "$@"
    local name line=''
    for name in GLIBC_TUNABLES JAX_PLATFORMS XLA_FLAGS LIBTPU_INIT_ARGS XLA_PYTHON_CLIENT_MEM_FRACTION \
        CUDA_VISIBLE_DEVICES; do
        [[ -z ${!name+set} ]] || line+="$name=$(printf %q "${!name}") "
    done
    line+=$(printf '%q ' "$@")
    printf '%s\n' "${line% }"
}

if ((processes == 1)); then
    run "${command[@]}"
    exit
fi

# Without this every process would claim every GPU.
((${#gpus[@]} % processes == 0)) || fail 2 "$processes processes cannot share ${#gpus[@]} GPUs evenly; \
choose another --processes, or set JAX_PLATFORMS=cpu."
each=$((${#gpus[@]} / processes))

start() { # rank
    if ((each)); then
        local mine=("${gpus[@]:$1 * each:each}")
        CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${mine[*]}")
        export CUDA_VISIBLE_DEVICES
    fi
    run "${command[@]}" --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$1"
}

prefix() { # rank; it must outlive the process it reads, so it leaves signals to it
    trap '' INT TERM HUP
    local line
    while IFS= read -r line || [[ $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

if [[ $dry_run ]]; then
    port=${port:-FREE_PORT}
    for ((rank = 0; rank < processes; rank++)); do (start "$rank"); done
    exit
fi

: "${port:=$("$python" -c 'import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])')}"
pids=()
set -m # each process leads a group of its own, which holds its data workers
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT HUP
for ((rank = 0; rank < processes; rank++)); do
    if ((rank == 0)); then start 0 & else start "$rank" > >(prefix "$rank") 2>&1 & fi
    pids[rank]=$!
done

# Polled, because `wait -n` does not say which one ended before bash 5.1.
status=0 deadline=''
while ((${#pids[@]})); do
    sleep 0.2 || true
    for rank in "${!pids[@]}"; do
        if kill -0 "${pids[rank]}" 2>/dev/null; then continue; fi
        code=0
        wait "${pids[rank]}" || code=$?
        unset 'pids[rank]'
        if ((code && !status)); then
            status=$code deadline=$((SECONDS + 10))
            echo "launch/local.sh: process $rank ended with status $code; stopping the others." >&2
            kill -TERM "${pids[@]}" 2>/dev/null || true
        fi
    done
    # A process that waits in a collective for one that is gone never comes to its handler of SIGTERM.
    if [[ $deadline ]] && ((SECONDS >= deadline)); then
        for rank in "${!pids[@]}"; do kill -KILL -- "-${pids[rank]}" 2>/dev/null || true; done
    fi
done
sleep 0.2 # lets the last prefixed lines through
exit "$status"
