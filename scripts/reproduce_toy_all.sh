#!/usr/bin/env bash
# Runs the twin of every pack on the bundled model, points side by side, and reports on each: reproduce_toy_all.sh
# [KEY=VALUE ...]. Killed and started again, it goes on where it was. A pack that fails does not stop the others; it is
# named at the end, and the exit code is then 1. RUNS and RESULTS: see reproduce.sh.
set -uo pipefail
cd "$(dirname "$0")/.."
trap 'exit 130' INT TERM
failed=()
for file in conf/experiment/toy/*.yaml; do
  pack=toy/$(basename "$file" .yaml)
  echo "== $pack"
  scripts/reproduce.sh "$pack" hydra/launcher=joblib "$@" || failed+=("$pack")
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
