"""The fresh process that a footprint is measured in: a request as JSON on stdin, the footprint as JSON on stdout.

Nothing is imported here that the backend itself would not need: its memory is what is measured.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import Bundle
from flash_export.data.sources import RandomSource
from flash_export.validators.backends import list_backends
from flash_export.validators.footprint import Footprint, FootprintRequest, ShapeCost

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.data.sources import Source
    from flash_export.runtime.runner import Runner
    from flash_export.validators.backends import Backend

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
# The cost of a length lies between linear and quadratic.
_GROWTH = 1.5


def measure_backend(
    backend: Backend, source: Source, request: FootprintRequest, *, clock: Callable[[], float] = time.perf_counter
) -> Footprint:
    """Open a backend and run inputs of each length twice, the shortest first."""
    resident = read_resident_bytes()
    start = clock()
    with backend.open() as runner:
        open_ms = (clock() - start) * 1e3
        is_reset = reset_peak()
        opened = read_resident_bytes()
        shapes = _run_shapes(runner, backend, source, request, clock)
        peak = read_peak_bytes() if is_reset else None
    reasons = []
    if len(shapes) < len(request.seq_lens):
        unmeasured = request.seq_lens[len(shapes)]
        reasons.append(
            f"{unmeasured} {source.interface.unit} were not run: two runs would take more than {request.budget_s:g} s"
        )
    if peak is None or opened is None:
        reasons.append("memory was not measured: only Linux tells the peak of a part of a process")
    elif backend.device != "cpu":
        peak = None
        reasons.append("memory was not measured: this backend uses that of the GPU")
    return Footprint(
        backend=backend.name,
        reason="; ".join(reasons) or None,
        open_ms=open_ms,
        session_bytes=None if opened is None or resident is None else max(opened - resident, 0),
        shapes=tuple(shapes),
        first_call_ms=shapes[0].first_ms,
        shape_change_ms=_compute_shape_change(shapes[1:]),
        peak_bytes=None if peak is None or opened is None else max(peak - opened, 0),
        peak_seq_len=None if peak is None else shapes[-1].seq_len,
    )


def read_resident_bytes() -> int | None:
    """Return the resident memory of this process; None where the system does not tell."""
    return _read_status("VmRSS")


def read_peak_bytes() -> int | None:
    """Return its high-water mark."""
    return _read_status("VmHWM")


def reset_peak() -> bool:
    """Start the high-water mark anew from what is resident now, and tell whether that worked."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:  # not Linux, or a container that forbids it
        return False
    return True


def _run_shapes(
    runner: Runner, backend: Backend, source: Source, request: FootprintRequest, clock: Callable[[], float]
) -> list[ShapeCost]:
    shapes: list[ShapeCost] = []
    begin = clock()
    for seq_len in request.seq_lens:
        if shapes:
            expected_s = 2 * shapes[-1].second_ms / 1e3 * (seq_len / shapes[-1].seq_len) ** _GROWTH
            if clock() - begin + expected_s > request.budget_s:
                break
        arrays = source.draw(request.batch, seq_len).to_inputs(backend.inputs)
        times_ms = []
        for _ in range(2):
            start = clock()
            runner.run(arrays)
            times_ms.append((clock() - start) * 1e3)
        shapes.append(ShapeCost(seq_len, *times_ms))
    return shapes


def _compute_shape_change(shapes: list[ShapeCost]) -> float | None:
    return max(median(shape.first_ms - shape.second_ms for shape in shapes), 0.0) if shapes else None


def _read_status(field: str) -> int | None:
    for line in _STATUS.read_text().splitlines() if _STATUS.exists() else ():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def main() -> None:
    """Answer the request on stdin."""
    values = json.load(sys.stdin)
    request = FootprintRequest(
        **{**values, "onnx_files": tuple(values["onnx_files"]), "seq_lens": tuple(values["seq_lens"])}
    )
    files = tuple(map(Path, request.onnx_files))
    bundle = Bundle.open(request.bundle)
    backends = list_backends(bundle, () if files else (request.backend,), onnx_files=files, threads=request.threads)
    (backend,) = (one for one in backends if one.name == request.backend)
    sys.stdout.write(
        json.dumps(asdict(measure_backend(backend, RandomSource(bundle.manifest.interface), request))) + "\n"
    )


if __name__ == "__main__":
    main()
