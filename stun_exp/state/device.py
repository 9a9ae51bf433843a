"""What a run is computed on: devices, processors, memory."""

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch


def name_of(device: torch.device) -> str:
    """A GPU's product name, or the CPU's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def circumstances(device: torch.device) -> dict[str, str | int]:
    """What the last bits of a result depend on, besides what is computed."""
    # On a GPU the processor decides little and its neighbors often differ; on none, it decides which kernels run.
    where = {"processor": processor()} if device.type == "cpu" else {}
    return {"device": name_of(device), "threads": torch.get_num_threads(), **where}


@cache
def processor() -> str:
    """The CPU's model and the instructions that torch uses on it: other ones round the last bits otherwise."""
    named = list[str]()
    with suppress(OSError):  # not Linux
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = named[0] if named else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def machine() -> dict[str, int]:
    """Bytes of this machine's memories, by name."""
    memories = {"RAM": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    limit = Path("/sys/fs/cgroup/memory.max")  # a container may be given less
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        memories["RAM"] = min(memories["RAM"], int(text))
    if torch.cuda.is_available():
        memories["GPU"] = torch.cuda.get_device_properties(0).total_memory
    return memories
