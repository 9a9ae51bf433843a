"""Nothing is measured unless it is asked for."""

from pathlib import Path
from typing import Any

import torch
import yaml

from stun_exp.cli.main import CONF
from stun_exp.inference.none import NoInference


def test_nothing_is_measured_and_nothing_is_ruled_out() -> None:
    nothing: Any = None
    NoInference().check(nothing, torch.device("cpu"), False)
    assert NoInference().measure(nothing) is None  # type: ignore[func-returns-value]


def test_it_is_the_default() -> None:
    assert {"inference": "none"} in yaml.safe_load(Path(CONF / "config.yaml").read_text())["defaults"]
