"""Which figures reports give, what is drawn in them, and what their captions say."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from stun_exp.report.figures import charts
from stun_exp.report.figures import style as drawing
from stun_exp.report.figures.axes import Axis, Reference, logarithmic
from stun_exp.report.figures.draw import Figure, draw_figures, draw_figures_over_models
from stun_exp.report.figures.style import Line

ARC, TEXT = "arc/acc,none", "text/byte_perplexity,none"
BENCHMARKS = {
    "arc": {"task": "arc", "metric": "acc,none", "num_fewshot": 0},
    "text": {"task": "text", "metric": "byte_perplexity,none", "num_fewshot": 0},
}


def report(
    name: str = "STUN",
    sparsity: float = 0.4,
    accuracy: float = 0.5,
    *,
    seed: int = 0,
    ratio: float = 0.25,
    perplexity: float | None = None,
    model: str = "bundled:toy",
    baseline: float | None = None,
    after: Sequence[int] = (3, 3),
    kurtosis: Sequence[float | None] = (3.5, 3.5, 2.0),
    seconds: float = 1.0,
    passes: float = 0.0,
    by_experts: float = 0.5,
    **pruner: Any,
) -> dict[str, Any]:
    """A run of two MoE layers of 4 experts; `by_experts` is the experts' share of all that is gone."""
    metrics = {ARC: metric(accuracy, 0.02)} | ({} if perplexity is None else {TEXT: metric(perplexity, None)})
    return {
        "name": name,
        "seed": seed,
        "choices": {},
        "settings": {
            "model": {"path": model},
            "expert_pruner": {"_target_": "stun_exp.expert_pruner.stun.stun.STUN", "ratio": ratio} | pruner,
            "eval": {"benchmarks": BENCHMARKS if perplexity is not None else {"arc": BENCHMARKS["arc"]}},
            "sparsity": sparsity,
            "seed": seed,
            "name": name,
        },
        "model": {"source": model, "params_before": 100},
        "experts": {"before": [4, 4], "after": list(after), "ratio": 1 - sum(after) / 8},
        "sparsity": {
            "target": sparsity,
            "achieved": sparsity,
            "per_layer": [{"removed": 60 * by_experts, "zeros": 60 * (1 - by_experts)}] * 2,
        },
        "diagnostics": {
            "kurtosis": {
                stage: {"all": 9.0, "nonzero": k}
                for stage, k in zip(("before", "experts", "weights"), kurtosis, strict=True)
            }
        },
        "metrics": metrics,
        "baseline": None if baseline is None else {"metrics": {ARC: metric(baseline, 0.01)}},
        "cost": {"experts": {"wall_seconds": 0.0, "charged_seconds": seconds, "forward_passes": passes}},
    }


def metric(value: float, stderr: float | None) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "num_samples": 100}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws figures without rendering them; (the figure, what matplotlib would draw of it), by name of file."""

    def write(reports: Sequence[dict[str, Any]], over_models: bool = False) -> dict[str, tuple[Figure, Any]]:
        drawn: list[Any] = []

        def keep(figure: Any) -> tuple[bytes, str]:
            drawn.append(figure)
            return b"", ""

        monkeypatch.setattr(drawing, "rendered", keep)
        figures = (draw_figures_over_models if over_models else draw_figures)(reports, "folder")
        return {f.name.removeprefix("folder/"): (f, picture) for f, picture in zip(figures, drawn, strict=True)}

    return write


def points(axes: Any) -> dict[str, list[list[float]]]:
    """The (x, y) of each labeled line with error bars."""
    return {bars.get_label(): bars.lines[0].get_xydata().round(6).tolist() for bars in axes.containers}


def bars(axes: Any) -> list[list[float]]:
    """Half the lengths of the error bars, line by line."""
    ends = [line.lines[2][0].get_segments() for line in axes.containers if line.has_yerr]
    return [[round((high - low) / 2, 4) for (_, low), (_, high) in segments] for segments in ends]


def test_a_line_is_the_mean_over_seeds_with_its_standard_error(shown: Any) -> None:
    """Seeds 0.4, 0.5, 0.6: sd 0.1, error 0.1 / sqrt 3. One seed of another method has its items' error, 0.02."""
    runs = [report("STUN", s, a + s, seed=seed) for s in (0.2, 0.4) for seed, a in enumerate((0.1, 0.2, 0.3))]
    figure, drawn = shown([*runs, report("OWL", 0.2, 0.7), report("OWL", 0.4, 0.6)])["total-sparsity-arc"]
    assert points(drawn.axes[0]) == {"STUN": [[20, 40], [40, 60]], "OWL": [[20, 70], [40, 60]]}
    assert bars(drawn.axes[0]) == [[5.7735, 5.7735], [2.0, 2.0]]
    assert figure.caption == (
        "Means of 1 to 3 seeds. Bars: standard error over the seeds; of one seed, over the items. "
        "The unpruned model was not measured."
    )


