"""Where the weights of a bundle come from, which an export of the bundle carries on; of older formats too.

Graphs, engines and reports of an older format are not read. Its weights are what they were, so that one command makes a
bundle of this format of it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flash_export.bundle.bundle import HELDOUT_FILES, MANIFEST_FILE, SETTINGS_FILE, Bundle
from flash_export.bundle.manifest import OLD_FORMAT_VERSIONS, PROVENANCE
from flash_export.bundle.plain_tree import check_plain_tree
from flash_export.config import CONFIG_FILE, WEIGHTS_FILE
from flash_export.errors import BundleError
from flash_export.files import check_utf8, hash_file
from flash_export.models.import_record import ImportRecord
from flash_export.reading import build_record, read_json_object
from flash_export.typed_json import show

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MEND = "export its checkpoint again"


@dataclass(frozen=True)
class Origin:
    """What a manifest of any format says of the weights.

    Attributes:
        checkpoint: Source name, format and sha256.
        files: sha256 of the files of the export, by name.
        imported: What was assumed, chosen and repaired when the weights were read.
    """

    checkpoint: dict[str, str]
    files: dict[str, str]
    imported: ImportRecord = field(default_factory=ImportRecord)

    def __post_init__(self) -> None:
        """Check that it says where the weights come from, and has a hash of them."""
        if missing := [name for name in PROVENANCE if name not in self.checkpoint]:
            raise ValueError(f"checkpoint.{missing[0]} is missing")
        if unhashed := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in self.files]:
            raise ValueError(f"it has no sha256 of {unhashed[0]}")


def read_origin(folder: Path) -> Origin | None:
    """Return where the weights of a bundle come from, after checking that they are unchanged; None if it is no bundle.

    Raises:
        BundleError: It is damaged, or what would be read of it was changed.
        ConfigError: The path is no UTF-8.
    """
    check_utf8(folder)
    if not (folder / MANIFEST_FILE).is_file():
        return None
    check_plain_tree(folder)
    path = folder / MANIFEST_FILE
    values = read_json_object(path, BundleError, _MEND)
    if values.get("format_version") not in OLD_FORMAT_VERSIONS:
        manifest = Bundle.open(folder).manifest
        return Origin(manifest.checkpoint, manifest.files, manifest.imported)
    asked = {name: values[name] for name in ("checkpoint", "files", "imported") if name in values}
    origin = build_record(path, asked, Origin, BundleError, _MEND)
    for name in (CONFIG_FILE, WEIGHTS_FILE, SETTINGS_FILE, *HELDOUT_FILES):
        is_there = (folder / name).is_file()
        if is_there != (name in origin.files) or (is_there and hash_file(folder / name) != origin.files[name]):
            raise BundleError(f"{folder / name} is not what {MANIFEST_FILE} says; {_MEND}")
    return origin


def describe_old_format(folder: Path, values: Mapping[str, Any]) -> str:
    """Return the line that says how to make a bundle of this format of one of an older format."""
    precision = _find_precision(values)
    half = f" --precision {precision}" if precision in ("fp16", "bf16") else ""
    command = f"flash-export onnx {shlex.quote(str(folder))} -o {shlex.quote(f'{folder}-new')}{half}"
    again = ", and quantize that again" if precision not in (None, "fp32", "fp16", "bf16") else ""
    return (
        f"{folder} has the older format {show(values.get('format_version'))}; export it again from the weights it "
        f"holds: {command}{again}"
    )


def _find_precision(values: Mapping[str, Any]) -> str | None:
    found: Any = values
    for name in ("graphs", "forward", "precision"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None
