#!/usr/bin/env bash
# Runs a pack, or goes on with it where it was interrupted, and reports on it: reproduce.sh PACK [KEY=VALUE ...]
# toy/all is the toy version of every pack, points side by side. A pack that fails does not stop the others; it is named
# at the end, and the exit code is then 1.
# RUNS and RESULTS, if set, are the folders that points and reports are put under, in place of runs and results.
set -uo pipefail
cd "$(dirname "$0")/.."
command -v stun > /dev/null || PATH="$PWD/.venv/bin:$PATH"
toys=(conf/experiment/toy/*.yaml)
toys=("${toys[@]#conf/experiment/}")
toys=("${toys[@]%.yaml}")

reproduce() { # PACK [KEY=VALUE ...]
  local pack=$1 runs=${RUNS:-runs}/$1 code
  shift
  stun -m "experiment=$pack" "hydra.sweep.dir=$runs" "$@"
  code=$?
  [ "$code" = 2 ] && return 2 # a mistake in the command: nothing was run
  [[ " $* " == *" dry_run=true "* ]] && return "$code" # which leaves nothing to report on
  stun-report "$runs" --out "${RESULTS:-results}/$pack" && return "$code"
}

pack=${1:-}
if [ "$pack" = toy/all ]; then
  trap 'exit 130' INT TERM
  failed=()
  for toy in "${toys[@]}"; do
    echo "== $toy"
    reproduce "$toy" hydra/launcher=joblib "${@:2}" || failed+=("$toy")
  done
  [ ${#failed[@]} = 0 ] && exit
  echo "failed: ${failed[*]}" >&2
  exit 1
elif [ -f "conf/experiment/$pack.yaml" ]; then
  reproduce "$@"
else
  {
    echo "usage: scripts/reproduce.sh PACK [KEY=VALUE ...]${pack:+; there is no pack $pack}"
    echo "packs: ${toys[*]#toy/}"
    echo "toy/PACK is the toy version of one, on the bundled model; toy/all runs all of these"
  } >&2
  exit 2
fi