@pytest.mark.parametrize("as_run", [False, True])
def test_the_unpruned_model_is_dashed(shown: Any, as_run: bool) -> None:
    """Measured beside a run or by one of its own, which is then no method with a color."""
    runs = [report("STUN", s, 0.5, baseline=None if as_run else 0.9) for s in (0.2, 0.4)]
    if as_run:
        runs.append(report("none", 0.0, 0.9, after=(4, 4)))
    figure, drawn = shown(runs)["total-sparsity-arc"]
    (dashed,) = drawn.axes[0].collections[-1].get_segments()
    assert dashed[:, 1].tolist() == [90, 90]
    assert list(points(drawn.axes[0])) == ["STUN"]
    assert "unpruned" not in figure.caption


def test_one_sparsity_is_a_ranking(shown: Any) -> None:
    """The best on top: the most accurate, the least perplexed."""
    found = shown([report(f"m{i}", 0.4, i / 10, perplexity=i + 1.0) for i in (2, 3, 1)])
    assert [label.get_text() for label in found["ranking-arc"][1].axes[0].get_yticklabels()] == ["m3", "m2", "m1"]
    assert [label.get_text() for label in found["ranking-text"][1].axes[0].get_yticklabels()] == ["m1", "m2", "m3"]
    assert "Lower is better. No standard errors are known." in found["ranking-text"][0].caption
    assert "total-sparsity-arc" not in found


def test_names_that_hold_the_sparsity_are_ranked_too(shown: Any) -> None:
    """Each has one sparsity, so there is no line to draw; the sparsity is in the name already."""
    found = shown([report("STUN 40 %", 0.4), report("STUN 65 %", 0.65)])
    assert [tick.get_text() for tick in found["ranking-arc"][1].axes[0].get_yticklabels()] == ["STUN 40 %", "STUN 65 %"]


def test_the_share_of_experts_in_what_is_gone(shown: Any) -> None:
    """Of 60 weights gone in each layer, 0, 15 and 60 went with experts: 0, 25 and 100 %."""
    runs = [report("STUN", 0.5, a, ratio=2 * a, by_experts=share) for a, share in ((0.0, 0.0), (0.1, 0.25), (0.25, 1))]
    found = shown([*runs, report("OWL", 0.5, 0.9, ratio=0.0)])
    figure, drawn = found["experts-share-arc"]
    assert points(drawn.axes[0]) == {"STUN": [[0, 0], [25, 10], [100, 25]]}
    assert "Left out, with one share only: OWL." in figure.caption
    assert not [name for name in found if name.startswith(("ranking", "total-sparsity"))]


def test_a_ratio_that_goes_with_the_sparsity_is_no_share(shown: Any) -> None:
    """Expert pruning alone: one line against the sparsity, not one point for each ratio."""
    found = shown([report("STUN", s, 0.5, ratio=s) for s in (0.25, 0.5)])
    assert points(found["total-sparsity-arc"][1].axes[0]) == {"STUN": [[25, 50], [50, 50]]}
    assert "experts-share-arc" not in found


def test_one_setting_that_varies(shown: Any) -> None:
    """Numbers in their order on a logarithmic axis with a tick at each; a method without the setting is named."""
    runs = [report("STUN", 0.4, 0.5, kappa=kappa) for kappa in (100, 1, 10)]
    figure, drawn = shown([*runs, report("OWL", 0.4, 0.9)])["kappa-arc"]
    assert points(drawn.axes[0]) == {"STUN": [[1, 50], [10, 50], [100, 50]]}
    assert drawn.axes[0].get_xscale() == "log"
    assert [tick.get_text() for tick in drawn.axes[0].get_xticklabels()] == ["1", "10", "100"]
    assert "Left out, with one value only: OWL." in figure.caption


