#!/usr/bin/env bash
# Runs hmtl_jax on a Cloud TPU, on all of its hosts. Needs gcloud, logged in.
#
#   export NAME=faces ZONE=us-east5-b TYPE=v6e-16 SPOT=1
#   launch/tpu_vm.sh create
#   launch/tpu_vm.sh install      # this commit, Python and packages
#   launch/tpu_vm.sh run --config=configs/affectnet_mae_lbp.py --workdir=/mnt/runs/a1
#   launch/tpu_vm.sh status       # its state, and the end of the log of host 0
#   launch/tpu_vm.sh resume --config=... --workdir=...     # run, after making a lost TPU again
#   launch/tpu_vm.sh delete
#
#   --dry_run   print the gcloud commands and run nothing
#
# Variables: NAME, ZONE and TYPE; VERSION, the software on the hosts (default: the one for TYPE); PROJECT
# (default: that of gcloud); SPOT=1 for a TPU that may be taken away. Arguments of run and resume are those
# of launch/local.sh. The workdir must be on a disk that all hosts see and that outlives them, such as a
# mounted bucket: then the same command, given again, goes on from the last checkpoint. A run goes on when
# this shell ends.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { # status, sentence
    printf 'launch/tpu_vm.sh: %s\n' "$2" >&2
    exit "$1"
}

perform() { # a command; in a dry run, prints it as a line that a shell reads back
    if [[ -z $dry_run ]]; then
        "$@"
        return
    fi
    local line
    line=$(printf '%q ' "$@")
    printf '%s\n' "${line% }"
}

gcloud_tpu() { # arguments
    perform gcloud compute tpus tpu-vm "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

on_all_hosts() { # command line for their shell
    gcloud_tpu ssh "$NAME" --worker=all --command="$1"
}

version_for() { # TPU type
    case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail 2 "no VERSION is known for TYPE=$1; set VERSION." ;;
    esac
}

create() {
    [[ ${TYPE:-} ]] || fail 2 "set TYPE, the kind of TPU, such as TYPE=v6e-16."
    local version
    version=${VERSION:-$(version_for "$TYPE")} || exit
    gcloud_tpu create "$NAME" --accelerator-type="$TYPE" --version="$version" ${SPOT:+--spot}
}

install() {
    local jax code=hmtl_jax-$NAME.tar.gz
    jax=$(sed -n 's/^jax\([<>=][^ ]*\).*/jax[tpu]\1/p' requirements.txt)
    perform git archive --format=tar.gz --output="$code" HEAD # what is committed, and nothing else
    gcloud_tpu scp "$code" "$NAME:hmtl_jax.tar.gz" --worker=all
    perform rm "$code"
    # The hosts' own Python is 3.10 on some versions; setup.sh ends with 3 where none is new enough.
    on_all_hosts "set -e
mkdir -p hmtl_jax
cd hmtl_jax
find . -mindepth 1 -maxdepth 1 ! -name .venv ! -name runs ! -name data -exec rm -rf {} +
tar -xzf ../hmtl_jax.tar.gz
launch/setup.sh || {
    test \$? = 3
    sudo add-apt-repository -y ppa:deadsnakes/ppa
    sudo apt-get install -y python3.13 python3.13-venv
    launch/setup.sh
}
.venv/bin/python -m pip install -qq '$jax'"
}

run() { # arguments of launch/local.sh
    on_all_hosts "cd hmtl_jax || exit
if kill -0 \"\$(cat run.pid)\" 2>/dev/null; then
    echo 'a run is going on here already'
    exit 1
fi
setsid launch/local.sh $(printf '%q ' "$@")>>run.log 2>&1 </dev/null &
echo \$! >run.pid"
}

resume() { # arguments of launch/local.sh
    local state=''
    if [[ $dry_run ]]; then
        gcloud_tpu describe "$NAME" --format='value(state)'
        echo '# if there is none (one that was preempted is deleted first):'
    else
        state=$(gcloud_tpu describe "$NAME" --format='value(state)' 2>/dev/null) || true
    fi
    case $state in
    READY) ;;
    '')
        create
        install
        ;;
    PREEMPTED | TERMINATED)
        gcloud_tpu delete "$NAME" --quiet
        create
        install
        ;;
    *) fail 1 "$NAME is $state; wait until it is READY, or delete it." ;;
    esac
    [[ -z $dry_run ]] || echo '# then, or if it is READY:'
    run "$@"
}

status() {
    gcloud_tpu describe "$NAME" --format='value(state)'
    gcloud_tpu ssh "$NAME" --worker=0 --command='tail -n 20 hmtl_jax/run.log'
}

delete() {
    gcloud_tpu delete "$NAME"
}

dry_run='' action='' passed=()
while (($#)); do
    case $1 in
    -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit
        ;;
    --dry_run) dry_run=yes ;;
    --)
        passed+=("$@")
        break
        ;;
    *) if [[ $action ]]; then passed+=("$1"); else action=$1; fi ;;
    esac
    shift
done
case $action in
run | resume)
    ((${#passed[@]})) || fail 2 "$action needs the recipe and the workdir: --config=... --workdir=..."
    launch/local.sh --dry_run "${passed[@]}" >/dev/null || exit
    ;;
create | install | status | delete)
    ((${#passed[@]} == 0)) || fail 2 "$action takes no ${passed[0]}; see --help."
    ;;
'') fail 2 "say what to do: create, install, run, resume, status or delete; see --help." ;;
*) fail 2 "cannot $action; known are create, install, run, resume, status and delete." ;;
esac
[[ ${NAME:-} && ${ZONE:-} ]] || fail 2 "set NAME and ZONE of the TPU; see --help."
if [[ -z $dry_run ]] && ! command -v gcloud >/dev/null; then
    fail 1 "gcloud is not here; install the Google Cloud CLI and log in."
fi
"$action" ${passed[@]+"${passed[@]}"}
