"""How a bundle is served by Triton."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flash_export.config import FORWARD, MAX_BATCH, MAX_THREADS, check_count
from flash_export.errors import ConfigError
from flash_export.suggest import list_known

RAGGED, SEQUENCE, GENERATE = "ragged", "sequence", "generate"
FORMS = (FORWARD, RAGGED, SEQUENCE, GENERATE)
DEVICES = CPU, GPU = "cpu", "gpu"
MAX_VERSION = (1 << 31) - 1
MAX_INSTANCES = 1024
DEFAULT_MAX_WAITING = 256
DEFAULT_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class TritonOptions:
    """How a bundle is served by Triton.

    Attributes:
        forms: What is written: ``forward``, ``ragged``, ``sequence``, ``generate``; a model each.
        name: Name of the forward model, with which those of the others begin; None: that of the bundle's folder.
        version: Number of the version; None: the one after the newest that is there.
        keep: How many versions stay on disk; the newest alone is served. With two, a server that still runs the one
            before finds it where it was.
        device: ``cpu`` or ``gpu``.
        engine: Name of a TensorRT engine of the bundle that the forward model runs; None: onnxruntime runs the graph.
        instances: Copies of each model that run at the same time.
        threads: Threads of one operator on the CPU; None: what onnxruntime chooses.
        max_batch: Most rows of a run; None: as many as the graph takes.
        queue_delay_us: How long a request waits for others to be batched with, in microseconds.
        slots: Most texts that are written, or kept by the server, at a time; None: 16, and to write as many as the
            graphs take, if they take fewer.
        max_waiting: Most requests that wait; further ones are refused.
        timeout_s: After so many seconds without a request a sequence is forgotten; ``generate`` ends a request that
            takes longer, waiting included.
        force: Whether a version that is there, or a ``config.pbtxt`` that was changed by hand, is written over.
    """

    forms: tuple[str, ...] = (FORWARD,)
    name: str | None = None
    version: int | None = None
    keep: int = 2
    device: str = CPU
    engine: str | None = None
    instances: int = 1
    threads: int | None = None
    max_batch: int | None = None
    queue_delay_us: int = 0
    slots: int | None = None
    max_waiting: int = DEFAULT_MAX_WAITING
    timeout_s: float = DEFAULT_TIMEOUT_S
    force: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for form in self.forms:
            if form not in FORMS:
                raise ConfigError(f"form={form!r} is unknown; use one of {list_known(form, FORMS)}")
        if not self.forms or len(set(self.forms)) < len(self.forms):
            raise ConfigError(f"forms={', '.join(self.forms)} is not usable; name one or more, each once")
        if self.device not in DEVICES:
            raise ConfigError(f"device={self.device!r} is unknown; use one of {list_known(self.device, DEVICES)}")
        for name, most in (
            ("version", MAX_VERSION),
            ("keep", MAX_VERSION),
            ("instances", MAX_INSTANCES),
            ("threads", MAX_THREADS),
            ("max_batch", MAX_BATCH),
            ("slots", MAX_BATCH),
            ("max_waiting", MAX_BATCH),
        ):
            check_count(name, getattr(self, name), most)
        if not 0 <= self.queue_delay_us <= MAX_BATCH:
            raise ConfigError(f"queue_delay_us={self.queue_delay_us} is not usable; use 0 to {MAX_BATCH}")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ConfigError(f"timeout_s={self.timeout_s} is not usable; use more than 0 seconds")
        if self.engine is not None and FORWARD not in self.forms:
            raise ConfigError(f"engine={self.engine} is of the form {FORWARD} alone; add --form {FORWARD}")