@pytest.mark.parametrize(
    ("values", "scale"), [((1, 2, 3), "linear"), ((0, 0.1, 1), "symlog"), ((0.1, 1), "log"), ((-10, 1, 10), "linear")]
)
def test_an_axis_is_logarithmic_where_values_span_a_decade(shown: Any, values: Sequence[float], scale: str) -> None:
    found = shown([report("STUN", 0.4, 0.5, kappa=value) for value in values])
    assert found["kappa-arc"][1].axes[0].get_xscale() == scale


def test_words_are_not_joined_by_a_line(shown: Any) -> None:
    """A line between `single` and `complete` would say that something lies between them."""
    found = shown([report("STUN", 0.4, 0.5, linkage=linkage) for linkage in ("single", "complete")])
    axes = found["linkage-arc"][1].axes[0]
    assert axes.containers[0].lines[0].get_linestyle() == "None"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["complete", "single"]


def test_two_settings_are_a_map_for_each_method(shown: Any) -> None:
    """Rows and columns in the order of the numbers, 10 behind 2; what was not run is blank, and counted."""
    values = {(2, 0.0): 0.1, (10, 0.0): 0.2, (2, 1.0): 0.3}
    runs = [report(name, 0.4, a, kappa=k, lamda=lamda) for name in "AB" for (k, lamda), a in values.items()]
    found = shown(runs)
    figure, drawn = found["kappa-lamda-arc-b"]
    assert drawn.axes[0].images[0].get_array().filled(-1).round(6).tolist() == [[10, 20], [30, -1]]
    assert [tick.get_text() for tick in drawn.axes[0].get_xticklabels()] == ["2", "10"]
    assert "In colors: acc (%)." in figure.caption
    assert "Blank: 1 of 4" in figure.caption
    assert "kappa-lamda-arc-a" in found


def test_numbers_and_words_are_a_line_for_each_word(shown: Any) -> None:
    """Sizes of two calibration texts, with three seeds: what is read along the numbers, with errors."""
    runs = [report(seed=seed, kappa=k, domain=d) for seed in range(3) for k in (1, 4, 128) for d in ("c4", "math")]
    drawn = shown(runs)["kappa-arc"][1].axes[0]
    assert points(drawn) == {f"domain={domain}": [[1, 50], [4, 50], [128, 50]] for domain in ("c4", "math")}


def test_a_setting_that_goes_with_another_is_said(shown: Any) -> None:
    """lambda1 = 1 - lambda2: one axis, not the diagonal of a map."""
    figure, _ = shown([report(lambda2=share, lambda1=1 - share) for share in (0.0, 0.5, 1.0)])["lambda2-arc"]
    assert "With it varies lambda1." in figure.caption


def test_of_three_settings_the_two_with_most_values_make_a_map_for_each_value_of_the_third(shown: Any) -> None:
    """A color is the same figure in all of them."""
    a_s, b_s = {"p": 0.1, "q": 0.2, "r": 0.3}, {"x": 0.0, "y": 0.5}
    found = shown([report(a=a, b=b, c=c, accuracy=a_s[a] + b_s[b]) for a in a_s for b in b_s for c in "uvw"])
    maps = [drawn.axes[0] for name, (_, drawn) in found.items() if name.startswith("a-c-arc")]
    values = [axes.images[0].get_array().round(6).tolist() for axes in maps]
    assert values == [[[10, 20, 30]] * 3, [[60, 70, 80]] * 3]
    assert [tuple(np.round(axes.images[0].get_clim(), 6)) for axes in maps] == [(10, 80)] * 2
    assert [tick.get_text() for tick in maps[0].get_yticklabels()] == ["u", "v", "w"]
    assert not [name for name in found if name.startswith("ranking")]


def test_an_ablation_is_at_the_sparsity_that_most_points_have(shown: Any) -> None:
    runs = [report("STUN", 0.4, 0.5, kappa=kappa) for kappa in (1, 2, 3)]
    figure, drawn = shown([*runs, report("STUN", 0.65, 0.1, kappa=1)])["kappa-arc"]
    assert points(drawn.axes[0]) == {"STUN": [[1, 50], [2, 50], [3, 50]]}
    assert "At 40 % total sparsity." in figure.caption


