"""The form of report.json: what its readers need of it."""

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import TypedDict

from stun_exp.state.artifacts import SCHEMA
from stun_exp.utils.json_files import NOT_FINITE
from stun_exp.utils.names import shortened

DEEPEST = 32
"""Levels of nesting; a report has a third of that."""
MOST = 10**18
"""Of whole numbers."""
LARGEST = 1e100
"""Of numbers that are counted with."""
_SAID = {
    "missing": "missing",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "too_short": "must not be empty",
}


def _measured(value: Any) -> float:
    """A number of any size, or none: a perplexity may have exploded."""
    if isinstance(value, str):
        value = NOT_FINITE.get(value, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("number", "must be a number")
    try:
        return float(value)
    except OverflowError:
        raise PydanticCustomError("number", "must be a number that fits in 64 bits") from None


def _error(value: Any) -> float:
    number = _measured(value)
    if number < 0:
        raise PydanticCustomError("number", "must be a number, and not below 0")
    return number


def _amount(value: Any) -> float:
    """A number to count with."""
    number = _measured(value)
    if not 0 <= number <= LARGEST:
        raise PydanticCustomError("number", f"must be a number from 0 to {LARGEST:g}")
    return number


def _share(value: Any) -> float:
    number = _measured(value)
    if not 0 <= number <= 1:
        raise PydanticCustomError("number", "must be a number from 0 to 1")
    return number


def _scalar(value: Any) -> Any:
    if isinstance(value, dict | list):
        raise PydanticCustomError("scalar", "must be text or a number")
    return value


def _with_experts(costs: dict[str, Any]) -> dict[str, Any]:
    if next(iter(costs), None) == "evaluate" or "experts" not in costs:
        raise PydanticCustomError("stage", "must have the stage experts, before evaluate")
    return costs


Number = Annotated[float, BeforeValidator(_measured)]
Error = Annotated[float, BeforeValidator(_error)]
Amount = Annotated[float, BeforeValidator(_amount)]
Share = Annotated[float, BeforeValidator(_share)]
Scalar = Annotated[Any, BeforeValidator(_scalar)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Experts = Annotated[list[Annotated[int, Field(ge=0, le=10**9)]], Field(min_length=1)]


class Open(TypedDict):
    """What may hold more than is looked at."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]


class Benchmark(Open):
    task: str
    metric: str
    num_fewshot: Count


class Evaluation(Open):
    benchmarks: NotRequired[dict[str, Benchmark]]
    limit: NotRequired[Amount | None]
    batch_size: NotRequired[Scalar]
    backend: NotRequired[str]


class ExpertPruner(Open):
    ratio: NotRequired[Share]


class Settings(Open):
    sparsity_scope: str
    expert_pruner: ExpertPruner
    eval: Evaluation


class Model(Open):
    source: str
    params_before: Count


class ExpertCounts(Open):
    before: Experts
    after: Experts
    ratio: Share


class Layer(Open):
    removed: Amount
    zeros: Amount


class Sparsity(Open):
    target: Share
    achieved: Share
    per_layer: list[Layer]


class Kurtosis(Open):
    nonzero: Number | None


class Kurtoses(Open):
    before: Kurtosis
    experts: Kurtosis
    weights: Kurtosis


class Diagnostics(Open):
    kurtosis: Kurtoses


class Skipping(Open):
    evaluation: NotRequired[Share | None]


class Metric(Open):
    value: Number
    stderr: Error | None
    num_samples: Count
    num_fewshot: Count
    task_version: Scalar


class Measurement(Open):
    metrics: dict[str, Metric]


class StageCost(Open):
    wall_seconds: Amount
    peak_host_gib: Amount
    peak_device_gib: Amount | None
    forward_passes: Amount


class Provenance(Open):
    versions: dict[str, str]
    calibration_tokens_sha256: str
    code: NotRequired[dict[str, str]]
    threads: NotRequired[Scalar]
    processor: NotRequired[Scalar]


class ReportForm(Open):
    """A report, as far as tables, tests and figures are made of it."""

    name: str
    seed: Annotated[int, Field(ge=0, le=MOST)]
    choices: NotRequired[dict[str, Any]]
    settings: Settings
    model: Model
    experts: ExpertCounts
    sparsity: Sparsity
    diagnostics: Diagnostics
    skipping: NotRequired[Skipping | None]
    metrics: dict[str, Metric]
    baseline: NotRequired[Measurement | None]
    cost: Annotated[dict[str, StageCost], AfterValidator(_with_experts)]
    provenance: Provenance


_FORM = TypeAdapter(ReportForm)


def unusable(report: Any) -> str | None:
    """Why something is no report that can be read here, with the place of what is wrong in it; None if it is one."""
    if not isinstance(report, dict):
        return "no report"
    if (schema := report.get("schema")) != SCHEMA:
        age = "before schemas were numbered" if schema is None else f"of schema {shortened(ascii(schema), 20)}"
        return f"a report {age}, and this version reads schema {SCHEMA}; run it again"
    if where := _unwritable(report, ()):
        return f"damaged, {where}"
    try:
        _FORM.validate_python(report)
    except ValidationError as error:
        first, *others = [f"{_place(one['loc'])}: {_said(one)}" for one in error.errors(include_url=False)]
        return f"damaged, {first}" + (f", and {len(others)} more" if others else "")
    if len(report["experts"]["before"]) != len(report["experts"]["after"]) or not sum(report["experts"]["before"]):
        return "damaged, experts.after: must have a number for each of experts.before, which are not all 0"
    if report["metrics"] and "lm-eval" not in report["provenance"]["versions"]:
        return "damaged, provenance.versions.lm-eval: missing"
    return None


def _unwritable(node: Any, place: tuple[Any, ...]) -> str | None:
    """Where something is that no file could hold, or that goes too deep, and what; None if all is well."""
    if len(place) > DEEPEST:
        return f"{_place(place[:3])}: nested more than {DEEPEST} levels deep"
    if isinstance(node, dict | list):
        inside = node.items() if isinstance(node, dict) else enumerate(node)
        found = (_unwritable(key, place) or _unwritable(value, (*place, key)) for key, value in inside)
        return next((why for why in found if why), None)
    if isinstance(node, str) and any("\ud800" <= letter <= "\udfff" for letter in node):
        return f"{_place(place)}: half of a character"
    if isinstance(node, int) and abs(node) > MOST:
        return f"{_place(place)}: must be a number of at most 18 digits"
    return None


def _place(steps: tuple[Any, ...]) -> str:
    return shortened(".".join(str(step).encode(errors="replace").decode() for step in steps), 200) or "report"


def _said(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"must be {'at least' if kind[0] == 'g' else 'at most'} {error['ctx']['ge' if kind[0] == 'g' else 'le']}"
    return _SAID.get(kind, error["msg"])
