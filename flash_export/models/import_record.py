"""What was decided while the weights of a bundle were read: kept in its manifest, shown with every result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flash_export.names import list_names, show_name

if TYPE_CHECKING:
    from collections.abc import Collection

TOP_LEVEL = "the top level"


@dataclass(frozen=True)
class ImportRecord:
    """How a checkpoint was understood where it could have been understood otherwise.

    Attributes:
        library_version: Release of the source library that was named; None if none was.
        assumed: Arguments that neither the weights nor the user told, by the library's names. Model and graph share
            them, so that no validation finds a wrong one.
        weights_key: Path, within the file, of the weights that were taken; empty for the whole file.
        weight_sets: Paths of all weights that could have been taken.
        notes: What else was done, or could not be checked, a sentence each.
    """

    library_version: str | None = None
    assumed: dict[str, bool | int | float | str] = field(default_factory=dict)
    weights_key: str = ""
    weight_sets: tuple[str, ...] = ("",)
    notes: tuple[str, ...] = ()

    def forget(self, arguments: Collection[str]) -> ImportRecord:
        """Return the record without assumptions about arguments that have been told since."""
        assumed = {name: value for name, value in self.assumed.items() if name not in arguments}
        return replace(self, assumed=assumed)

    @property
    def assumptions(self) -> str:
        """``causal false, library_version 0.1.9``; empty if nothing was assumed."""
        return ", ".join(f"{name} {str(value).lower()}" for name, value in self.assumed.items())

    def describe_choice(self) -> str | None:
        """Say which weights of the file were taken; None if it holds no others."""
        if len(self.weight_sets) == 1:
            return None
        others = list_names([name or TOP_LEVEL for name in self.weight_sets if name != self.weights_key])
        taken = show_name(self.weights_key) or TOP_LEVEL
        return f"{taken}, one of several in the file; --weights-key takes another: {others}"