def test_experts_kept_are_means_over_the_seeds(shown: Any) -> None:
    runs = [report("STUN", after=(2, 4)), report("STUN", seed=1, after=(3, 4)), report("OWL", after=(4, 4))]
    figure, drawn = shown(runs)["experts-kept"]
    assert drawn.axes[0].images[0].get_array().tolist() == [[2.5, 4.0]]
    assert [text.get_text() for text in drawn.axes[0].texts] == ["2.5", "4.0"]
    assert figure.caption == "Of 4. Means of the seeds. Left out, with all experts: OWL."


def test_kurtosis_is_of_the_weights_that_are_left(shown: Any) -> None:
    """Of those that are not zero; a stage without a figure, as of NaN weights, is named and not drawn."""
    runs = [report("STUN", kurtosis=(3.5, 3.4, 2.0)), report("OWL", kurtosis=(3.5, None, 1.9))]
    figure, drawn = shown(runs)["kurtosis"]
    assert points(drawn.axes[0]) == {"STUN": [[0, 3.5], [1, 3.4], [2, 2.0]], "OWL": [[0, 3.5], [2, 1.9]]}
    assert "Left out, without a finite value: OWL (1 of 3)." in figure.caption


def test_cost_is_logarithmic_and_holds_methods_without_a_pass(shown: Any) -> None:
    """O(1) beside O(n): 0 passes have a place, which a logarithm has not."""
    runs = [report("O(1)", 0.4, 0.5, seconds=0.1), report("O(n)", 0.4, 0.6, seconds=50, passes=16)]
    figure, drawn = shown([*runs, report("OWL", after=(4, 4))])["cost"]
    seconds, passes = drawn.axes
    assert (seconds.get_xscale(), passes.get_xscale()) == ("log", "symlog")
    assert points(passes) == {"O(1)": [[0, 50]], "O(n)": [[16, 60]]}
    assert "Left out, with all experts: OWL." in figure.caption


def test_runs_with_one_expert_plan_do_not_differ_in_what_it_cost(shown: Any) -> None:
    """Seconds of the same selection differ by noise: their mean is 2, over all sparsities. Another plan has its own."""
    runs = [
        report("STUN (OWL)", 0.4, 0.5, seconds=1.0),
        report("STUN (OWL)", 0.65, 0.4, seconds=2.0),
        report("STUN (Wanda)", 0.4, 0.6, seconds=3.0),
        report("REAP", 0.4, 0.7, seconds=7.0, score="reap"),
    ]
    figure, drawn = shown([*runs, report("other", 0.4, 0.3, seconds=9.0, after=(2, 4))])["cost"]
    x = {name: found[0][0] for name, found in points(drawn.axes[0]).items()}
    assert x == {"STUN (OWL)": 2, "STUN (Wanda)": 2, "REAP": 7, "other": 9}
    assert "Runs with one expert plan have the mean of their seconds." in figure.caption


def test_plans_of_one_size_that_keep_other_experts_have_a_cost_each(shown: Any) -> None:
    runs = [report(name, 0.4, a, seconds=s) for name, a, s in (("A", 0.5, 1.0), ("B", 0.6, 3.0))]
    for run, plan in zip(runs, ("one", "other"), strict=True):
        run["expert_stage"] = {"plan_id": plan}
    figure, drawn = shown(runs)["cost"]
    assert points(drawn.axes[0]) == {"A": [[1, 50]], "B": [[3, 60]]}
    assert "one expert plan" not in figure.caption


def staged(run: dict[str, Any], *errors: float | None) -> dict[str, Any]:
    run["expert_stage"] = {
        "per_layer": [{"layer": n, "reconstruction_error": e} for n, e in enumerate(errors, start=1)]
    }
    return run


def test_the_error_of_the_expert_stage_is_a_line_over_the_layers(shown: Any) -> None:
    """Means of the seeds; a method that keeps all experts, or whose report is older, is named."""
    runs = [
        staged(report("STUN"), 0.1, 0.2),
        staged(report("STUN", seed=1), 0.3, 0.2),
        staged(report("REAP"), 0.3, None),
    ]
    figure, drawn = shown([*runs, report("older"), staged(report("OWL", after=(4, 4)), 0.0, 0.0)])["expert-stage-error"]
    assert points(drawn.axes[0]) == {"STUN": [[1, 0.2], [2, 0.2]], "REAP": [[1, 0.3]]}
    assert "Left out, with all experts: OWL." in figure.caption
    assert "Left out, without a finite value: REAP (1 of 2), older." in figure.caption


