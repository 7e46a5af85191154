"""onnxruntime sessions as the benchmarks need them: two threads, which sleep between runs, outputs bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

THREADS = 2
_LOG_ERROR = 3


def open_session(model: Path | bytes, **options: Any) -> Any:
    """Open a file, or its bytes, on the CPU, with further attributes of onnxruntime's ``SessionOptions``.

    Threads spin during a run, but not after it: they would steal others' cores.
    """
    settings = onnxruntime.SessionOptions()
    for name, value in {"intra_op_num_threads": THREADS, "log_severity_level": _LOG_ERROR, **options}.items():
        setattr(settings, name, value)
    for entry in ("intra_op.allow_spinning", "force_spinning_stop", "x64quantprecision"):
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
