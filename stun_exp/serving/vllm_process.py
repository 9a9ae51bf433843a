"""vLLM, run by a Python of its own, and asked over pipes: it wants other versions of torch and transformers than we do.

Log-probabilities are in nats.
"""

import json
import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from stun_exp.serving import vllm_program

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # The engine in that same process: an error in it is then the last line, and not that some engine failed.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
_UNLESS_SET = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""GiB for keys and values: on a CPU it would take nearly all memory, and not start where others use some."""
_NOT_INHERITED = ("TQDM_DISABLE", "PYTHONPATH", "PYTHONHOME")
"""vLLM divides by what its progress bars count; and our modules are not those of another Python."""
SECONDS_TO_END = 30


class VLLMError(Exception):
    """The process ended with an error, which this repeats."""


@dataclass(frozen=True)
class InstalledVLLM:
    """A vLLM, and the Python that has it."""

    python: str
    version: str
    architectures: frozenset[str]

    def obstacle(self, architectures: Collection[str]) -> str | None:
        """Why it cannot serve a model of these classes (`architectures` in config.json); None if it can."""
        if any(name in self.architectures for name in architectures):
            return None
        return f"vLLM {self.version} has no {', '.join(architectures) or 'model without architectures in config.json'}"


def find_vllm(python: str, setting: str) -> InstalledVLLM:
    """The vLLM that a Python has; ValueError, which names the setting, if there is no such Python, or no vLLM in it."""
    advice = "give the Python of an environment with vLLM (.clients/vllm/bin/python by `make clients`), or null"
    if not Path(python).is_file():
        raise ValueError(f"{setting}={python}: no such file; {advice}")
    try:
        return _ask_installed(python)
    except VLLMError as error:
        raise ValueError(f"{setting}={python}: has no vLLM that runs ({error}); {advice}") from error


@cache
def _ask_installed(python: str) -> InstalledVLLM:
    with VLLMProcess(python) as process:
        found = process.ask("installed")
    return InstalledVLLM(python, found["version"], frozenset(found["architectures"]))


class VLLMProcess:
    """A process with at most one model, alive inside a `with` block; VLLMError if it ends with an error."""

    def __init__(self, python: str):
        self._errors = TemporaryFile("w+", errors="replace")  # noqa: SIM115  (open as long as the process)
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        try:
            self._process = subprocess.Popen(
                # -P: without it Python would look for every module beside the program first.
                [python, "-P", vllm_program.__file__],
                env=_UNLESS_SET | environment | _SETTINGS,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            self._errors.close()
            raise VLLMError(str(error)) from error
        self.max_length = 0
        """The longest sequence that the model takes, with what is generated."""

    def __enter__(self) -> "VLLMProcess":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=SECONDS_TO_END)  # closes its input, upon which it ends
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def load(self, folder: Path, dtype: str, **arguments: Any) -> None:
        """Loads a checkpoint in that dtype: left to choose, vLLM would run 32 bits in 16."""
        self.max_length = self.ask("load", model=str(folder.absolute()), dtype=dtype, **arguments)

    def log_probabilities(self, prompts: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """Of each prompt's tokens but the first: its log-probability, and whether none is likelier."""
        return [[(own, best) for own, best in row] for row in self.ask("log_probabilities", prompts=prompts)]

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sequence[Mapping[str, Any]]) -> list[str]:
        """What follows each prompt, sampled as vLLM's SamplingParams of the same place says."""
        texts: list[str] = self.ask("generate", prompts=prompts, sampling=sampling)
        return texts

    def seconds(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[float, float]:
        """What one token after each prompt takes, and what so many take, an end of text or not."""
        first, last = self.ask("seconds", prompts=prompts, new_tokens=new_tokens)
        return first, last

    def ask(self, question: str, **rest: Any) -> Any:
        """The answer of the program to a question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it ended before it was asked, and the empty answer says so
            print(json.dumps({"ask": question, **rest}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise VLLMError(self._last_words())
        return json.loads(answer)

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else f"it ended with status {status}"
