"""Which model to prune: the bundled toy, a local folder or a hub repository."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stun_exp.component import Component
from stun_exp.toy import WEIGHTS

if TYPE_CHECKING:
    import torch

    from stun_exp.checkpoint import Checkpoint

BUNDLED = "bundled:"


class Model(Component):
    """A checkpoint, and the precision and device it is worked on."""

    path: str
    """A folder, a hub repository (owner/name), or `bundled:toy_moe`."""
    revision: str | None
    """Commit or tag of a hub repository."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """Precision in which weights are read, run and written; `auto` is the one on disk."""
    device: Literal["auto", "cpu", "cuda"]
    """`auto` is the first GPU, or the CPU if there is none."""

    def open(self) -> "Checkpoint":
        """The checkpoint's config and index; no weights are read."""
        import torch

        from stun_exp.checkpoint import Checkpoint

        dtype = None if self.dtype == "auto" else getattr(torch, self.dtype)
        return Checkpoint(self.folder(), dtype)

    def folder(self) -> Path:
        """The local folder; a hub repository is fetched into the hub's own cache first."""
        local = self.path.startswith(BUNDLED) or Path(self.path).expanduser().is_dir()
        if local and self.revision is not None:
            raise ValueError(f"model.revision={self.revision} is for hub repositories; pass model.revision=null")
        if self.path.startswith(BUNDLED):
            if self.path != f"{BUNDLED}toy_moe":
                raise ValueError(f"model.path={self.path}: the only bundled model is {BUNDLED}toy_moe")
            return WEIGHTS
        if local:
            return Path(self.path).expanduser()
        if self.path.startswith((".", "/", "~")) or self.path.count("/") != 1:
            raise FileNotFoundError(f"model.path={self.path}: no such folder, nor a hub repository (owner/name)")
        from huggingface_hub import snapshot_download

        try:
            patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
            return Path(snapshot_download(self.path, revision=self.revision, allow_patterns=patterns))
        except Exception as error:  # the hub client raises a dozen unrelated classes; all mean "not to be had"
            raise FileNotFoundError(
                f"model.path={self.path}: no such folder, and not to be had from the hub "
                f"({type(error).__name__}); fetch it on a machine with a network by `hf download {self.path}`"
            ) from error

    def torch_device(self) -> "torch.device":
        """The device to run on; ValueError if a GPU is asked for and there is none."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("model.device=cuda: torch sees no GPU; use model.device=cpu")
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)