def test_reports_without_the_error_of_the_expert_stage_have_no_figure_of_it(shown: Any) -> None:
    bare = [
        report("STUN"),
        report("REAP") | {"expert_stage": None},
        report("EAN") | {"expert_stage": {"per_layer": None}},
    ]
    assert "expert-stage-error" not in shown(bare)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.1, 50.0), ["0.1", "1", "10"]),
        ((1.0, 16.0), ["1", "2", "5", "10"]),
        ((0.0, 1.0, 16.0), ["0", "1", "2", "5", "10", "20"]),
        ((1e-5, 1e6), ["0.0001", "0.01", "1", "100", "10000", "1e+06"]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_few_and_plain_numbers(values: Sequence[float], ticks: list[str]) -> None:
    """Powers of ten and, where these are few, twice and five times each: no 10^2, which would stand there as text."""
    line = Line("a", values, values, [None] * len(values), 0)
    with drawing.style():
        figure = charts.lines("title", [line], logarithmic("x", values), Axis("y"))
        figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    places = zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
    assert [label.get_text() for label, place in places if low <= place <= high] == ticks
    assert len(axes.get_xticks(minor=True)) == 0


def test_values_near_each_other_have_a_linear_axis() -> None:
    """A logarithm of 3 to 4 would have ticks at every tenth, one over the other in a narrow panel."""
    assert logarithmic("x", [3.0, 4.0]) == Axis("x")
    assert logarithmic("x", [0.0, 0.0]) == Axis("x")


def test_a_run_without_a_figure_is_named(shown: Any) -> None:
    """Infinite perplexity, and a benchmark that one run lacks."""
    bare = report("bare", 0.4) | {"metrics": {}}
    found = shown([report("fine", 0.4, perplexity=2.0), report("burst", 0.4, perplexity=float("inf")), bare])
    assert "Left out, without a finite value: burst, bare." in found["ranking-text"][0].caption


def test_a_perplexity_that_explodes_has_a_logarithmic_axis(shown: Any) -> None:
    found = shown([report("STUN", s, perplexity=p) for s, p in ((0.2, 2.0), (0.4, 3.0), (0.65, 5000.0))])
    assert found["total-sparsity-text"][1].axes[0].get_yscale() == "log"
    assert found["total-sparsity-arc"][1].axes[0].get_yscale() == "linear"


def test_one_exploding_perplexity_does_not_flatten_the_others(shown: Any) -> None:
    """It is over 1e4, drawn at the edge with its number; in a map it has the color of the largest of the others."""
    values = {0.2: 2.0, 0.4: 3.0, 0.65: 3e5}
    figure, drawn = shown([report("STUN", s, perplexity=p) for s, p in values.items()])["total-sparsity-text"]
    assert drawn.axes[0].get_ylim()[1] < 5
    assert [text.get_text() for text in drawn.axes[0].texts] == ["↑ 3.0e5"]
    assert "Lower is better. Arrows: beyond the axis, more than 10000." in figure.caption
    runs = [report(kappa=k, lamda=m, perplexity=9e9 if k + m > 1 else 2.0 + k) for k in (0, 1) for m in (0, 1)]
    figure, drawn = next(one for name, one in shown(runs).items() if name.startswith("kappa-lamda-text"))
    assert drawn.axes[0].images[0].get_clim() == (2.0, 3.0)
    assert [text.get_text() for text in drawn.axes[0].texts] == ["2.000", "3.000", "2.000", "9.0e9"]
    assert "More than 10000 has the color of the largest of the others." in figure.caption


def test_lines_that_coincide_are_named(shown: Any) -> None:
    """Where both have points; one that has another value anywhere does not."""
    accuracies = {"OWL": (0.9, 0.5), "Wanda": (0.9, 0.5), "SparseGPT": (0.9, 0.6), "magnitude": (0.2, 0.1)}
    found = shown(
        [report(name, s, a) for name, both in accuracies.items() for s, a in zip((0.2, 0.4), both, strict=True)]
    )
    assert "OWL and Wanda coincide." in found["total-sparsity-arc"][0].caption
    assert "SparseGPT" not in found["total-sparsity-arc"][0].caption
    assert "OWL, Wanda, SparseGPT and magnitude coincide." in found["kurtosis"][0].caption


def of_task(run: dict[str, Any], *tasks: str) -> dict[str, Any]:
    """The run, with its accuracy that of other benchmarks."""
    run["settings"]["eval"]["benchmarks"] = {
        task: {"task": task, "metric": "acc,none", "num_fewshot": 0, "include": None} for task in tasks
    }
    run["metrics"] = {f"{task}/acc,none": run["metrics"][ARC] for task in tasks}
    return run


def dashed(axes: Any) -> dict[str, float]:
    return {
        lines.get_label(): lines.get_segments()[0][0][1] for lines in axes.collections if lines.get_label()[0] != "_"
    }


def test_the_chance_level_is_a_labeled_line(shown: Any) -> None:
    """Of the benchmarks that have one; a mean has theirs if all of them have one."""
    two = [of_task(report("STUN", s, 0.5, perplexity=2.0), "arc_easy", "boolq") for s in (0.2, 0.4)]
    found = shown(two)
    assert dashed(found["total-sparsity-arc-easy"][1].axes[0]) == {"chance (25 %)": 25}
    assert dashed(found["total-sparsity-boolq"][1].axes[0]) == {"chance (50 %)": 50}
    assert dashed(shown([report("STUN", s, 0.5) for s in (0.2, 0.4)])["total-sparsity-arc"][1].axes[0]) == {}
    costs = [of_task(report(name, accuracy=a), "arc_easy", "boolq") for name, a in (("STUN", 0.5), ("REAP", 0.6))]
    figure, drawn = shown(costs)["cost"]
    assert dashed(drawn.axes[0]) == {"chance (37.5 %)": 37.5}
    assert "Quality: arc_easy, boolq." in figure.caption


def test_methods_have_the_same_colors_and_markers_in_every_report(shown: Any) -> None:
    names = ["Wanda", "my own", "STUN (OWL)"]
    looks = []
    for others in (names, ["REAP", *reversed(names), "OWL"]):
        drawn = shown([report(name, s, 0.5) for name in others for s in (0.2, 0.4)])["total-sparsity-arc"][1]
        lines = {bars.get_label(): bars.lines[0] for bars in drawn.axes[0].containers}
        looks.append({name: (lines[name].get_color(), lines[name].get_marker()) for name in names})
    assert looks[0] == looks[1]


def test_models_have_figures_of_their_own_and_methods_the_same_colors(shown: Any) -> None:
    first = [report("STUN", s, model="hub/one") for s in (0.2, 0.4)]
    second = [report(name, s, model="hub/two") for name in ("OWL", "STUN") for s in (0.2, 0.4)]
    found = shown([*first, *second])
    assert found["two-total-sparsity-arc"][0].title == "arc against total sparsity, two"
    colors = {
        file: {bars.get_label(): bars.lines[0].get_color() for bars in found[file][1].axes[0].containers}
        for file in ("one-total-sparsity-arc", "two-total-sparsity-arc")
    }
    assert colors["one-total-sparsity-arc"]["STUN"] == colors["two-total-sparsity-arc"]["STUN"]


def test_over_models_the_change_is_against_the_number_of_experts(shown: Any) -> None:
    """What a method takes from each model; errors of both figures; two models may have equally many experts."""

    def run(name: str, accuracy: float, model: str, experts: int, **more: Any) -> dict[str, Any]:
        made = report(name, 0.4, accuracy, model=f"hub/{model}", baseline=0.8, **more)
        made["experts"]["before"] = [experts, experts]
        return made

    sizes = {"small": 8, "wide": 64, "other": 64}
    owl = [run("OWL", 0.5 + size / 1000, model, size) for model, size in sizes.items()]
    found = shown([*owl, run("STUN", 0.7, "small", 8), run("STUN", 0.8, "wide", 64), run("new", 0.1, "wide", 64)], True)
    figure, drawn = found["experts-in-a-layer-arc"]
    assert points(drawn.axes[0]) == {"OWL": [[8, -29.2], [64, -23.6], [64, -23.6]], "STUN": [[8, -10], [64, 0]]}
    assert bars(drawn.axes[0])[0] == [round(100 * np.hypot(0.02, 0.01), 4)] * 3
    assert "Models: 8: small; 64: wide, other." in figure.caption
    assert "Left out, with one number of experts only: new." in figure.caption


def two_models(**more: Any) -> list[dict[str, Any]]:
    """Two methods at 20 and 40 % of two models, each with a cosine of its own."""
    runs = []
    for model, cosine in (("bundled:toy_upcycled", 0.951), ("bundled:toy_moe", None)):
        for name in ("STUN", "OWL"):
            for sparsity in (0.2, 0.4):
                run = report(name, sparsity, 0.5 + sparsity, model=model, baseline=0.9, **more)
                runs.append(run | {"redundancy": {"nearest_weight_cosine": cosine}})
    return runs


def test_models_stand_side_by_side_and_their_lines_begin_at_the_unpruned_one(shown: Any) -> None:
    runs = [*two_models(perplexity=3.0), report("REAP", 0.4, model="bundled:toy_moe")]
    figure, drawn = shown(runs, over_models=True)["side-by-side-arc"]
    left, right = drawn.axes
    assert points(left) == points(right) == {name: [[0, 90], [20, 70], [40, 90]] for name in ("STUN", "OWL")}
    assert bars(left) == [[1, 2, 2]] * 2
    assert left.get_title(loc="left") == "toy_upcycled\nnearest experts' weights:\ncosine 0.95"
    assert right.get_title(loc="left") == "toy_moe"
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0", "20", "40"]
    assert left.get_ylim() == right.get_ylim()
    assert len(drawn.legends) == 1
    assert "toy_moe: STUN and OWL coincide. toy_moe: Left out, with one sparsity only: REAP." in figure.caption


def test_the_mean_over_the_benchmarks_comes_first_and_says_of_which(shown: Any) -> None:
    """Its error is that of a mean of two independent ones: 2 / sqrt 2."""
    runs = [of_task(run, "arc_easy", "boolq") | {"baseline": None} for run in two_models()]
    found = shown(runs, over_models=True)
    assert list(found) == [f"side-by-side-{of}" for of in ("mean-accuracy", "arc-easy", "boolq")]
    figure, drawn = found["side-by-side-mean-accuracy"]
    assert figure.caption.startswith("Mean over arc_easy, boolq. Bars:")
    assert "toy_moe: STUN and OWL coincide. toy_moe: The unpruned model was not measured." in figure.caption
    assert points(drawn.axes[0])["STUN"] == [[20, 70], [40, 90]]
    assert bars(drawn.axes[0])[0] == [1.4142, 1.4142]
    assert dashed(drawn.axes[1]) == {"chance (37.5 %)": 37.5}


def test_models_without_a_method_in_common_or_with_one_sparsity_do_not_stand_side_by_side(shown: Any) -> None:
    runs = two_models()
    apart = [run | {"name": f"{run['name']} of {run['model']['source']}"} for run in runs]
    at_one = [run for run in runs if run["sparsity"]["target"] == 0.2]
    for found in (apart, at_one, runs[:4]):
        assert not [name for name in shown(found, over_models=True) if name.startswith("side-by-side")]


def test_over_models_nothing_is_drawn_without_the_unpruned_or_the_pruned_or_with_equally_many(shown: Any) -> None:
    assert shown([report(model="a"), report(model="b", baseline=0.8)], over_models=True) == {}
    assert shown([report(model=model, baseline=0.8) for model in "ab"], over_models=True) == {}
    assert shown([report("none", 0.0, after=(4, 4), model=model) for model in "ab"], over_models=True) == {}


def test_many_methods_have_a_panel_each_with_the_others_behind(shown: Any) -> None:
    found = shown([report(f"m{i}", s, i / 20) for i in range(14) for s in (0.2, 0.4)])
    panels = [axes for axes in found["total-sparsity-arc"][1].axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == [f"m{i}" for i in range(14)]
    assert all(len(axes.containers) == 1 for axes in panels)
    assert np.isfinite(panels[0].lines[0].get_ydata()).sum() == 28
    assert "Error bars are left out" in found["cost"][0].caption


def test_what_has_no_room_is_counted(shown: Any) -> None:
    found = shown([report(f"m{i}", s, passes=i) for i in range(45) for s in (0.2, 0.4)])
    left_out = "for want of room: m30, m31, m32, m33, m34, m35, m36, m37 and 7 more."
    assert len([axes for axes in found["total-sparsity-arc"][1].axes if axes.get_visible()]) == 30
    assert [name for name in found if left_out not in found[name][0].caption] == []


def test_names_that_files_do_not_tell_apart_have_files_of_their_own(shown: Any) -> None:
    pairs = [(1, 0), (2, 0), (1, 1)]
    found = shown([report(name, 0.4, kappa=k, lamda=lamda) for name in ("A+", "A-") for k, lamda in pairs])
    assert found["kappa-lamda-arc-a"][0].title == "arc of A+ over kappa and lamda"
    assert found["kappa-lamda-arc-a-2"][0].title == "arc of A- over kappa and lamda"


def test_no_runs_and_nothing_pruned_is_no_figure(shown: Any) -> None:
    assert shown([]) == {}
    assert shown([report("none", 0.0, after=(4, 4))]) == {}


def test_without_benchmarks_the_stages_are_drawn(shown: Any) -> None:
    bare = report() | {"metrics": {}}
    bare["settings"]["eval"] = {}
    assert list(shown([bare])) == ["experts-kept", "kurtosis"]


def test_every_kind_is_rendered() -> None:
    """Rendering says nothing either: warnings are errors here."""
    many = [report(f"m{i}", s, perplexity=10.0**i, passes=i) for i in range(9) for s in (0.2, 0.4)]
    maps = [report("A", 0.4, kappa=kappa, lamda=lamda, model="maps") for kappa in range(13) for lamda in (0, 1)]
    ranked = [report(f"m{i}", 0.4, baseline=0.5, model="ranked") for i in range(2)]
    for figure in draw_figures([*many, *maps, *ranked], "figures"):
        assert figure.png.startswith(b"\x89PNG")
        assert "</svg>" in figure.svg


def test_figures_are_the_same_bytes_again_and_hold_text_as_text() -> None:
    """A dollar in a name starts no formula, and < is no markup."""
    runs = [report("a$b$ <&>", s) for s in (0.2, 0.4)]
    first, again = (draw_figures(runs, "figures")[0] for _ in range(2))
    assert first == again
    assert ">a$b$ &lt;&amp;&gt;</text>" in first.svg
    assert first.png.startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 8])
