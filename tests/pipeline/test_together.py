"""Several sparsities in one pass over the weights: each as it would be by itself."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from stun_exp.checkpoint.checkpoint import Checkpoint

Runner = Callable[..., dict[str, Any]]
SPARSITIES = (0.3, 0.45, 0.6)


def weights(run: Path) -> dict[str, str]:
    found = {f.name: sha256(f.read_bytes()).hexdigest() for f in (run / "checkpoint").glob("*.safetensors")}
    assert found
    return found


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("more", [(), ("stream=out_of_core",), ("unstructured_pruner.inputs=dense",)])
def test_each_is_as_it_would_be_alone(
    family: str, more: tuple[str, ...], runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in memory and in files; each layer is read once for all of them."""
    common = ["save=true", "expert_pruner.ratio=0.25", "stream.hidden_states_gb=0", "measure_damage=false", *more]
    alone = {s: runner(*common, f"sparsity={s}", family=family, out=tmp_path / f"{s}") for s in SPARSITIES}
    read: list[int] = []
    whole = Checkpoint.read_planned

    def counting(checkpoint: Checkpoint, index: int, plan: Any) -> Any:
        if plan is not None:
            read.append(index)
        return whole(checkpoint, index, plan)

    monkeypatch.setattr(Checkpoint, "read_planned", counting)
    runner(*common, f"sparsity=[{','.join(map(str, SPARSITIES))}]", family=family, out=tmp_path / "together")
    # A pass for each one's allocation, where no cache gives it, and one for all prunings.
    assert all(read.count(index) == len(SPARSITIES) + 1 for index in set(read))
    for s in SPARSITIES:
        folder = tmp_path / "together" / f"sparsity={s}"
        report = json.loads((folder / "report.json").read_text())
        assert weights(folder) == weights(tmp_path / f"{s}")
        for part in ("sparsity", "diagnostics", "experts", "warnings", "settings", "fingerprint"):
            assert report[part] == alone[s][part]
        passes = {name: cost["forward_passes"] for name, cost in report["cost"].items()}
        assert passes == {name: cost["forward_passes"] for name, cost in alone[s]["cost"].items()}
        assert min(cost["wall_seconds"] for cost in report["cost"].values()) >= 0
    assert not (tmp_path / "together" / "report.json").exists()


def test_what_is_finished_is_left_and_the_rest_goes_on(runner: Runner, tmp_path: Path) -> None:
    """One has its report, one was killed after two layers, one was never begun."""
    common = ["save=true", "expert_pruner.ratio=0.25"]
    for s in SPARSITIES:
        runner(*common, f"sparsity={s}", out=tmp_path / f"{s}")
    together = tmp_path / "together"
    runner(*common, f"sparsity=[{SPARSITIES[0]},{SPARSITIES[1]}]", out=together)
    killed = together / f"sparsity={SPARSITIES[1]}"
    (killed / "report.json").unlink()
    journal = (killed / "journal.jsonl").read_text().splitlines(keepends=True)
    (killed / "journal.jsonl").write_text("".join(journal[:5]))
    runner(*common, f"sparsity=[{','.join(map(str, SPARSITIES))}]", out=together)
    for s in SPARSITIES:
        assert weights(together / f"sparsity={s}") == weights(tmp_path / f"{s}")


@pytest.mark.parametrize(
    ("sparsity", "why"), [("[0.4,0.4]", "must differ"), ("[]", "one at least"), ("[0.4,0.1]", "sparsity")]
)
def test_a_wrong_list_is_answered_before_anything_runs(sparsity: str, why: str, runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        runner("expert_pruner.ratio=0.25", f"sparsity={sparsity}")
    assert not list((tmp_path / "run").iterdir())
