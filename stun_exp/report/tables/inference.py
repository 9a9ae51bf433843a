"""Tables of what models take in use and how fast they are: one of a comparison, one over the runs of a report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from stun_exp.report.data.points import Point, points
from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.tables.table import Cell, ResultsTable
from stun_exp.utils.sizes import gb

Block = Mapping[str, Any]
PHASES = ("prefill", "decode")
PRUNED = "pruned"
"""What a run calls its own model."""
NOT_REALIZED = (
    "Not realized: what the weights would take if their zeros were left out, by the zeros that were counted in each "
    "matrix. Nothing here writes such files; vLLM, llm-compressor and torchao dropped these formats in 2026."
)


def comparison_table(block: Block) -> ResultsTable:
    """A row for each measure, a column for each model and variant; a factor says how it stands to the first model."""
    models: list[Block] = block["models"]
    names = [model["name"] for model in models]
    variants = [(model, variant) for model in models for variant in model["variants"]]
    columns = ["", *names, *(f"{model['name']}, {variant['name']}" for model, variant in variants)]
    rows = [[Cell(name), *cells] for name, cells in _sizes(models)]
    empty = [Cell("-")] * len(variants)
    rows = [[*row, *empty] for row in rows]
    each = [model["speed"] for model in models] + [variant["speed"] for _, variant in variants]
    rows += [[Cell(name), *cells] for name, cells in _speeds(each, "")]
    if block["vllm"] and block["vllm"]["speed"]:
        in_vllm = [block["vllm"]["speed"].get(name) for name in names]
        rows += [[Cell(name), *cells, *empty] for name, cells in _speeds(in_vllm, "vLLM: ")]
    return ResultsTable(columns, rows, tuple(_notes(block)))


def kernels_table(block: Block) -> ResultsTable | None:
    """A row for each product by a sparse kernel; None where none was measured."""
    if not block["kernels"]:
        return None
    columns = ["kernel", "matrix", "tokens", "dense (ms)", "sparse (ms)", "speedup", "largest error"]
    rows = [
        [
            Cell(one["kernel"]),
            Cell(f"{one['outputs']} x {one['inputs']}"),
            Cell(str(one["tokens"]), one["tokens"]),
            _spread(one["dense_ms"], ".3f"),
            _spread(one["sparse_ms"], ".3f"),
            _number(one["dense_ms"]["median"] / one["sparse_ms"]["median"], "{:.2f}x"),
            _number(100 * one["error"], "{:.2g} %"),
        ]
        for one in block["kernels"]
    ]
    note = "A product by one expert's matrix, of the shapes of Mixtral-8x7B and Qwen3-30B-A3B. The error is a share of "
    return ResultsTable(columns, rows, (note + "the largest output.",))


def inference_table(reports: Sequence[RunReport]) -> ResultsTable | None:
    """A row for each point that was measured in use: means over its seeds; None if none was."""
    found = [point for point in points(reports) if not point.is_baseline and _blocks(point)]
    if not found:
        return None
    settings = list(dict.fromkeys(name for point in found for name in point.settings))
    sizes = _batch_sizes(found)
    measures: dict[str, Callable[[Block], float]] = {"weights (MB)": lambda model: model["weight_bytes"] / 1e6}
    for phase in PHASES:
        measures |= {f"{phase}, batch {size} (tokens/s)": _tokens_a_second(phase, size) for size in sizes}
    rows = [
        [
            Cell(point.name),
            *(Cell(point.settings.get(name, "-")) for name in settings),
            _number(100 * point.sparsity, "{:g} %"),
            *(_against_unpruned(point, measure) for measure in measures.values()),
            _number(_mean(point, lambda block: _pruned(block)["freed_tokens"]), "{:,.0f}"),
        ]
        for point in found
    ]
    columns = ["method", *settings, "total sparsity", *measures, "KV tokens in the memory freed"]
    where = dict.fromkeys(told for point in found for block in _blocks(point) for told in [circumstances(block)])
    notes = ["Behind each figure, how it stands to the unpruned model's, which was measured in turns with it."]
    return ResultsTable(columns, rows, (*notes, *where), keys=frozenset([*settings, "total sparsity"]))


def circumstances(block: Block) -> str:
    """With what and how a comparison was measured."""
    work = block["workload"]
    threads = f"{block['threads']} thread{'s' * (block['threads'] > 1)}"
    return (
        f"Measured by {block['engine']} on {block['device']}, {threads}, {block['dtype']}: prompts of "
        f"{work['prompt_tokens']} tokens of text, {work['new_tokens']} generated behind each; the median of "
        f"{work['repeats']} rounds, all models in turns."
    )


def _sizes(models: Sequence[Block]) -> Iterator[tuple[str, list[Cell]]]:
    """What the models take, and what they hit."""

    def row(value: Callable[[Block], float], form: Callable[[float], str]) -> list[Cell]:
        return [_related(value(model), value(models[0]), form, model is models[0]) for model in models]

    yield "on disk", row(lambda model: model["disk_bytes"], gb)
    yield "weights in memory", row(lambda model: model["weight_bytes"], gb)
    yield "parameters", row(lambda model: model["parameters"], _whole)
    yield "parameters that a token meets", row(lambda model: model["active_parameters"], _whole)
    yield "experts a layer", row(lambda model: model["num_experts"], _short)
    for place, hit in enumerate(models[0]["experts_hit"]):
        for phase in PHASES:
            name = f"distinct experts hit a layer, {phase}, batch {hit['batch_size']}"
            yield name, row(lambda model, p=place, f=phase: model["experts_hit"][p][f], _short)  # type: ignore[misc]
    yield "zeros in matrices", [_number(100 * model["zeros"], "{:.1f} %") for model in models]
    yield "KV cache a token", [Cell(f"{model['kv_bytes_per_token']:,.0f} bytes") for model in models]
    freed = [model["freed_bytes"] for model in models]
    yield "memory freed for KV cache", [Cell("-"), *(Cell(gb(size)) for size in freed[1:])]
    yield "more tokens in the KV cache", [Cell("-"), *(Cell(_whole(model["freed_tokens"])) for model in models[1:])]
    for name, key in {"a bitmask of zeros": "bitmask", "2:4": "two_four"}.items():
        cells = [_stored(model, key, models[0]) for model in models]
        yield f"weights if stored as {name} (not realized)", cells


def _stored(model: Block, key: str, first: Block) -> Cell:
    formats = model["formats"]
    if key == "two_four" and not formats["num_two_four"]:
        return Cell("no matrix has the pattern")
    return _related(formats[key], first["formats"]["dense"], gb, False)


def _speeds(each: Sequence[Sequence[Block] | None], engine: str) -> Iterator[tuple[str, list[Cell]]]:
    """Tokens a second of models and variants; None for one without figures."""
    first = next(speed for speed in each if speed)
    for phase in PHASES:
        for place, one in enumerate(first):
            cells = [
                Cell("-") if speed is None else _speed_cell(speed[place][phase], one[phase], speed is first)
                for speed in each
            ]
            yield f"{engine}{phase} tokens/s, batch {one['batch_size']}", cells


def _speed_cell(spread: Block, first: Block, is_first: bool) -> Cell:
    cell = _spread(spread, ",.0f" if spread["median"] >= 100 else ".1f")
    factor = "" if is_first else f", {spread['median'] / first['median']:.2f}x"
    return Cell(cell.text + factor, cell.value)


def _spread(spread: Block, form: str) -> Cell:
    """A median, and its quartiles in brackets."""
    median, lower, upper = spread["median"], spread["lower"], spread["upper"]
    return Cell(f"{median:{form}} ({lower:{form}} to {upper:{form}})", median)


def _related(value: float, first: float, form: Callable[[float], str], is_first: bool) -> Cell:
    return Cell(form(value) if is_first or not first else f"{form(value)}, {value / first:.2f}x", value)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float) -> str:
    return f"{value:.1f}"


def _number(value: float, form: str) -> Cell:
    return Cell(form.format(value), value)


def _notes(block: Block) -> Iterator[str]:
    yield f"{circumstances(block)} In brackets the quartiles; factors are to {block['models'][0]['name']}."
    yield from (_zeros_note(model, block) for model in block["models"] if _filled(model))
    yield NOT_REALIZED
    if (vllm := block["vllm"]) is not None:
        if vllm["speed"]:
            told = "each model in a process of its own; decode is what it takes beyond a first token."
            yield f"vLLM {vllm['version']}, {told}"
        yield from (f"vLLM has no figures of {name}: {why}" for name, why in vllm["failed"].items())
    yield from block["notes"]


def _filled(model: Block) -> Block | None:
    return next((variant for variant in model["variants"] if variant["name"] == "zeros filled in"), None)


def _zeros_note(model: Block, block: Block) -> str:
    """What zeros alone do to speed: the same model with and without them, at the largest batch."""
    filled = _filled(model)
    assert filled is not None
    with_zeros, without = model["speed"][-1], filled["speed"][-1]
    told = (
        f"{phase} {with_zeros[phase]['median']:,.0f} tokens/s with them and {without[phase]['median']:,.0f} without "
        f"({with_zeros[phase]['median'] / without[phase]['median']:.2f}x)"
        for phase in PHASES
    )
    return (
        "Zeros by themselves give no speed here: dense products compute with them as with any number. "
        f"{model['name']}, {100 * model['zeros']:.1f} % zeros, batch {with_zeros['batch_size']}: {', '.join(told)}, "
        "where each was made a number near zero."
    )


def _blocks(point: Point) -> list[Block]:
    return [block for report in point.reports if (block := report.get("inference")) and _pruned(block)]


def _pruned(block: Block) -> Any:
    return next((model for model in block["models"] if model["name"] == PRUNED), None)


def _batch_sizes(found: Sequence[Point]) -> list[int]:
    sizes = {speed["batch_size"] for point in found for block in _blocks(point) for speed in _pruned(block)["speed"]}
    return sorted(sizes)


def _tokens_a_second(phase: str, size: int) -> Callable[[Block], float]:
    def median(model: Block) -> float:
        return next((one[phase]["median"] for one in model["speed"] if one["batch_size"] == size), float("nan"))

    return median


def _mean(point: Point, value: Callable[[Block], float]) -> float:
    return mean(value(block) for block in _blocks(point))


def _against_unpruned(point: Point, measure: Callable[[Block], float]) -> Cell:
    ours = _mean(point, lambda block: measure(_pruned(block)))
    first = _mean(point, lambda block: measure(block["models"][0]))
    if ours != ours or not first > 0:
        return Cell("-")
    form = ",.0f" if ours >= 100 else ".1f"
    return Cell(f"{ours:{form}}, {ours / first:.2f}x", ours)
