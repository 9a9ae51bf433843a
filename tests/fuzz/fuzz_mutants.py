"""Faults for any file: each mutator takes a seeded generator and damages what it is given in a way drawn from it."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from shutil import copyfile
from typing import Any

import torch
from safetensors.torch import load_file, save_file

DEEP = "nested deeper than any reader goes"
LEVELS = 2000
OTHERS: tuple[Any, ...] = (None, True, False, 0, 1.5, "x", "", [], [None], {}, {"x": {"y": []}})
NOT_FINITE = tuple(map(float, ("nan", "inf", "-inf")))
NUMBERS: tuple[Any, ...] = (-1, -(10**9), 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, *NOT_FINITE)
STRINGS: tuple[Any, ...] = ("", " ", "\0", "../../x", "/x", "\ud800", "é" * 300, "x" * 100_000, "\n")


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each (object or list, key or number in it), at any depth."""
    inside = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    for key, value in inside:
        yield node, key
        yield from places(value)


def damaged_tree(random: Random, content: Any) -> tuple[Any, str]:
    """The same tree with a fault at one place, and what it is: `like` if the new value is of a kind with the old."""
    holder = {"": json.loads(json.dumps(content))}
    node, key = random.choice(list(places(holder)))
    kind = random.choice(("delete", "type", "type", "number", "number", "string", "deep", "rename", "double"))
    old = node[key]
    if kind == "delete" and node is not holder:
        del node[key]
    elif kind == "rename" and isinstance(node, dict) and node is not holder:
        node[f"{key}_"] = node.pop(key)
    elif kind == "double" and isinstance(node, list):
        node.append(old)
    else:
        node[key] = random.choice({"number": NUMBERS, "string": STRINGS, "deep": (DEEP,)}.get(kind, OTHERS))
        kind = "like" if _alike(old, node[key]) else f"{kind}, {node[key]!s:.30} now,"
    return holder[""], f"{kind} at {key!r}, {old!s:.30}"


def _alike(old: Any, new: Any) -> bool:
    """Whether both are finite numbers, or both text: what is meant may be the one or the other."""
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e300 for one in (old, new)]
    return all(numbers) or (isinstance(old, str) and isinstance(new, str))


def damaged_json(random: Random, content: bytes) -> tuple[bytes, str]:
    """JSON with a fault in it, or none at all."""
    if random.random() < 0.25:
        return damaged_bytes(random, content)
    tree, what = damaged_tree(random, json.loads(content))
    text = json.dumps(tree).replace(json.dumps(DEEP), "[" * LEVELS + "]" * LEVELS)
    return text.encode(), what


def damaged_lines(random: Random, content: bytes) -> tuple[bytes, str]:
    """Lines of JSON with a fault in one of them, or lines gone, doubled or in another order."""
    lines = content.split(b"\n")
    number = random.randrange(max(len(lines) - 1, 1))
    kind = random.choice(("json", "json", "json", "bytes", "gone", "double", "swap", "blank"))
    if kind == "json" and lines[number]:
        lines[number], what = damaged_json(random, lines[number])
    elif kind == "gone":
        del lines[number]
    elif kind == "double":
        lines.insert(number, lines[number])
    elif kind == "swap":
        lines[number], lines[0] = lines[0], lines[number]
    elif kind == "blank":
        lines.insert(number, b"")
    else:
        return damaged_bytes(random, content)
    return b"\n".join(lines), f"line {number}: {what if kind == 'json' else kind}"


def damaged_bytes(random: Random, content: bytes) -> tuple[bytes, str]:
    """Bytes that were cut off, flipped, put in, or written in another encoding."""
    place = random.randrange(len(content) + 1)
    kind = random.choice(("cut", "flip", "insert", "empty", "utf-16", "latin", "bom", "zeros"))
    if kind == "flip" and place < len(content):
        flipped = bytes([content[place] ^ (1 << random.randrange(8))])
        return content[:place] + flipped + content[place + 1 :], f"flip {place}"
    if kind == "insert":
        return content[:place] + random.randbytes(3) + content[place:], f"bytes at {place}"
    others = {
        "empty": b"",
        "utf-16": content.decode(errors="replace").encode("utf-16"),
        "latin": content[:place] + "é".encode("latin-1") + content[place:],
        "bom": b"\xef\xbb\xbf" + content,
        "zeros": bytes(len(content)),
    }
    return others.get(kind, content[:place]), f"{kind} {place}"


def no_file(random: Random, file: Path) -> str:
    """Puts something else in the place of a file; what it is."""
    kinds: dict[str, Callable[[], Any]] = {
        "gone": lambda: None,
        "a folder": file.mkdir,
        "a pipe": lambda: os.mkfifo(file),
        "a link to nowhere": lambda: file.symlink_to("nowhere"),
        "a link to itself": lambda: file.symlink_to(file.name),
        "a link to a folder": lambda: file.symlink_to("."),
        "a link out": lambda: file.symlink_to(outside),
        "empty": file.touch,
        "not readable": lambda: (copyfile(outside, file), file.chmod(0)),
    }
    kind = random.choice(list(kinds))
    outside = file.parents[1] / f"outside_{file.name}"
    copyfile(file, outside)
    file.unlink()
    kinds[kind]()
    return kind


def damaged_weights(random: Random, file: Path) -> str:
    """Damages a file of tensors; what was done."""
    kind = random.choice(("header", "cut", "number", "dtype", "shape", "gone", "rename", "add", "flip", "length"))
    content = file.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    if kind in ("header", "flip", "length"):
        first, end = {"header": (8, header), "length": (0, 8)}.get(kind, (0, header))
        place = random.randrange(first, end)
        file.write_bytes(content[:place] + random.randbytes(1) + content[place + 1 :])
        return f"{kind}: byte {place}"
    if kind == "cut":
        place = random.randrange(len(content))
        file.write_bytes(content[:place])
        return f"cut at {place} of {len(content)}"
    tensors = load_file(file)
    key = random.choice(sorted(tensors))
    tensor = tensors[key]
    if kind == "number":
        tensor.flatten()[random.randrange(tensor.numel())] = random.choice(NOT_FINITE)
    elif kind == "dtype":
        other = random.choice((torch.int64, torch.int8, torch.bool, torch.float16, torch.float64, torch.float8_e4m3fn))
        tensors[key] = tensor.to(other)
        what = str(other)
    elif kind == "shape":
        others = (tensor[:-1], tensor[None], tensor.flatten(), tensor[:0], tensor.sum())
        tensors[key] = random.choice(others).contiguous()
    else:
        del tensors[key]
        if kind != "gone":
            tensors[random.choice((f"{key}x", key.replace(".1.", ".7."), "x", f"model.{key}"))] = tensor
        if kind == "add":
            tensors[key] = tensor.clone()
    save_file(tensors, file, metadata={"format": "pt"})
    return f"{kind}: {key} {what if kind == 'dtype' else ''}"
