"""The model families that can be exported, as data."""

from __future__ import annotations

from dataclasses import dataclass

from flash_export.models.registry import FAMILIES
from flash_export.strict_json import format_json


@dataclass(frozen=True)
class FamilyEntry:
    """What a user has to know of a family.

    Attributes:
        name: What ``--family`` calls it.
        title: What its models are.
        source: Library whose checkpoints are read.
        task: What its models are for.
        asked: Arguments of that library which weights cannot tell.
        lengths: Which lengths a model takes.
    """

    name: str
    title: str
    source: str
    task: str
    asked: tuple[str, ...]
    lengths: str


@dataclass(frozen=True)
class Catalogue:
    """All families."""

    families: tuple[FamilyEntry, ...]

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json(self)


def list_families() -> Catalogue:
    """Return what there is to know of each family."""
    return Catalogue(
        tuple(
            FamilyEntry(name, one.title, one.source, one.task, one.asked, one.lengths) for name, one in FAMILIES.items()
        )
    )
