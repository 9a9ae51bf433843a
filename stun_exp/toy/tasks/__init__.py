"""The toy benchmarks as lm-evaluation-harness tasks: one YAML each, their items in `data/`."""
