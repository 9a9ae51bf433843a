#!/usr/bin/env bash
# Trains toys with different numbers of experts, one world, recipe and budget: toys/ladder_8, toys/ladder_32 ...
#   scripts/train_ladder.sh 8 32 128
# They begin with one dense model, which is trained once. A training that was stopped goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
dense=toys/training/dense.pt
for experts in "${@:?how many experts? for instance 8 32 128}"; do
    work=toys/training/ladder_$experts
    mkdir -p "$work"
    [ -e "$dense" ] && cp --no-clobber "$dense" "$work/phase1.pt"
    .venv/bin/python -m scripts.train_toy --model "ladder_$experts" --work "$work" --out "toys/ladder_$experts"
    cp --no-clobber "$work/phase1.pt" "$dense"
done
