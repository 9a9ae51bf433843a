"""What a device is called."""

import platform

import torch


def name_of(device: torch.device) -> str:
    """A GPU's product name, or the CPU's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def circumstances(device: torch.device) -> dict[str, str | int]:
    """What the last bits of a result depend on, besides what is computed."""
    return {"device": name_of(device), "threads": torch.get_num_threads()}
