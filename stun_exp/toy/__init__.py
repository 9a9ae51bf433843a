"""The bundled toy model: a small synthetic world, a model trained on it, and benchmarks about it."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
TASKS = Path(__file__).parent / "tasks"
