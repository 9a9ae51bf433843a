"""What may be read of a model's folder, and what of it comes along: its own files, and the hub cache's blobs."""

from pathlib import Path

from stun_exp.utils.files import is_inside, read_json_object

CARRIED = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""Endings of what comes along beside the weights: tokenizer, generation config."""
TERMS = ("LICEN", "NOTICE", "USE_POLICY", "COPYING")
"""How the names begin of the files that say under which terms the model may be used."""
TEMPLATES = "additional_chat_templates"
"""The folder of a tokenizer's further chat templates."""
_TOKENIZER = "tokenizer_config.json"
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def check_plain(folder: Path) -> None:
    """ValueError for adapters beside the weights: transformers would load them too, and other weights than these."""
    for name in _ADAPTERS:
        if (folder / name).exists():
            raise ValueError(
                f"{folder}: holds {name} beside the weights, so transformers would load an adapter on top of a base "
                "model; merge the adapter into the weights (peft's merge_and_unload), or remove its files"
            )


def carried_files(folder: Path) -> tuple[list[str], list[str]]:
    """(The files that come along, by their names in the folder; a warning for each that should and does not).

    Tokenizer, generation config and terms; the code that tokenizer_config.json names, without which it cannot be loaded
    again; and chat templates. Never what a link leads to outside the folder.
    """
    wanted = [file.name for file in sorted(folder.iterdir()) if _comes_along(file)]
    wanted += [f"{TEMPLATES}/{file.name}" for file in sorted((folder / TEMPLATES).glob("*.jinja"))]
    names, warnings = [], []
    code, absent = _tokenizer_code(folder)
    for name in [*wanted, *code]:
        file = folder / name
        if not is_inside(folder, file):
            warnings.append(f"{file}: a link that leads out of the folder; it is not followed, and not written")
        elif file.is_file():
            names.append(name)
        else:
            warnings.append(f"{file}: not a regular file; it is not written")
    warnings += [
        f"{folder / _TOKENIZER} names {name}, which is not there; nor is it in what is written" for name in absent
    ]
    return names, warnings


def _comes_along(file: Path) -> bool:
    if file.name == TEMPLATES:
        return False
    terms = file.name.upper().startswith(TERMS)
    carried = file.name.endswith(CARRIED) and file.name != "config.json" and not file.name.endswith(".index.json")
    return terms or carried


def _tokenizer_code(folder: Path) -> tuple[list[str], list[str]]:
    """The Python files with which the tokenizer is loaded, and those of them that are not there.

    Code of another repository (`owner/name--module.Class`) stays there. No code is run to know.
    """
    from transformers.dynamic_module_utils import get_relative_imports

    file = folder / _TOKENIZER
    if not (file.is_file() and is_inside(folder, file)):
        return [], []
    auto_map = read_json_object(file).get("auto_map")
    named = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    classes = [one for value in named for one in (value if isinstance(value, list) else [value])]
    waiting = [one.rpartition(".")[0] for one in classes if isinstance(one, str) and "." in one and "--" not in one]
    found: dict[str, bool] = {}
    while waiting:
        name = f"{waiting.pop(0)}.py"
        if name not in found:
            found[name] = (folder / name).is_file()
            waiting += get_relative_imports(folder / name) if found[name] and is_inside(folder, folder / name) else []
    return [name for name, there in found.items() if there], [name for name, there in found.items() if not there]
