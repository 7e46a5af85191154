"""What a study found, put together from its tasks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from flash_export.strict_json import format_json
from flash_export.study.comparing import WRITTEN_OUT
from flash_export.study.config import StudyConfig  # noqa: TC001 (its fields are read as a schema)
from flash_export.study.systems import SYSTEMS
from flash_export.study.tasks import Task
from flash_export.typed_json import build
from flash_export.validators.environment import describe_machine
from flash_export.validators.latency import Percentiles  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flash_export.study.config import ModelEntry
    from flash_export.study.schedule import Found

# Parameters of two systems may differ by so much.
EQUAL_SIZE = 0.02


@dataclass(frozen=True)
class Check:
    """How the validation of a model on a backend ended.

    Attributes:
        backend: Where.
        is_right: Whether all checks passed, none of them skipped.
        passed: Checks that passed.
        failed: Checks that failed.
        skipped: Checks that were not done.
        longest: Longest length that passed.
        largest_multiple: Largest error, as a multiple of what PyTorch's own is in the same precision.
        reason: The first that did not pass, or why there was no validation.
    """

    backend: str
    is_right: bool
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    longest: int = 0
    largest_multiple: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class LengthTime:
    """How long a batch of one takes at a length.

    Attributes:
        backend: Where.
        seq_len: Tokens.
        latency_ms: Of a run; None: not measured.
        memory_bytes: Opening the graph and running it, in a fresh process.
        form: Which of the forms of the graph was the fastest: attention written out, or fused into one operator.
        random_weights: Whether the weights were not trained, because the length is beyond what the trained model takes.
        reason: Why it was not measured.
    """

    backend: str
    seq_len: int
    latency_ms: Percentiles | None = None
    memory_bytes: int | None = None
    random_weights: bool = False
    form: str = WRITTEN_OUT
    reason: str | None = None

    @property
    def ms_per_token(self) -> float | None:
        """Median a token."""
        return None if self.latency_ms is None else self.latency_ms.p50 / self.seq_len


@dataclass(frozen=True)
class StudyEntry:
    """What was found of one model.

    Attributes:
        name: Its name in the study.
        system: Its system.
        title: What that is called.
        objective: ``causal`` or ``masked``.
        seed: Seed of the training.
        parameters: Trained parameters, those that grow with the longest sequence left out.
        growing_parameters: Those.
        tokens_seen: Tokens that it was trained on; None: not known.
        training_sha256: Hash of the text that they are from.
        recipe_sha256: Hash of how it was trained: steps, lengths of windows, learning rate, precision.
        bytes: The exported graph with its weights.
        checks: How it was validated.
        quality: Bits a byte of held-out text, by backend and length.
        times: How long it takes.
        reasons: What could not be done, and why.
    """

    name: str
    system: str
    title: str
    objective: str
    seed: int
    parameters: int | None = None
    growing_parameters: int | None = None
    tokens_seen: int | None = None
    training_sha256: str | None = None
    recipe_sha256: str | None = None
    bytes: int | None = None
    checks: tuple[Check, ...] = ()
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    times: tuple[LengthTime, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether it was validated, and passed everywhere."""
        return bool(self.checks) and all(check.is_right for check in self.checks)

    def find_time(self, backend: str, seq_len: int) -> LengthTime | None:
        """Return what was timed at a length."""
        return next((one for one in self.times if (one.backend, one.seq_len) == (backend, seq_len)), None)

    def find_quality(self, backend: str, seq_len: int) -> float | None:
        """Return the bits a byte at a length."""
        return self.quality.get(backend, {}).get(str(seq_len))


