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


def make_options(threads: int = THREADS) -> Any:
    """Return session options whose threads spin during a run, but not after it: they would steal others' cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _LOG_ERROR
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def open_session(model: Path | bytes, options: Any = None) -> Any:
    """Open a graph from a file or from its bytes on the CPU."""
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options or make_options(), providers=["CPUExecutionProvider"])


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
