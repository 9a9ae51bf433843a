#!/usr/bin/env bash
# Runs a pack, or goes on with it where it was interrupted, and reports on it: reproduce.sh PACK [KEY=VALUE ...]
# RUNS and RESULTS, if set, are the folders that its points and its report are put under, in place of runs and results.
set -uo pipefail
cd "$(dirname "$0")/.."
command -v stun > /dev/null || PATH="$PWD/.venv/bin:$PATH"
pack=$1 runs=${RUNS:-runs}/$1 results=${RESULTS:-results}/$1
shift
stun -m "experiment=$pack" "hydra.sweep.dir=$runs" "$@"
code=$?
[ "$code" = 2 ] && exit 2  # a mistake in the command: nothing was run
stun-report "$runs" --out "$results" && exit "$code"
