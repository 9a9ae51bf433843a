"""What readers of before transformers 5 look for in config.json, beside what it writes itself.

mlx-lm and llama.cpp's converter read `rope_theta`, `rope_scaling` and `torch_dtype`. Without them they take defaults of
their own, and compute another model without a word.
"""

from typing import Any


def with_older_keys(config: dict[str, Any], rope: dict[str, Any] | None) -> dict[str, Any]:
    """A config.json in both spellings, which say the same.

    Args:
        config: The content of the file.
        rope: The rotary embedding as transformers knows it (`rope_parameters`); None for a model that has none.
    """
    config = {key: value for key, value in config.items() if key != "torch_dtype"}
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    if not rope or "rope_theta" not in rope:  # none, or one for each kind of layer, which has no older spelling
        return config
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    # transformers prefers rope_scaling, where there is any, so it must hold all of the scaling.
    is_scaled = scaling["rope_type"] != "default"
    config["rope_parameters"] = rope
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = scaling | {"type": scaling["rope_type"]} if is_scaled else None
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return config
