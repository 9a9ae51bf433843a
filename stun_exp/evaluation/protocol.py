"""What an evaluation is: benchmarks that can be made ready before anything is pruned."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stun_exp.evaluation.benchmarks import Prepared


class Evaluation(Protocol):
    """The benchmarks of a run."""

    @property
    def baseline(self) -> bool:
        """Whether the unpruned model is measured too."""
        ...

    def prepare(self) -> "Prepared":
        """The benchmarks with their data.

        ValueError if a backend is not installed, FileNotFoundError for data that is neither cached nor reachable.
        """
        ...
