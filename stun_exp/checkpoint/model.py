"""Which model to prune: the bundled toy, a local folder or a hub repository."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, field_validator

from stun_exp.config.component import Component
from stun_exp.data.hub import asked_once, hub_cache, why_unreachable
from stun_exp.data.missing import Missing, MissingData
from stun_exp.toy import MODELS
from stun_exp.utils.paths import expanded, is_folder

if TYPE_CHECKING:
    import torch

    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.checkpoint.checkpoint import Checkpoint

BUNDLED_PREFIX = "bundled:"
FILES = (
    *("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"),
    *("LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "COPYING*"),
)
"""What of a hub repository a run needs."""
AGAIN = ["original/*", "consolidated*"]
"""Where some repositories keep the same weights once more, in another layout."""
A = TypeVar("A", bound="Architecture")


class Model(Component):
    """A checkpoint, and the precision and device it is worked on."""

    path: str
    """A folder, a hub repository (owner/name), `bundled:toy_moe` or `bundled:toy_arctic`."""
    revision: str | None
    """Commit or tag of a hub repository."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """Precision in which weights are read and run; `auto` is the one on disk. They are written in it too, but never in
    a wider one than that on disk."""
    device: Literal["auto", "cpu", "cuda"]
    """`auto` is the first GPU, or the CPU if there is none."""
    load: Literal["full", "nf4"]
    """`nf4` runs calibration and evaluation with weights in 4 bits (bitsandbytes), experts included; pruning itself
    reads full precision."""
    trust_remote_code: bool
    """Whether code that comes with the tokenizer may be run; off unless asked for. The model's own code never is."""
    parameters: int | None = Field(ge=1)
    """Parameters of the published architecture, tied ones once; null if that is not to be checked."""
    expert_ratio: float = Field(ge=0, lt=1)
    """Share of the experts that go from this model unless `expert_pruner.ratio` is given."""
    dimensions: dict[str, Any] | None
    """What config.json says of the published architecture: `stun inspect` goes by it where the model is not at hand."""

    @field_validator("path")
    @classmethod
    def _is_somewhere(cls, path: str) -> str:
        """`path`, which is there, or may be a hub repository's name."""
        if path.startswith(BUNDLED_PREFIX) and path.removeprefix(BUNDLED_PREFIX) not in MODELS:
            raise ValueError(f"no such bundled model; there are {', '.join(BUNDLED_PREFIX + name for name in MODELS)}")
        hub = path.count("/") == 1 and not path.startswith((".", "/", "~"))
        if not (hub or path.startswith(BUNDLED_PREFIX) or is_folder(expanded(path))):
            raise ValueError("no such folder, nor a hub repository (owner/name)")
        return path

    def open(self, scratch: Path | None = None) -> "Checkpoint":
        """The checkpoint's config and index; no weights are read. Experts will lie in files in `scratch`, if given."""
        from stun_exp.checkpoint.checkpoint import Checkpoint

        return self._of_expected_size(Checkpoint(self.folder(), self._torch_dtype(), scratch))

    def written(self, folder: Path, scratch: Path | None = None) -> "Checkpoint":
        """A pruned copy, in the precision in which the model is worked on."""
        from stun_exp.checkpoint.checkpoint import Checkpoint

        return Checkpoint(folder, self._torch_dtype(), scratch)

    def architecture(self) -> "Architecture":
        """What config.json says, or the `dimensions` if that is not to be had; of a hub only JSON is fetched."""
        from stun_exp.checkpoint.architecture import Architecture

        dimensions = None
        try:
            folder = self.folder(["*.json"])
        except FileNotFoundError:
            if self.dimensions is None:
                raise
            folder, dimensions = Path(self.path), self.dimensions
        return self._of_expected_size(Architecture(folder, self._torch_dtype(), dimensions))

    def _of_expected_size(self, architecture: A) -> A:
        """The same; ValueError if it is of another size than expected, and thus another model."""
        found = architecture.num_parameters
        if self.parameters not in (None, found):
            raise ValueError(
                f"model.parameters={self.parameters}: model.path={self.path} has {found:,} parameters and not "
                f"{self.parameters:,}; pass the path of the expected model, or model.parameters=null for any"
            )
        return architecture

    def _torch_dtype(self) -> "torch.dtype | None":
        import torch

        return None if self.dtype == "auto" else getattr(torch, self.dtype)

    def folder(self, files: Sequence[str] = FILES) -> Path:
        """The local folder; of a hub repository the `files` are fetched into the hub's own cache first."""
        local = not self.is_of_hub()
        if local and self.revision is not None:
            raise ValueError(f"model.revision={self.revision} is for hub repositories; pass model.revision=null")
        if self.path.startswith(BUNDLED_PREFIX):
            return MODELS[self.path.removeprefix(BUNDLED_PREFIX)]
        if local:
            return expanded(self.path)
        from huggingface_hub import snapshot_download

        try:
            with asked_once():
                found = snapshot_download(
                    self.path, revision=self.revision, allow_patterns=list(files), ignore_patterns=AGAIN
                )
            return Path(found)
        except Exception as error:  # the hub client raises a dozen unrelated classes; all mean "not to be had"
            name = f"{self.path} ({self.revision or 'main'})"
            looked = (f"model.path={self.path} as a folder", f"{hub_cache()}/models--OWNER--NAME/snapshots")
            why = "" if why_unreachable() else f"{type(error).__name__}"
            own = "" if self.parameters else f"model.path={self.path}"  # on no card
            raise MissingData([Missing(name, "model", looked, why, own)]) from error

    def is_of_hub(self) -> bool:
        """Whether it is a repository of the hub, and neither bundled nor a folder."""
        return not (self.path.startswith(BUNDLED_PREFIX) or is_folder(expanded(self.path)))

    def torch_device(self) -> "torch.device":
        """The device to run on; ValueError if a GPU is asked for and there is none."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("model.device=cuda: torch sees no GPU; use model.device=cpu")
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)