def test_a_legend_covers_nothing(count: int) -> None:
    drawn = [Line(f"a method of some length {i}", [0, 1], [i, i + 1], [None, None], i) for i in range(count)]
    with drawing.style():
        figure = charts.lines("title", drawn, Axis("x"), Axis("y"), [Reference("unpruned", 0.5)])
        figure.draw_without_rendering()
        (legend,), (axes,) = figure.legends, figure.axes
        assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
        assert legend.get_window_extent().x1 <= figure.bbox.x1
        assert axes.get_window_extent().height > 0.5 * 2.7 * figure.dpi


@pytest.mark.parametrize("kind", ["rows", "heat"])
def test_long_names_of_rows_have_room_and_leave_some(kind: str) -> None:
    names = [f"router_scale=frobenius, linkage=average, budget=per_layer {i}" for i in range(16)]
    drawn = [Line(name, [0], [i], [None], 0) for i, name in enumerate(names)]
    down = Axis("", ticks={float(i): name for i, name in enumerate(names)})
    with drawing.style():
        if kind == "rows":
            figure = charts.rows("title", drawn, Axis("x"))
        else:
            layers = Axis("layer", ticks=dict(enumerate("0123")))
            figure = charts.heat("title", [[1, 2, 3, 4]] * 16, layers, down, "experts", 0)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        places = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert not any(one.overlaps(other) for one, other in combinations(places, 2))
        assert axes.get_window_extent().width > 0.4 * figure.bbox.width


@pytest.mark.parametrize(
    ("colors", "paper"), [(drawing.COLORS, drawing.PAPER), (drawing.IN_THE_DARK, drawing.DARK[drawing.PAPER])]
)
def test_colors_are_told_apart_by_the_color_blind(colors: Sequence[str], paper: str) -> None:
    """Simulated as by Machado et al. 2009; distances in CIELAB, where 2 is what a trained eye just sees."""
    sights = {
        "normal": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    light = np.array([linear(color) for color in colors])
    for sight in sights.values():
        seen = [lab(np.clip(np.array(sight) @ color, 0, 1)) for color in light]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 20
    luminance = [float(color @ LUMINANCE) for color in (*light, linear(paper))]
    assert all((max(one, luminance[-1]) + 0.05) / (min(one, luminance[-1]) + 0.05) >= 3 for one in luminance[:-1])
    assert len({marker for marker, _ in drawing.MARKERS}) == len(colors)


LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def linear(color: str) -> Any:
    """Linear RGB of #rrggbb."""
    c = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: Any) -> Any:
    """CIELAB of linear RGB, under D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], LUMINANCE, [0.0193, 0.1192, 0.9505]]) @ rgb / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