@dataclass(frozen=True)
class Crossing:
    """From which length on one model is faster than another.

    Attributes:
        backend: Where.
        faster: The model that is faster from there on.
        slower: The other one.
        seq_len: The length, between two that were measured, on a straight line of both logarithms; None: at no length
            that was measured is it slower.
        low: The longest measured length at which it is not yet faster; None where it always is.
        high: The next one.
    """

    backend: str
    faster: str
    slower: str
    seq_len: int | None
    low: int | None
    high: int


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        config: What was compared.
        entries: The models.
        crossings: Where FLASH overtakes the others, or they it.
        equal_size: Whether parameters differ by no more than 2 %.
        equal_tokens: Whether all saw as many tokens of the same text, in the same way.
        environment: Where it ran.
    """

    config: StudyConfig
    entries: tuple[StudyEntry, ...]
    crossings: tuple[Crossing, ...]
    equal_size: bool
    equal_tokens: bool
    environment: dict[str, str | int]

    @property
    def complete(self) -> bool:
        """Whether every model was validated, scored and timed."""
        return all(entry.is_right and not entry.reasons for entry in self.entries)

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json({"complete": self.complete, **asdict(self)})


def collect_study(config: StudyConfig, found: Mapping[str, Found]) -> Study:
    """Put together what tasks found."""
    entries = tuple(_collect_entry(config, model, found) for model in config.models)
    sizes = [entry.parameters for entry in entries if entry.parameters is not None]
    seen = {(entry.tokens_seen, entry.training_sha256, entry.recipe_sha256) for entry in entries}
    return Study(
        config,
        entries,
        tuple(_find_crossings(config, entries)),
        equal_size=bool(sizes) and max(sizes) <= (1 + EQUAL_SIZE) * min(sizes),
        equal_tokens=len(seen) == 1 and None not in next(iter(seen)),
        environment=describe_machine(config.threads),
    )


def _collect_entry(config: StudyConfig, model: ModelEntry, found: Mapping[str, Found]) -> StudyEntry:
    reasons: dict[str, str] = {}

    def read(task: Task) -> dict[str, Any] | None:
        result = found.get(task.name)
        if result is None or result.value is None:
            if result is not None and result.reason is not None:
                reasons.setdefault(result.reason, f"{task.describe()}: {result.reason}")  # what it stopped is no news
            return None
        return result.value

    read(Task("train", model.name))
    exported = read(Task("export", model.name)) or {}
    checks, quality, times = [], {}, []
    for backend in dict.fromkeys((*config.backends, *config.validated_on)):
        check = read(Task("validate", model.name, backend))
        if check is not None:
            checks.append(build({"backend": backend, **check}, Check))
    for backend in config.backends:
        if (score := read(Task("score", model.name, backend))) is not None:
            quality[backend] = dict(score["bits_per_byte"])
        for seq_len in config.latency_lens:
            timed = read(Task("time", model.name, backend, seq_len))
            if timed is not None:
                times.append(build({"backend": backend, "seq_len": seq_len, **timed}, LengthTime))
                if timed["reason"]:
                    reasons[f"{backend}, {seq_len}"] = f"{seq_len} tokens on {backend}: {timed['reason']}"
    kept = ("parameters", "growing_parameters", "tokens_seen", "training_sha256", "recipe_sha256", "bytes")
    return StudyEntry(
        name=model.name,
        system=model.system,
        title=SYSTEMS[model.system].title,
        objective=model.objective,
        seed=model.seed,
        **{name: exported.get(name) for name in kept},
        checks=tuple(checks),
        quality=quality,
        times=tuple(times),
        reasons=tuple(reasons.values()),
    )


def _find_crossings(config: StudyConfig, entries: Sequence[StudyEntry]) -> Iterator[Crossing]:
    """Yield where two models change places, for FLASH and each other one of its objective."""
    right = [entry for entry in entries if entry.is_right]
    for one in right:
        others = [other for other in right if other.objective == one.objective and other.system != one.system]
        if one.system != "flash" or one.seed != min(entry.seed for entry in right if entry.system == "flash"):
            continue
        for other in others:
            for backend in config.backends:
                yield from find_crossings(backend, one, other, config.latency_lens)


def find_crossings(backend: str, one: StudyEntry, other: StudyEntry, seq_lens: Sequence[int]) -> Iterator[Crossing]:
    """Yield the lengths from which on one of two models is the faster, shortest first.

    The first says who is the faster at the shortest length.
    """
    ratios = []
    for seq_len in seq_lens:
        mine, its = one.find_time(backend, seq_len), other.find_time(backend, seq_len)
        if mine is not None and its is not None and mine.latency_ms is not None and its.latency_ms is not None:
            ratios.append((seq_len, math.log(mine.latency_ms.p50 / its.latency_ms.p50)))
    if not ratios:
        return

    def name(ratio: float) -> tuple[str, str]:
        return (one.name, other.name) if ratio <= 0 else (other.name, one.name)

    yield Crossing(backend, *name(ratios[0][1]), seq_len=None, low=None, high=ratios[0][0])
    for (low, before), (high, after) in pairwise(ratios):
        if (before <= 0) != (after <= 0):
            place = math.log(low) + math.log(high / low) * before / (before - after)
            yield Crossing(backend, *name(after), seq_len=round(math.exp(place)), low=low, high=high)
