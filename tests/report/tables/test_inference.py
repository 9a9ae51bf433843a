"""Tables of what models take in use: figures by hand, and what stands below them."""

from collections.abc import Callable
from typing import Any

from stun_exp.report.data.schema import why_unusable
from stun_exp.report.tables.inference import comparison_table, inference_table, kernels_table

Make = Callable[..., dict[str, Any]]


def spread(median: float) -> dict[str, float]:
    return {"median": median, "lower": 0.5 * median, "upper": 2 * median}


def speed(prefill: float, decode: float) -> list[dict[str, Any]]:
    """At two batch sizes, the second twice as fast."""
    return [
        {"batch_size": size, "prefill": spread(factor * prefill), "decode": spread(factor * decode)}
        for size, factor in ((1, 1), (8, 2))
    ]


def model(name: str, size: int, prefill: float, decode: float, **more: Any) -> dict[str, Any]:
    formats = {"dense": float(size), "bitmask": 0.6 * size, "two_four": size, "num_matrices": 9, "num_two_four": 0}
    return {
        "name": name,
        "path": f"/{name}",
        "disk_bytes": size,
        "weight_bytes": size,
        "parameters": size // 2,
        "active_parameters": size // 10,
        "num_experts": size / 10**6,
        "zeros": 0.0,
        "formats": formats,
        "experts_hit": [{"batch_size": b, "decode": 2.0 * b, "prefill": 4.0 * b} for b in (1, 8)],
        "kv_bytes_per_token": 100.0,
        "freed_bytes": 0,
        "freed_tokens": 0,
        "speed": speed(prefill, decode),
        "variants": [],
        **more,
    }


def block(**more: Any) -> dict[str, Any]:
    filled = [{"name": "zeros filled in", "speed": speed(1000, 45)}]
    pruned = {"zeros": 0.25, "freed_bytes": 2 * 10**6, "freed_tokens": 20_000, "variants": filled}
    return {
        "engine": "transformers 5",
        "device": "cpu",
        "threads": 2,
        "dtype": "float32",
        "workload": {"batch_sizes": [1, 8], "prompt_tokens": 128, "new_tokens": 32, "repeats": 5},
        "models": [model("unpruned", 10 * 10**6, 1000, 50), model("pruned", 8 * 10**6, 1200, 40, **pruned)],
        "vllm": None,
        "kernels": [],
        "notes": ["something short"],
        **more,
    }


def rows(found: Any) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in found.rows}


def test_a_comparison_has_a_column_for_each_model_and_variant() -> None:
    table = comparison_table(block())
    assert table.columns == ["", "unpruned", "pruned", "pruned, zeros filled in"]
    found = rows(table)
    assert found["weights in memory"] == ["10.0 MB", "8.0 MB, 0.80x", "-"]
    assert found["memory freed for KV cache"] == ["-", "2.0 MB", "-"]
    assert found["more tokens in the KV cache"] == ["-", "20,000", "-"]
    assert found["distinct experts hit a layer, decode, batch 8"] == ["16.0", "16.0, 1.00x", "-"]
    assert found["decode tokens/s, batch 8"] == [
        "100 (50 to 200)", "80.0 (40.0 to 160.0), 0.80x", "90.0 (45.0 to 180.0), 0.90x"
    ]  # fmt: skip
    assert found["weights if stored as a bitmask of zeros (not realized)"] == ["6.0 MB, 0.60x", "4.8 MB, 0.48x", "-"]
    assert set(found["weights if stored as 2:4 (not realized)"][:2]) == {"no matrix has the pattern"}


def test_what_zeros_do_to_speed_is_said_with_the_measured_figures() -> None:
    notes = comparison_table(block()).notes
    (said,) = [note for note in notes if "Zeros by themselves" in note]
    assert "25.0 % zeros, batch 8" in said
    assert "prefill 2,400 tokens/s with them and 2,000 without (1.20x)" in said
    assert "decode 80 tokens/s with them and 90 without (0.89x)" in said
    assert "something short" in notes


def test_a_model_without_zeros_has_nothing_said_of_them() -> None:
    dense = block(models=[model("a", 100, 10, 10), model("b", 90, 10, 10)])
    assert not [note for note in comparison_table(dense).notes if "Zeros by themselves" in note]


def test_vllm_has_rows_of_its_own_and_what_failed_is_named() -> None:
    vllm = {"version": "0.32", "speed": {"unpruned": speed(3000, 90)}, "failed": {"pruned": "unequal layers"}}
    table = comparison_table(block(vllm=vllm))
    assert rows(table)["vLLM: decode tokens/s, batch 1"] == ["90.0 (45.0 to 180.0)", "-", "-"]
    assert "vLLM has no figures of pruned: unequal layers" in table.notes


def test_vllm_that_did_not_run_is_a_note_alone() -> None:
    table = comparison_table(block(vllm={"version": None, "speed": {}, "failed": {"unpruned": "no module"}}))
    assert not [name for name in rows(table) if name.startswith("vLLM")]
    assert "vLLM has no figures of unpruned: no module" in table.notes


def test_products_by_sparse_kernels_have_a_table() -> None:
    assert kernels_table(block()) is None
    one = {"kernel": "2:4, torch", "outputs": 768, "inputs": 2048, "tokens": 32, "error": 0.01}
    table = kernels_table(block(kernels=[one | {"dense_ms": spread(0.3), "sparse_ms": spread(0.2)}]))
    assert table is not None
    (row,) = table.rows
    assert row[:3] == ["2:4, torch", "768 x 2048", "32"]
    assert row[5:] == ["1.50x", "1 %"]


def test_a_report_has_a_row_for_each_point_that_was_measured(make_report: Make) -> None:
    """Means over seeds: 8 and 6 MB of 10."""
    reports = [make_report("STUN", seed=seed) | {"inference": block()} for seed in (0, 1)]
    reports[1]["inference"] = block(models=[model("unpruned", 10 * 10**6, 1, 1), model("pruned", 6 * 10**6, 1, 1)])
    table = inference_table([*reports, make_report("other")])
    assert table is not None
    (row,) = table.rows
    assert row[:3] == ["STUN", "40 %", "7.0, 0.70x"]
    assert row[-1] == "10,000"
    assert len(table.columns) == 3 + 4 + 1
    assert inference_table([make_report("other")]) is None


def test_the_form_of_a_block_is_checked_and_older_reports_have_none(make_report: Make) -> None:
    report = make_report()
    assert why_unusable(report) is None
    assert why_unusable(report | {"inference": None}) is None
    assert why_unusable(report | {"inference": block()}) is None
    broken = block()
    broken["models"][1]["speed"][0]["decode"] = {"median": "fast"}
    assert "inference.models.1.speed.0.decode.median" in str(why_unusable(report | {"inference": broken}))
