"""The parts of a report, as far as tables, tests and figures are made of it."""

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from stun_exp.utils.json_files import NOT_FINITE

LARGEST_WHOLE = 10**18
"""Of whole numbers."""
LARGEST_NUMBER = 1e100
"""Of numbers that are counted with."""


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
Experts = list[Annotated[int, Field(ge=0, le=10**9)]]
"""Of each layer that has some; none for a dense model."""


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


class ModelSettingsForm(OpenForm):
    dtype: NotRequired[str]
    dimensions: NotRequired[dict[str, Any] | None]


class SettingsForm(OpenForm):
    model: NotRequired[ModelSettingsForm]
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


class LayerStageForm(OpenForm):
    layer: Annotated[int, Field(ge=0, le=10**9)]
    kept: Count
    num_experts: Count
    reconstruction_error: NotRequired[Number | None]


class ExpertStageForm(OpenForm):
    """What the expert stage did; reports of older versions lack it."""

    plan_id: str
    num_clusters: Count
    largest_cluster: Count
    per_layer: Annotated[list[LayerStageForm], Field(min_length=1)]
    reconstruction_error: NotRequired[Amount | None]
    gate_mass_moved: NotRequired[Share | None]


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


class RedundancyForm(OpenForm):
    """How much alike the experts were; reports of older versions lack it."""

    nearest_weight_cosine: NotRequired[Number | None]
    nearest_output_cosine: NotRequired[Number | None]
    nearest_router_distance: NotRequired[Number | None]
    effective_experts: NotRequired[Number | None]
    load_gini: NotRequired[Number | None]


class StructureForm(OpenForm):
    """What a structured pruner took of a dense model; reports of older versions lack it."""

    share_removed: Share


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
    git_commit: NotRequired[Scalar]
    device: NotRequired[Scalar]
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
    structure: NotRequired[StructureForm | None]
    expert_stage: NotRequired[ExpertStageForm | None]
    redundancy: NotRequired[RedundancyForm | None]
    skipping: NotRequired[SkippingForm | None]
    metrics: dict[str, MetricForm]
    baseline: NotRequired[MeasurementForm | None]
    cost: Annotated[dict[str, StageCostForm], AfterValidator(_with_experts)]
    provenance: ProvenanceForm
