"""What the machine is, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

# Rows × inner × columns: an MLP's inward map over one sweep's pass, and a large square.
_SHAPES = ((8192, 768, 3072), (4096, 4096, 4096))
_TINY = ((256, 256, 256),)
_REPEATS = 5


def matrix_rates(device: str = "cpu", full: bool = True) -> dict[str, float]:
    """Operations per second (a multiply–add is two) of the fastest shape and kernel, by precision (medians)."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        best = 0.0
        for rows, inner, columns in _SHAPES if full else _TINY:
            a, b = (
                torch.randn(rows, inner, device=device).to(dtype),
                torch.randn(inner, columns, device=device).to(dtype),
            )
            for kernel in _kernels(a, b):
                times = []
                for _ in range(_REPEATS + 1):
                    begun = time.perf_counter()
                    kernel()
                    if device != "cpu":
                        torch.cuda.synchronize()
                    times.append(time.perf_counter() - begun)
                best = max(best, 2 * rows * inner * columns / statistics.median(times[1:]))
        rates[str(dtype).removeprefix("torch.")] = best
    return rates


def _kernels(a: torch.Tensor, b: torch.Tensor) -> list[Callable[[], torch.Tensor]]:
    """BLAS, and oneDNN where there is one: the limit is that of the faster."""
    kernels: list[Callable[[], torch.Tensor]] = [lambda: a @ b]
    if a.device.type == "cpu" and torch.backends.mkldnn.is_available():
        weight = b.T.contiguous()
        kernels.append(lambda: torch.ops.mkldnn._linear_pointwise(a, weight, None, "none", [], ""))
    return kernels


def description(threads: int, device: str) -> dict[str, str | int | float]:
    """Processor, cores and memory; neither host name nor paths."""
    found: dict[str, str | int | float] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
    }
    if device != "cpu" and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def load_average() -> float:
    """Processes that wanted a core, over the last minute."""
    return round(os.getloadavg()[0], 2)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.processor() or platform.machine())
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    return (
        f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}; {', '.join(wide) or '–'})"
    )
