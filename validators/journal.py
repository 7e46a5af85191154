"""The journal of a validation: finished steps on disk, so that an interrupted run can go on where it stopped.

One JSON object a line, flushed to the disk step by step. The first line says what is validated, and how; a journal of
anything else is refused. The last line may be torn by a kill, and is then done again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flash_export.errors import BundleError, ConfigError
from flash_export.files import write_file
from flash_export.reading import MAX_JSON_BYTES, parse_json, read_bytes
from flash_export.typed_json import build
from flash_export.validators.footprint import Footprint  # noqa: TC001 (its fields are read as a schema)
from flash_export.validators.results import HeldoutScores, Row  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import TypeVar

    T = TypeVar("T")


@dataclass(frozen=True)
class StepResult:
    """What one step of a validation found.

    Attributes:
        rows: Its rows.
        scores: Scores by backend; only the held-out data has them.
        footprint: What a backend costs; only the step that measures it has one.
    """

    rows: tuple[Row, ...] = ()
    scores: HeldoutScores | None = None
    footprint: Footprint | None = None


@dataclass(frozen=True)
class _Line:
    """A line of the file after the first."""

    label: str
    result: StepResult


@dataclass(frozen=True)
class _Head:
    """The first line: a hash of what is validated, and how."""

    key: str


class Journal:
    """Finished steps by label, in memory and, if there is a file, on disk."""

    def __init__(self, path: Path | None, key: Mapping[str, Any], *, resume: bool = False) -> None:
        """Start a journal, or go on with one.

        Args:
            path: File; None: keep it in memory alone.
            key: What is validated, and how, as JSON values.
            resume: Read what is there, if it has the same key; without it, what is there is dropped.

        Raises:
            ConfigError: The journal to go on with belongs to another validation.
            BundleError: The file cannot be read or written.
        """
        self._path = path
        self._steps: dict[str, StepResult] = {}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        if path is None:
            return
        kept = self._read(path, digest) if resume and path.exists() else []
        write_file(path, "".join(f"{line}\n" for line in (json.dumps({"key": digest}), *kept)).encode())
        self._file = path.stat()

    def find(self, label: str) -> StepResult | None:
        """Return what a step found, if it is finished."""
        return self._steps.get(label)

    def record(self, label: str, result: StepResult) -> None:
        """Keep what a step found; on disk only as long as no other validation has put its own journal there.

        Raises:
            BundleError: The disk is full.
        """
        self._steps[label] = result
        if self._path is None:
            return
        line = json.dumps({"label": label, "result": asdict(result)}, allow_nan=False)
        try:
            with self._path.open("r+", encoding="utf-8") as stream:
                if os.path.samestat(os.fstat(stream.fileno()), self._file):
                    stream.seek(0, os.SEEK_END)
                    stream.write(f"{line}\n")
                    stream.flush()
                    os.fsync(stream.fileno())
        except FileNotFoundError:
            return
        except OSError as error:
            raise BundleError(f"cannot write {self._path}: {error.strerror}; free some space, then --resume") from error

    def _read(self, path: Path, digest: str) -> list[str]:
        """Take over the finished steps of a file, and return their lines."""
        text = read_bytes(path, BundleError, "leave --resume out to start anew", max_bytes=MAX_JSON_BYTES)
        lines = text.decode("utf-8", errors="replace").splitlines()
        if not lines or _parse(lines[0], _Head) != _Head(digest):
            raise ConfigError(
                f"{path} is of a validation with other options, another bundle or another version; give the same "
                "options as then, or leave --resume out to start anew"
            )
        kept = []
        for line in lines[1:]:
            if found := _parse(line, _Line):
                self._steps[found.label] = found.result
                kept.append(line)
        return kept


def _parse(line: str, kind: type[T]) -> T | None:
    """Return what a line says; None for one that a kill tore, or that is damaged: its step is done again."""
    try:
        return build(parse_json(line), kind)
    except ValueError:
        return None
