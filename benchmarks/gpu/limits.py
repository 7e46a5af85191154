"""What the card can do, measured: how fast it copies memory, and multiplies matrices in each precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flash_export.runtime.eager import DTYPES
from gpu.rows import Row
from gpu.sizes import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu.device import Device
    from gpu.rows import RowFile
    from gpu.sizes import Sizes

BANDWIDTH = "bandwidth"


def name_rate(precision: str) -> str:
    """Return the name of the matrix rate of a precision."""
    return f"matrix rate {precision}"


def measure_limits(file: RowFile, device: Device, sizes: Sizes) -> None:
    """Measure what is not measured yet."""
    if not file.has("limit", BANDWIDTH):
        source = torch.zeros(sizes.copied_bytes, dtype=torch.uint8, device=device.kind)
        target = torch.empty_like(source)
        _add(file, device, sizes, BANDWIDTH, lambda: target.copy_(source), 2.0 * sizes.copied_bytes)
    for precision in PRECISIONS:
        if file.has("limit", name_rate(precision)):
            continue
        size = sizes.matrix_size
        left, right = (torch.randn(size, size, device=device.kind).to(DTYPES[precision]) for _ in range(2))
        product = torch.empty_like(left)

        def multiply(left: torch.Tensor = left, right: torch.Tensor = right, product: torch.Tensor = product) -> object:
            return torch.mm(left, right, out=product)

        _add(file, device, sizes, name_rate(precision), multiply, 2.0 * size**3)


def _add(file: RowFile, device: Device, sizes: Sizes, name: str, run: Callable[[], object], work: float) -> None:
    timing = device.time(run, sizes)
    runs = timing.runs
    file.add(
        Row(
            "limit",
            name,
            latency_ms=runs.p50,
            low_ms=runs.p50_low,
            high_ms=runs.p50_high,
            first_ms=timing.first_ms,
            runs=runs.runs,
            value=work / (runs.p50 * 1e-3),
            clock_mhz=device.read_clock(),
        )
    )
