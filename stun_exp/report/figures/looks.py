"""Which color and marker a method has: by its name alone, so that it has them in every figure of every report."""

from collections.abc import Iterable, Sequence
from zlib import crc32

from stun_exp.report.figures.style import COLORS, MARKERS, color_and_marker

KNOWN = (
    "STUN (OWL)", "OWL", "Wanda", "SparseGPT", "MoE-Pruner", "STUN (Wanda)", "magnitude", "STUN (MoE-Pruner)",
    "STUN experts", "Lu et al.", "REAP", "random", "greedy reconstruction", "STUN experts (code)", "frequency",
    "subset search",
    "max activation", "MoE-Pruner 2:4", "router norm", "EAN", "HC-SMoE", "M-SMoE", "Wanda 2:4", "SparseGPT 2:4",
    "OWL (SparseGPT)", "stun-owl-sparsegpt", "stun-owl-moe_pruner", "stun-owl-magnitude",
    "stun-uniform-sparsegpt", "none-owl-moe_pruner", "stun-uniform-magnitude", "none-owl-magnitude",
    "STUN experts (paper)", "STUN dense (LLM-Surgeon, OWL)", "FLAP + OWL", "ShortGPT + OWL",
)  # fmt: skip
"""Methods by their styles. Those of each eight have all colors, for they are often in one figure: what prunes weights,
what prunes experts, others, and what else a grid of all stages has, where colors differ from those of the first."""
_WEIGHTS = {
    "stun-owl-wanda": "STUN (OWL)",
    "stun-uniform-wanda": "STUN (Wanda)",
    "stun-uniform-moe_pruner": "STUN (MoE-Pruner)",
    "none-owl-wanda": "OWL",
    "none-uniform-wanda": "Wanda",
    "none-uniform-sparsegpt": "SparseGPT",
    "none-uniform-moe_pruner": "MoE-Pruner",
    "none-uniform-magnitude": "magnitude",
    "none-owl-sparsegpt": "OWL (SparseGPT)",
    "llm_surgeon-owl-wanda": "STUN dense (LLM-Surgeon, OWL)",
    "neurons-owl-wanda": "FLAP + OWL",
    "layers-owl-wanda": "ShortGPT + OWL",
}
_EXPERTS = {
    "stun": "STUN experts",
    "stun_official": "STUN experts (code)",
    "stun_paper": "STUN experts (paper)",
    "exhaustive": "Lu et al.",
    "reap": "REAP",
    "random": "random",
    "greedy_reconstruction": "greedy reconstruction",
    "frequency": "frequency",
    "subset_search": "subset search",
    "router_norm": "router norm",
    "ean": "EAN",
    "hc_smoe": "HC-SMoE",
    "m_smoe": "M-SMoE",
    "max_activation": "max activation",
}
GENERATED = _WEIGHTS | {f"{pruner}-uniform-none": name for pruner, name in _EXPERTS.items()}
"""Names that a run of a known method has if it is given none."""
_FREE = tuple(range(len(KNOWN), len(COLORS) * len(MARKERS)))
"""Styles of all others."""


def looks(labels: Sequence[str], methods: Sequence[str]) -> dict[str, int]:
    """The style of each line of a figure.

    A method's only line has the method's style. Several lines of one method, which differ in a setting, have styles
    of their own, in colors that the figure's other lines have not, as far as they go round.

    Args:
        labels: Of the lines: a method's name, or one followed by settings, or settings alone.
        methods: All of the report.
    """
    of_methods = _styles_of(methods)
    owners = [_method(label, methods) for label in labels]
    found = {
        label: of_methods[owner]
        for label, owner in zip(labels, owners, strict=True)
        if owner is not None and (label == owner or owners.count(owner) == 1)
    }
    for label in labels:
        if label not in found:
            found[label] = _free(label, found.values(), apart=True)
    return found


def _styles_of(methods: Iterable[str]) -> dict[str, int]:
    """Of methods; only of two unknown ones that would look the same has the later in the alphabet another."""
    found: dict[str, int] = {}
    for method in sorted(methods):
        name = GENERATED.get(method, method)
        known = name in KNOWN and (method == name or name not in methods)
        found[method] = KNOWN.index(name) if known else _free(method, found.values())
    return found


def _method(label: str, methods: Iterable[str]) -> str | None:
    """The method that a line is of, if its label says."""
    named = [m for m in methods if label == m or label.startswith((f"{m} (", f"{m}, "))]
    return max(named, key=len, default=None)


def _free(name: str, taken: Iterable[int], apart: bool = False) -> int:
    """A style by the name alone, or the next that is not taken or, if they are to be told apart, of another color."""
    start = crc32(name.encode()) % len(_FREE)
    styles = set(taken)
    colors, markers = ({color_and_marker(style)[part] for style in styles} for part in (0, 1))

    def worth(style: int) -> tuple[bool, ...]:
        color, marker = color_and_marker(style)
        return (style in styles, *((color in colors, marker in markers) if apart else ()))

    return min(_FREE[start:] + _FREE[:start], key=worth)
