"""What lm-evaluation-harness says by itself, and should not."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stun_exp.evaluation.benchmarks import LMEval
from stun_exp.evaluation.records import BUNDLED_TASKS, Benchmark
from stun_exp.toy import WEIGHTS


def test_nothing_is_said_of_git_where_there_is_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """lm-eval asks git for a commit with every benchmark, and lets it complain."""
    benchmark = Benchmark(task="toy_arc", include=BUNDLED_TASKS, num_fewshot=0, metric="acc,none")
    settings = LMEval(
        benchmarks={"arc": benchmark},
        limit=1,
        batch_size=1,
        backend="hf",
        vllm_python=None,
        device_map="none",
        baseline=False,
        data=None,
        run_unsafe_code=False,
    )
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GIT_DIR", raising=False)
    settings.prepare().evaluate(model, AutoTokenizer.from_pretrained(WEIGHTS), torch.device("cpu"))
    assert "git" not in capfd.readouterr().err
