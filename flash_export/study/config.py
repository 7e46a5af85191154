"""What a study compares: systems, their size, how they are trained, where and at which lengths they are timed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from flash_export.errors import ConfigError
from flash_export.reading import read_json_object
from flash_export.runtime.backends import ORT_CPU, get_backend
from flash_export.study.systems import SYSTEMS, Size, get_system
from flash_export.study.training import TrainingPlan
from flash_export.typed_json import build

if TYPE_CHECKING:
    from pathlib import Path

CAUSAL, MASKED = "causal", "masked"
# Trained with both objectives by default, beside the systems that have no causal form: what these are compared with.
BOTH_WAYS = ("transformer", "gau", "flash")
_CURE = "mend it; docs/study.md has the fields"


@dataclass(frozen=True)
class ModelEntry:
    """A model of the study.

    Attributes:
        system: What it is.
        objective: ``causal`` or ``masked``.
        seed: Of its training.
        checkpoint: Folder of a trained model of this system, from the folder of the config; None: it is trained.
    """

    system: str
    objective: Literal["causal", "masked"] = "causal"
    seed: int = 0
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        """Check that there is such a system.

        Raises:
            ValueError: There is none, or it has no causal form.
        """
        try:
            system = get_system(self.system)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.objective == CAUSAL and system.is_bidirectional_only:
            raise ValueError(f"system {self.system} has no causal form, wanted the objective masked")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, wanted 0 or more")

    @property
    def name(self) -> str:
        """What folders and results call it."""
        return f"{self.system}-{self.objective}-{self.seed}"

    @property
    def is_causal(self) -> bool:
        """Whether it predicts the next token."""
        return self.objective == CAUSAL


@dataclass(frozen=True)
class Training:
    """How every model is trained: for as many tokens, in the same order.

    Attributes:
        tokens: Tokens to see.
        batch_tokens: Tokens of a step.
        lengths: Lengths of windows, each with its share of the tokens.
        learning_rate: Peak of the schedule.
        precision: ``fp32``, or ``bf16`` by PyTorch's autocast.
        text: A text file, from the folder of the config, whose end is held out; None: Python's standard library.
        heldout_bytes: Size of the text that quality is measured on.
    """

    tokens: int = 8_192_000
    batch_tokens: int = 2048
    lengths: dict[str, float] = field(default_factory=lambda: {"512": 0.75, "2048": 0.25})
    learning_rate: float = 2e-3
    precision: Literal["fp32", "bf16"] = "fp32"
    text: str | None = None
    heldout_bytes: int = 65 * 1024

    def __post_init__(self) -> None:
        """Check that it can be a plan.

        Raises:
            ValueError: It cannot.
        """
        for name, value in (("tokens", self.tokens), ("heldout_bytes", self.heldout_bytes)):
            if value < 1:
                raise ValueError(f"{name} is {value}, wanted 1 or more")
        if not all(length.isdecimal() and int(length) > 1 for length in self.lengths):
            raise ValueError(f"lengths are {', '.join(self.lengths)}, wanted whole numbers above 1")
        try:
            self.make_plan("causal", 0)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @property
    def longest(self) -> int:
        """Longest window."""
        return max(map(int, self.lengths))

    def make_plan(self, objective: Literal["causal", "masked"], seed: int) -> TrainingPlan:
        """Return the plan of a model."""
        lengths = tuple((int(length), share) for length, share in self.lengths.items())
        return TrainingPlan(
            objective,
            self.tokens,
            self.batch_tokens,
            lengths,
            learning_rate=self.learning_rate,
            seed=seed,
            precision=self.precision,
        )


def list_default_models() -> tuple[ModelEntry, ...]:
    """Return every system, causal where it can be, and masked those that others are compared with."""
    causal = [ModelEntry(name) for name, system in SYSTEMS.items() if not system.is_bidirectional_only]
    masked = [
        ModelEntry(name, "masked")
        for name, system in SYSTEMS.items()
        if system.is_bidirectional_only or name in BOTH_WAYS
    ]
    return (*causal, *masked)


@dataclass(frozen=True)
class StudyConfig:
    """A study.

    Attributes:
        kind: What it is.
        models: What is compared; by default every system.
        size: What all have in common.
        training: How they are trained.
        max_seq_len: Longest length of the exported graphs, over which they are validated.
        plan: ``quick`` or ``full``, see ``flash-export validate``.
        quality_lens: Lengths at which held-out text is scored.
        latency_lens: Lengths at which a batch of one is timed. Beyond ``max_seq_len`` weights are random.
        backends: Where the exported models are validated, scored and timed.
        validated_on: Further backends that they are only validated on.
        threads: Threads of one operator on the CPU.
        budget_s: Seconds to time one model at one length.
    """

    kind: Literal["study"] = "study"
    models: tuple[ModelEntry, ...] = field(default_factory=list_default_models)
    size: Size = field(default_factory=Size)
    training: Training = field(default_factory=Training)
    max_seq_len: int = 4096
    plan: Literal["quick", "full"] = "quick"
    quality_lens: tuple[int, ...] = (512, 2048)
    latency_lens: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384)
    backends: tuple[str, ...] = (ORT_CPU,)
    validated_on: tuple[str, ...] = ()
    threads: int = 1
    budget_s: float = 3.0

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            ValueError: Something does not.
        """
        names = [entry.name for entry in self.models]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"models are {', '.join(names) or 'none'}, wanted one or more, each once")
        for name, lengths in (("quality_lens", self.quality_lens), ("latency_lens", self.latency_lens)):
            if not lengths or min(lengths) < 2 or list(lengths) != sorted(set(lengths)):
                raise ValueError(f"{name} are {', '.join(map(str, lengths))}, wanted ascending lengths above 1")
        longest = max(*self.quality_lens, self.training.longest)
        if longest > self.max_seq_len:
            raise ValueError(
                f"max_seq_len is {self.max_seq_len}, wanted {longest}, the longest that is trained or scored"
            )
        if not self.backends:
            raise ValueError("backends is empty, wanted one at least")
        try:
            for name in (*self.backends, *self.validated_on):
                get_backend(name)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.threads < 1 or not 0 < self.budget_s < float("inf"):
            raise ValueError("threads and budget_s are to be above 0")

    def get_model(self, name: str) -> ModelEntry:
        """Return the model called ``name``."""
        return next(entry for entry in self.models if entry.name == name)


def read_config(path: Path) -> StudyConfig:
    """Read the JSON file of a study.

    Raises:
        ConfigError: It cannot be read, or says what cannot be.
    """
    try:
        return build(read_json_object(path, ConfigError, _CURE), StudyConfig)
    except ValueError as mismatch:
        raise ConfigError(f"{path} is not usable: {mismatch}; {_CURE}") from mismatch
