"""Describes the machine of a measurement."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from benchmarks.contenders import tcmalloc


def describe() -> dict[str, str]:
    """Returns processor, memory, system and allocator."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": f"{_processor()}, {cores} cores",
        "memory": f"{_memory() / 2**30:.0f} GB",
        "system": platform.platform(),
        "tcmalloc": tcmalloc() or "not installed (apt-get install libtcmalloc-minimal4)",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        found = re.search(r"model name\s*: (.*)", text)
        units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in text]
        if found:
            return f"{found[1]} ({', '.join(units)})"
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
