"""Which files an ONNX graph takes its weights from, so that it can be refused before a runtime opens them.

The names stand in the graph, and runtimes differ in what they accept: a path out of the folder, or, in onnxruntime, an
address in memory. They are found without parsing the weights, and wherever ONNX may hold a tensor.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from flash_export.errors import BundleError
from flash_export.protobuf_fields import LENGTH_DELIMITED, list_fields

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

_SHOWN_CHARACTERS = 80
_LOCATION = b"location"
_KEY, _VALUE = 1, 2
# What a field number means in each message of onnx.proto, as far as it leads to a tensor's external data.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def check_external_data(path: Path, allowed: Container[str] | None = None) -> None:
    """Refuse a graph that takes weights from elsewhere.

    Args:
        path: The ONNX file.
        allowed: Files in its folder that weights may be in; None: all in and below that folder.

    Raises:
        BundleError: It names another file, or has a name by which onnxruntime takes it for something else than ONNX.
    """
    if path.suffix == ".ort":
        raise BundleError(f"{path} is in onnxruntime's own format, which is not read; give an .onnx file")
    for name in sorted(list_external_files(path)):
        is_allowed = name in allowed if allowed is not None else _is_below(name)
        if not is_allowed:
            raise BundleError(
                f"{path} takes weights from {name[:_SHOWN_CHARACTERS]!r}, which is not part of it and not opened; "
                "export it again"
            )


def _is_below(name: str) -> bool:
    return not os.path.isabs(name) and name.split(os.sep)[0] != os.pardir


def list_external_files(path: Path) -> set[str]:
    """Return the names of the files that a graph's tensors are in, as they stand in the graph but for ``./``.

    What comes after the first damage is not seen, and no parser of protobuf gets beyond it either: whoever opens the
    graph says what is wrong with it.
    """
    found: set[str] = set()
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:  # which cannot be mapped
            return found
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            open_messages = [("model", 0, len(data))]
            while open_messages:
                kind, start, end = open_messages.pop()
                try:
                    if kind == "entry":
                        found |= _read_location(data, start, end)
                        continue
                    for field in list_fields(data, start, end):
                        child = _MESSAGES[kind].get(field.tag >> 3)
                        if child and field.tag & 7 == LENGTH_DELIMITED:
                            open_messages.append((child, field.content, field.stop))
                except ValueError:
                    continue
    return found


def _read_location(data: mmap.mmap, start: int, end: int) -> set[str]:
    """Return the file that an entry of ``external_data`` names; the last of a repeated field counts."""
    fields = {field.tag >> 3: data[field.content : field.stop] for field in list_fields(data, start, end)}
    if fields.get(_KEY) != _LOCATION:
        return set()
    return {os.path.normpath(fields.get(_VALUE, b"").decode("utf-8", "replace"))}
