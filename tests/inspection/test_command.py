"""`stun inspect`: what it prints, and that it takes a run's settings and nothing else."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.cli.main import main
from stun_exp.inspection import show

Stun = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stun(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Stun:
    """Runs the command in an empty folder: (exit code, what it printed, what it said on stderr)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(show, "machine", lambda: {"RAM": 100 * 10**9, "GPU": 80 * 10**9})

    def call(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stun", "inspect", *argv])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return call


def rows(printed: str) -> dict[str, str]:
    return {line[:18].strip(): line[18:] for line in printed.splitlines()}


def test_it_prints_what_the_model_is_and_what_a_run_needs(stun: Stun, published: Callable[..., Path]) -> None:
    folder = published()
    local = ["model=local", f"model.path={folder}", "model.device=cpu", "calibration=c4"]
    code, printed, said = stun(*local, "sparsity_scope=experts")
    assert (code, said) == (0, "")
    found = rows(printed)
    assert found["model"] == f"{folder}: 46,702,792,704 parameters"
    assert found["family"] == "mixtral"
    assert found["layers"] == "32, 32 with experts and 0 dense"
    assert found["experts"] == "8 a layer, 2 a token"
    assert found["on disk"] == "93.4 GB"
    assert found["scope experts"] == "45,097,156,608 in (96.6%), 1,605,636,096 out; sparsity_scope of this run"
    assert found["scope model"] == "46,702,792,704 in (100.0%), 0 out"
    assert found["this machine"] == "100.0 GB RAM, 80.0 GB GPU"
    assert found["whole model"] == "bf16 93.4 GB (fits RAM), nf4 26.6 GB (fits RAM and GPU)"
    assert "to prune 10.1 GB (fits RAM and GPU): layers at work 5.8 GB" in found["run, memory"]
    assert "assumed 1 GB/s" in found["run, time"]
    assert printed.endswith("no weights were read\n")
    assert list(Path.cwd().iterdir()) == []  # no run's directory


def test_parts_that_differ_from_layer_to_layer_are_ranges(stun: Stun, tiny_model: Callable[[str], Path]) -> None:
    _, printed, _ = stun("model=local", f"model.path={tiny_model('deepseek_v3')}", "calibration.sequence_length=32")
    found = rows(printed)
    assert found["layers"] == "3, 2 with experts and 1 dense"
    assert found["experts"] == "6 a layer, 2 a token, in 2 groups"
    assert found["beside them"].startswith("1,152 weights a layer that every token meets")


def test_without_settings_it_is_the_default_model(stun: Stun) -> None:
    code, printed, _ = stun()
    assert code == 0
    assert rows(printed)["model"] == "bundled:toy_moe: 3,851,392 parameters"


def test_a_mistake_in_the_settings_ends_with_2(stun: Stun) -> None:
    code, printed, said = stun("sed=1", "model=mixtrl_8x7b")
    assert (code, printed) == (2, "")
    assert said.startswith("stun: 2 mistakes, nothing was run\n")
    assert "did you mean seed?" in said
    assert stun("--multirun", "seed=1,2")[0] == 2
    assert "-m: only settings" in stun("-m", "seed=1,2")[2]


def test_what_is_wrong_with_the_model_is_one_line_and_1(stun: Stun, published: Callable[..., Path]) -> None:
    local = ["model=local", f"model.path={published(num_local_experts=6)}"]
    code, _, said = stun(*local)
    assert code == 1
    assert said == (
        f"error: {published()}: layer 0 has 8 experts on disk, and config.json says num_local_experts=6; config and "
        "weights disagree\n"
    )
    code, _, said = stun(*local, "model.parameters=5")
    assert (code, said.startswith("error: model.parameters=5: ")) == (1, True)


def test_a_card_is_inspected_before_the_model_is_fetched(stun: Stun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether Arctic fits is asked before a terabyte is downloaded; what was not checked is said."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, printed, _ = stun("model=arctic", "model.device=cpu", "calibration=c4")
    found = rows(printed)
    assert code == 0
    assert found["model"] == "Snowflake/snowflake-arctic-base: 481,667,422,208 parameters"
    assert found["experts"] == "128 a layer, 2 a token"
    assert found["on disk"] == "not at hand; these are its card's dimensions"
    assert found["whole model"] == "bf16 963.3 GB (fits nowhere), nf4 271.6 GB (fits nowhere)"


def test_routers_alone_say_how_alike_experts_are(
    stun: Stun, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against every pair of rows; no tensor but a router's may be read."""
    folder = tiny_model("mixtral")
    weights = load_file(folder / "model.safetensors")
    monkeypatch.setattr(Checkpoint, "read_layer", lambda *_: pytest.fail("a layer was read"))
    code, printed, _ = stun("--experts", "model=local", f"model.path={folder}", "calibration.sequence_length=32")
    assert code == 0
    lines = [line.split() for line in printed.splitlines()[2:]]
    for layer in range(3):
        rows = weights[f"model.layers.{layer}.block_sparse_moe.gate.weight"].double()
        length = float(rows.norm(dim=1).mean())
        near = [min(float((rows[a] - rows[b]).norm()) for b in range(6) if b != a) / length for a in range(6)]
        assert lines[layer][:2] == [str(layer), "6"]
        assert [float(text) for text in lines[layer][2:]] == pytest.approx([min(near), sum(near) / 6], abs=6e-4)


def test_help_says_how(stun: Stun) -> None:
    for flag in ("--help", "-h"):
        code, printed, _ = stun(flag, "nonsense")
        assert code == 0
        assert "stun inspect KEY=VALUE" in printed
