"""What a value depends on: settings, code, versions of libraries and inputs, in one fingerprint.

Journal, cache and "already complete" go by it. A module counts with all that it imports, of this package or of the one
that a user's own method is in, as Python compiles it: comments, docstrings and the layout of the text do not count.
What only shows, tracks or keeps results decides none of them, and is left out: editing a plot recomputes nothing.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any

LIBRARIES = ("torch", "transformers")
"""Those that can move a bit of a result, besides lm-eval, which counts where benchmarks are run."""
DECIDES_NOTHING = frozenset(
    f"stun_exp.{name}"
    for name in (
        *("__main__", "api", "cli", "config", "fetching", "inspection", "report", "tracker"),
        *(f"data.{name}" for name in ("hub", "missing", "sets")),
        *(f"pipeline.{name}" for name in ("context", "dry_run", "model_card", "preflight", "provenance")),
        *(
            f"state.{name}"
            for name in ("artifacts", "cache", "costs", "failures", "finished", "fingerprint", "journal")
        ),
        *(f"state.{name}" for name in ("lock", "log", "ownership")),
        *(f"utils.{name}" for name in ("markdown", "names", "paths", "progress", "sizes")),
    )
)
"""Modules and packages that are never part of a result's code."""
_FOR_TYPES = re.compile(r"^if TYPE_CHECKING:\n(?:[ \t]+.*\n|\n)+", re.MULTILINE)
"""Imports that are never run."""
_BY_NAME = re.compile(r"""import_module\(f["']([\w.]+)\.\{""")
"""A package of which some module is imported, which one being known when it runs: all of them count."""
_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+import\s+(\([^)]*\)|[^\n#]*)|import\s+([\w.]+))", re.MULTILINE)


def fingerprint(modules: Iterable[str], parts: Mapping[str, Any]) -> str:
    """The sha256 of all that a value depends on.

    Args:
        modules: The modules that compute it; what they import counts too.
        parts: Everything else, as plain data: settings and the fingerprints of inputs.
    """
    depends_on = {"code": digests(modules), "versions": versions(), **parts}
    return sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """The versions of the libraries that every result depends on."""
    return {name: version(name) for name in LIBRARIES}


def made_by(*modules: str) -> dict[str, Any]:
    """What a value depends on besides what is said of it: the code that computed it, and the libraries' versions."""
    return {"code": fingerprint(modules, {})}


def components(settings: Any) -> list[str]:
    """The modules of all components in nested settings, which name their classes by `_target_`."""
    if not isinstance(settings, Mapping):
        return []
    own = [str(settings["_target_"]).rpartition(".")[0]] if "_target_" in settings else []
    return own + [module for value in settings.values() for module in components(value)]


def digests(modules: Iterable[str]) -> dict[str, str]:
    """16 hex digits of the code of each of some modules, and of all that they import, by the module's name."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = None if name in found or _is_left_out(name) else _file(name)
        if file is not None:
            found[name], imported = _looked_at(file, name.partition(".")[0])
            waiting += imported
    return dict(sorted(found.items()))


def _is_left_out(name: str) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in DECIDES_NOTHING)


@cache
def _looked_at(file: Path, package: str) -> tuple[str, tuple[str, ...]]:
    """The digest of a file, and the names that it imports from its own package or from this one.

    They are read from the text, so that what is imported inside a function counts too. Once a process: what runs is
    what was read when it started.
    """
    content = file.read_bytes()
    text = _FOR_TYPES.sub("", content.decode(errors="replace"))
    names = [module for within in _BY_NAME.findall(text) for module in _modules_in(within)]
    for source, members, whole in _IMPORT.findall(text):
        if (source or whole).partition(".")[0] in (package, "stun_exp"):
            inside = (member.split(" as ")[0].strip() for member in members.strip("()").split(","))
            names += [source or whole, *(f"{source}.{member}" for member in inside if member and source)]
    return _digest(content), tuple(names)


def _digest(content: bytes) -> str:
    """Of a file's code without comments and docstrings; of its bytes if it is not Python."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return sha256(content).hexdigest()[:16]
    _strip_docstrings(tree)
    # Compiled, it is written out in a fraction of the time that the tree itself takes.
    code = compile(tree, "", "exec", dont_inherit=True, optimize=0)
    return sha256(repr(_plain(code)).encode()).hexdigest()[:16]


def _strip_docstrings(tree: ast.Module) -> None:
    """Takes out texts that stand by themselves, also those below an attribute."""
    waiting: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    while waiting:
        node = waiting.pop()
        node.body = [one for one in node.body if not _is_text(one)] or [ast.Pass(lineno=1, col_offset=0)]
        waiting += [one for one in node.body if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _plain(constant: Any) -> Any:
    """A constant of compiled code, or the code itself without the lines that it is on."""
    if isinstance(constant, CodeType):
        names = (constant.co_name, constant.co_names, constant.co_varnames, constant.co_freevars, constant.co_cellvars)
        counts = (constant.co_argcount, constant.co_kwonlyargcount, constant.co_posonlyargcount, constant.co_flags)
        return constant.co_code, constant.co_exceptiontable, names, counts, _plain(constant.co_consts)
    if isinstance(constant, frozenset):  # in another order in each process
        return sorted(map(repr, constant))
    return tuple(map(_plain, constant)) if isinstance(constant, tuple) else constant


def _modules_in(package: str) -> list[str]:
    beginning = _file(package)
    return [] if beginning is None else [f"{package}.{file.stem}" for file in sorted(beginning.parent.glob("*.py"))]


@cache
def _file(name: str) -> Path | None:
    """Where a module is; None for a name that is none, but something in one, or a package's empty beginning.

    Found by its place in its package: to ask Python would import what is around it.
    """
    top, *inside = name.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if not spec.submodule_search_locations:
        return None if inside else Path(spec.origin)
    place = Path(spec.origin).parent.joinpath(*inside)
    files = (place / "__init__.py", place.with_suffix(".py")) if inside else (place / "__init__.py",)
    return next((file for file in files if file.is_file() and file.stat().st_size), None)
