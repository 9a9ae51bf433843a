"""What an evaluation is: benchmarks that can be made ready before anything is pruned."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stun_exp.evaluation.benchmarks import PreparedBenchmarks
    from stun_exp.evaluation.tasks import Definition


class Evaluation(Protocol):
    """The benchmarks of a run."""

    @property
    def baseline(self) -> bool:
        """Whether the unpruned model is measured too."""
        ...

    def definitions(self) -> "list[Definition]":
        """What the tasks of all benchmarks say of themselves; ValueError if there is no such task."""
        ...

    def prepare(self) -> "PreparedBenchmarks":
        """The benchmarks with their data.

        ValueError if a backend is not installed, FileNotFoundError for data that is neither cached nor reachable.
        """
        ...
