"""The bundled toy models: a small synthetic world, models trained on it, and benchmarks about it."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
MODELS = {
    "toy_moe": WEIGHTS,
    "toy_arctic": Path(__file__).parent / "weights_arctic",
    "toy_upcycled": Path(__file__).parent / "weights_upcycled",
    "toy_dense": Path(__file__).parent / "weights_dense",
}
TASKS = Path(__file__).parent / "tasks"
