#!/usr/bin/env bash
# Runs a command, and ends with status 143 if it was told to stop (SIGTERM), however the command ends.
#
#   launch/until_stopped.sh launch/local.sh --config=... --workdir=...
#
# A training that is told to stop saves, and ends with status 0. To what starts pods and jobs that would mean
# that it is done.

set -uo pipefail
stopped=''
"$@" &
pid=$!
trap 'stopped=yes; kill -TERM "$pid" 2>/dev/null' TERM
status=0
while kill -0 "$pid" 2>/dev/null; do # a trap cuts `wait` short
    wait "$pid" && status=0 || status=$?
done
[[ -z $stopped ]] || exit 143
exit "$status"
