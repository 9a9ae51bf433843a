"""The form of report.json: what its readers need of it."""

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import TypedDict

from stun_exp.state.artifacts import SCHEMA
from stun_exp.utils.json_files import NOT_FINITE
from stun_exp.utils.names import shortened

DEEPEST_NESTING = 32
"""Levels of nesting; a report has a third of that."""
LARGEST_WHOLE = 10**18
"""Of whole numbers."""
LARGEST_NUMBER = 1e100
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
    if not 0 <= number <= LARGEST_NUMBER:
        raise PydanticCustomError("number", f"must be a number from 0 to {LARGEST_NUMBER:g}")
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
Count = Annotated[int, Field(ge=0, le=LARGEST_WHOLE)]
Experts = Annotated[list[Annotated[int, Field(ge=0, le=10**9)]], Field(min_length=1)]


class OpenForm(TypedDict):
    """What may hold more than is looked at."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]


class BenchmarkForm(OpenForm):
    task: str
    metric: str
    num_fewshot: Count


class EvaluationForm(OpenForm):
    benchmarks: NotRequired[dict[str, BenchmarkForm]]
    limit: NotRequired[Amount | None]
    batch_size: NotRequired[Scalar]
    backend: NotRequired[str]


class ExpertPrunerForm(OpenForm):
    ratio: NotRequired[Share]


class SettingsForm(OpenForm):
    sparsity_scope: str
    expert_pruner: ExpertPrunerForm
    eval: EvaluationForm


class ModelForm(OpenForm):
    source: str
    params_before: Count


class ExpertCountsForm(OpenForm):
    before: Experts
    after: Experts
    ratio: Share


class LayerForm(OpenForm):
    removed: Amount
    zeros: Amount


class SparsityForm(OpenForm):
    target: Share
    achieved: Share
    per_layer: list[LayerForm]


class KurtosisForm(OpenForm):
    nonzero: Number | None


class KurtosesForm(OpenForm):
    before: KurtosisForm
    experts: KurtosisForm
    weights: KurtosisForm


class DiagnosticsForm(OpenForm):
    kurtosis: KurtosesForm


class SkippingForm(OpenForm):
    evaluation: NotRequired[Share | None]


class MetricForm(OpenForm):
    value: Number
    stderr: Error | None
    num_samples: Count
    num_fewshot: Count
    task_version: Scalar


class MeasurementForm(OpenForm):
    metrics: dict[str, MetricForm]


class StageCostForm(OpenForm):
    wall_seconds: Amount
    charged_seconds: Amount
    peak_host_gib: Amount
    peak_device_gib: Amount | None
    forward_passes: Amount


class ProvenanceForm(OpenForm):
    versions: dict[str, str]
    calibration_tokens_sha256: str
    code: NotRequired[dict[str, str]]
    threads: NotRequired[Scalar]
    processor: NotRequired[Scalar]


class ReportForm(OpenForm):
    """A report, as far as tables, tests and figures are made of it."""

    name: str
    seed: Annotated[int, Field(ge=0, le=LARGEST_WHOLE)]
    choices: NotRequired[dict[str, Any]]
    settings: SettingsForm
    model: ModelForm
    experts: ExpertCountsForm
    sparsity: SparsityForm
    diagnostics: DiagnosticsForm
    skipping: NotRequired[SkippingForm | None]
    metrics: dict[str, MetricForm]
    baseline: NotRequired[MeasurementForm | None]
    cost: Annotated[dict[str, StageCostForm], AfterValidator(_with_experts)]
    provenance: ProvenanceForm


_FORM = TypeAdapter(ReportForm)


def why_unusable(report: Any) -> str | None:
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
    if len(place) > DEEPEST_NESTING:
        return f"{_place(place[:3])}: nested more than {DEEPEST_NESTING} levels deep"
    if isinstance(node, dict | list):
        inside = node.items() if isinstance(node, dict) else enumerate(node)
        found = (_unwritable(key, place) or _unwritable(value, (*place, key)) for key, value in inside)
        return next((why for why in found if why), None)
    if isinstance(node, str) and any("\ud800" <= letter <= "\udfff" for letter in node):
        return f"{_place(place)}: half of a character"
    if isinstance(node, int) and abs(node) > LARGEST_WHOLE:
        return f"{_place(place)}: must be a number of at most 18 digits"
    return None


def _place(steps: tuple[Any, ...]) -> str:
    return shortened(".".join(str(step).encode(errors="replace").decode() for step in steps), 200) or "report"


def _said(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"must be {'at least' if kind[0] == 'g' else 'at most'} {error['ctx']['ge' if kind[0] == 'g' else 'le']}"
    return _SAID.get(kind, error["msg"])
