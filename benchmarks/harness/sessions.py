"""onnxruntime sessions as the benchmarks need them: two threads, which sleep between runs, outputs bound.

And what a text of one length costs in one, in time and peak memory, in the process that measures it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from flash_export import Bundle, Generator
from flash_export.processor import INT8_FLAGS, list_instructions
from harness.processes import read_peak_mib, restart_peak
from harness.timing import Activity, time_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

THREADS = 2
WARM_UP_LEN = 4096
MAX_SECONDS_PER_LENGTH = 120.0
_LOG_ERROR = 3


def open_session(model: Path | bytes, **options: Any) -> Any:
    """Open a file, or its bytes, on the CPU, with further attributes of onnxruntime's ``SessionOptions``.

    Threads spin during a run, but not after it: they would steal others' cores.
    """
    settings = onnxruntime.SessionOptions()
    for name, value in {"intra_op_num_threads": THREADS, "log_severity_level": _LOG_ERROR, **options}.items():
        setattr(settings, name, value)
    entries = ["intra_op.allow_spinning", "force_spinning_stop"]
    entries += [] if list_instructions(INT8_FLAGS) else ["x64quantprecision"]  # see flash_export/runtime/ort.py
    for entry in entries:
        settings.add_session_config_entry(f"session.{entry}", "1")
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def make_token_feeds(session: Any, input_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return the inputs of a language model: the tokens, and a mask of ones if the graph takes one."""
    return {
        value.name: np.ones_like(input_ids) if "mask" in value.name else input_ids for value in session.get_inputs()
    }


def bind_run(session: Any, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """Return a function that runs the session into outputs allocated once: new ones would measure page faults."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    names = [value.name for value in session.get_outputs()]
    for name, output in zip(names, session.run(names, dict(feeds)), strict=True):
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(output))
    return lambda: session.run_with_iobinding(binding)


def bind_tokens(session: Any, input_ids: np.ndarray) -> Callable[[], object]:
    """Return a function that runs a language model on tokens in the same way."""
    return bind_run(session, make_token_feeds(session, input_ids))


def make_tokens(seq_len: int, vocab_size: int) -> np.ndarray:
    """Return one random sequence ``(1, seq)``, the same at every call."""
    return np.random.default_rng(seq_len).integers(0, vocab_size, (1, seq_len))


def compute_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference as a fraction of the largest expected magnitude."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def check_agreement(what: str, actual: np.ndarray, expected: np.ndarray, reference: str, tolerance: float) -> None:
    """Check that what is about to be timed computes the same as its reference.

    Raises:
        RuntimeError: The error is larger than this fraction of the output's scale.
    """
    error = compute_error(actual, expected)
    if not error <= tolerance:
        raise RuntimeError(f"{what} differs from {reference} by {error:.2g} of the output's scale")


@dataclass(frozen=True)
class LengthCost:
    """What one length costs."""

    seq_len: int
    time_us: float  # per token, the median of the runs
    runs: int
    peak_mib: float  # highest resident memory while running, less what the open session held before
    others_share: float  # of the processors, what other processes took meanwhile

    @property
    def token_kib(self) -> float:
        """KiB of peak memory per token."""
        return self.peak_mib * 1024 / self.seq_len


def measure_length(path: Path, seq_len: int, vocab_size: int, repeats: int, mem_pattern: bool) -> LengthCost:
    """Time one length in this process and read its peak memory, output included."""
    session = open_session(path, enable_mem_pattern=mem_pattern)
    feeds = make_token_feeds(session, make_tokens(seq_len, vocab_size))
    return _measure(lambda: bind_run(session, feeds), seq_len, repeats)


def measure_segments(path: Path, seq_len: int, vocab_size: int, repeats: int) -> LengthCost:
    """Time one text that is read in segments."""
    tokens = make_tokens(seq_len, vocab_size)[0]
    with Generator.open(Bundle.open(path.parent), threads=THREADS) as generator:

        def warm_up() -> Callable[[], object]:
            generator.prefill([tokens[:WARM_UP_LEN]])
            return lambda: generator.prefill([tokens])

        return _measure(warm_up, seq_len, repeats)


def _measure(prepare: Callable[[], Callable[[], object]], seq_len: int, repeats: int) -> LengthCost:
    """Time the function that ``prepare`` returns, and read how far both drive the memory of this process."""
    before_mib = restart_peak()
    run = prepare()
    activity = Activity.read()
    started, times_ms = time.perf_counter(), list[float]()
    while len(times_ms) < repeats and (len(times_ms) < 2 or time.perf_counter() - started < MAX_SECONDS_PER_LENGTH):
        times_ms.append(time_run(run))
    others_share = activity.compute_others_share()
    time_us, peak_mib = statistics.median(times_ms) * 1e3 / seq_len, read_peak_mib() - before_mib
    return LengthCost(seq_len, time_us, len(times_ms), peak_mib, others_share)
