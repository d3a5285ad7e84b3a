#!/usr/bin/env bash
# Runs a command, and ends with status 143 if it was told to stop (SIGTERM), however the command ends.
#
#   launch/until_stopped.sh launch/local.sh --config=... --workdir=...
#
# A training that is told to stop saves, and ends with status 0. To what starts pods and jobs that would mean
# that it is done.

set -uo pipefail
told=0
trap 'told=$((told + 1)); [[ -z ${pid:-} ]] || kill -TERM "$pid" 2>/dev/null' TERM
"$@" &
pid=$!
((told == 0)) || kill -TERM "$pid" 2>/dev/null # told before there was a pid to pass it on to
while before=$told; do
    wait "$pid"
    status=$?
    ((told == before)) && break # else the trap cut the wait short, and this is not the command's status
done
((told == 0)) || exit 143
exit "$status"
