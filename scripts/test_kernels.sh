#!/usr/bin/env bash
# Runs the tests that compute with floating-point numbers as other processors would: PyTorch and oneDNN choose their
# kernels by the instructions that a processor has, and are told here to do without some. test_kernels.sh [TESTS ...]
#
# Two results may be compared bit for bit only if the same kernel sees the same shapes, strides and alignment: copies,
# what is read back, counts, the same code once more. Everything else needs a tolerance, with its reason beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
all=(tests/{allocation,checkpoint,expert_pruner,export,golden,models,moe,pipeline,recovery,resume,seq2seq,skipping}
  tests/{state/test_statistics_cache.py,streaming,unstructured_pruner})
kernels=(
  ""
  "ATEN_CPU_CAPABILITY=default"
  "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"
  "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41"
)
failed=0
for threads in 1 2; do
  for setting in "${kernels[@]}"; do
    echo "== ${setting:-this processor\'s own kernels}, threads: $threads"
    # shellcheck disable=SC2086
    env $setting STUN_TEST_THREADS=$threads OMP_NUM_THREADS=$threads .venv/bin/pytest -q "${@:-${all[@]}}" || failed=1
  done
done
exit $failed
