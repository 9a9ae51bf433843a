"""Colors and markers: one of each a method, in every figure of every report."""

from itertools import combinations

import yaml

from stun_exp.config.conf import CONF
from stun_exp.report.figures.looks import GENERATED, KNOWN, looks
from stun_exp.report.figures.style import COLORS, MARKERS, color_and_marker

METHODS = [yaml.safe_load(file.read_text())["name"] for file in sorted((CONF / "method").glob("*.yaml"))]


def look(label: str, *methods: str) -> tuple[int, int]:
    return color_and_marker(looks([label], methods)[label])


def test_every_method_of_the_configuration_is_known_by_its_name() -> None:
    """A new one needs a place; the unpruned model is a dashed line and no method."""
    assert set(METHODS) - {"unpruned"} <= set(KNOWN)


def test_no_two_styles_have_both_the_same_color_and_the_same_marker() -> None:
    assert len({color_and_marker(style) for style in range(64)}) == len(COLORS) * len(MARKERS) == 64
    assert len(set(KNOWN)) == len(KNOWN)


def test_methods_of_one_kind_have_all_colors() -> None:
    for first in range(0, len(KNOWN), len(COLORS)):
        kind = KNOWN[first : first + len(COLORS)]
        for part, of_all in enumerate((COLORS, MARKERS)):
            found = {look(name, *kind)[part] for name in kind}
            assert len(found) == len(kind)  # the last kind may be a part of eight
            assert found <= set(range(len(of_all)))


def test_methods_of_a_pack_have_colors_of_their_own() -> None:
    """Those of `moe_pruner_table2`, of two kinds, and of the grid of all stages."""
    table2 = ("SparseGPT", "Wanda", "MoE-Pruner", "SparseGPT 2:4", "Wanda 2:4", "MoE-Pruner 2:4")
    weights = ("magnitude", "moe_pruner", "sparsegpt", "wanda")
    grid = [f"stun-{allocation}-{pruner}" for allocation in ("owl", "uniform") for pruner in weights]
    for names in (table2, grid):
        assert len({look(name, *names)[0] for name in names}) == len(names)


def test_a_look_is_the_name_s_and_neither_the_order_s_nor_the_report_s() -> None:
    for name in ("STUN (OWL)", "Wanda", "a method of my own"):
        alone = look(name, name)
        assert look(name, "REAP", name, "another") == alone
        assert look(name, "another", "Lu et al.", "OWL", name) == alone


def test_a_name_that_was_generated_looks_as_the_method_it_is() -> None:
    assert look("none-uniform-wanda", "none-uniform-wanda") == look("Wanda", "Wanda")
    assert look("reap-uniform-none", "reap-uniform-none") == look("REAP", "REAP")
    assert set(GENERATED.values()) <= set(KNOWN)
    both = looks(["Wanda", "none-uniform-wanda"], ["Wanda", "none-uniform-wanda"])
    assert both["Wanda"] != both["none-uniform-wanda"]


def test_unknown_methods_never_look_the_same() -> None:
    """Of 28 names, which are as many as there are free styles, some have one style by the name alone."""
    names = [f"my method {number}" for number in range(28)]
    alone = [looks([name], [name])[name] for name in names]
    assert len(set(alone)) < 28
    assert len(set(looks(names, names).values())) == 28


def test_the_only_line_of_a_method_looks_as_the_method() -> None:
    methods = ["STUN (OWL)", "STUN", "OWL"]
    found = looks(["STUN (OWL) (kappa=3)", "OWL, 40 %"], methods)
    assert found == {"STUN (OWL) (kappa=3)": KNOWN.index("STUN (OWL)"), "OWL, 40 %": KNOWN.index("OWL")}


def test_lines_that_differ_in_a_setting_have_colors_and_markers_of_their_own() -> None:
    labels = [*(f"STUN (OWL) (kappa={kappa})" for kappa in range(7)), "Wanda"]
    found = looks(labels, ["STUN (OWL)", "Wanda"])
    assert found["Wanda"] == KNOWN.index("Wanda")
    pairs = [color_and_marker(found[label]) for label in labels]
    assert not [(a, b) for a, b in combinations(pairs, 2) if a[0] == b[0]]
