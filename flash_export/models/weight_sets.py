"""Finding the model's tensors among everything that training leaves in a file.

Frameworks put them under keys and prefixes of their own, beside optimizer states, averaged copies and teachers. A
*weight set* is what lies under one prefix that ends in a tensor which every model of the family has once, the anchor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.names import list_names, show_name

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

MAX_DEPTH = 64
MAX_ENTRIES = 200_000
MAX_SETS = 100
MAX_EXPANDED_BYTES = 1 << 30
# What wrappers insert into the names of a model's own tensors.
INSERTED_NAMES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Keys and prefixes that say nothing but "here is the model".
PLAIN_NAMES = frozenset(
    ("state_dict", "model_state_dict", "model", "module", "net", "network", "transformer", "weights", "params")
)


@dataclass(frozen=True)
class WeightSet:
    """The tensors of one model in a file.

    Attributes:
        key: Dotted path to them in the file; empty for the top level.
        tensors: By their names below that path.
        keys: Paths of all weight sets of the file.
        left_out: What else holds tensors, with their number.
    """

    key: str
    tensors: dict[str, Tensor]
    keys: tuple[str, ...]
    left_out: dict[str, int]


def select_weight_set(values: object, anchors: Sequence[str], path: Path, key: str | None = None) -> WeightSet:
    """Return the weights of the model in what a file holds.

    Args:
        values: What the file holds: tensors by name, in nested mappings and sequences.
        anchors: Names of a tensor that every model of the family has once; the first that the file has counts.
        path: The file, for messages.
        key: Path of the wanted weights, or of a part of the file with one weight set in it; None for the set whose path
            holds plain names such as ``model`` alone.

    Raises:
        CheckpointError: The file holds no tensors, or is nested too deeply.
        ConfigError: There is no weight set under ``key``, or several sets and none is the plain one.
    """
    tensors = _name_tensors(values, path)
    keys = next(filter(None, (_list_keys(tensors, anchor) for anchor in anchors)), [])
    if not keys:  # whoever matches the names says what is missing
        if key is not None:
            raise ConfigError(
                f"{path} has no {' or '.join(anchors)} under any key; leave --weights-key out, or give another file"
            )
        return WeightSet("", tensors, ("",), {})
    if len(keys) > MAX_SETS:
        raise CheckpointError(f"{path} holds {len(keys)} sets of weights, more than {MAX_SETS}; save the model alone")
    chosen = _choose_key(keys, key, path)
    longest_first = sorted(keys, key=len, reverse=True)
    sets: dict[str, dict[str, Tensor]] = {candidate: {} for candidate in keys}
    left_out: dict[str, int] = {}
    for name, tensor in tensors.items():
        owner = _find_owner(name, longest_first)
        if owner is None:
            part = _name_part(name, chosen)
            left_out[part] = left_out.get(part, 0) + 1
        else:
            sets[owner][name[len(owner) + bool(owner) :]] = tensor
    return WeightSet(chosen, sets[chosen], tuple(keys), left_out)


def check_plain(tensors: Mapping[str, Tensor], path: Path, indices: Container[str] = ()) -> None:
    """Refuse tensors that are no arrays of floating-point values, and views that would fill the memory.

    Args:
        tensors: The model's, by name.
        path: The file, for messages.
        indices: Names of those that hold whole numbers.

    Raises:
        CheckpointError: A tensor is nested, quantized, sparse, without values, or of another kind of number; or tensors
            repeat what is stored until they are far larger than the file.
    """
    expanded_bytes = 0
    for name, tensor in tensors.items():
        if tensor.is_nested:
            kind = "a nested tensor"
        elif tensor.is_quantized:
            kind = f"quantized, {tensor.dtype}"
        elif tensor.layout is not torch.strided or tensor.is_meta:
            kind = f"{tensor.device} device, {tensor.layout}"
        elif type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            kind = type(tensor).__name__
        elif not tensor.is_floating_point() and name not in indices:
            raise CheckpointError(f"{path}: {show_name(name)} is {tensor.dtype}; weights must be floating point")
        else:
            expanded_bytes += max(0, tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes())
            continue
        raise CheckpointError(
            f"{path}: {show_name(name)} holds no plain values ({kind}); save it as a dense tensor with data"
        )
    if expanded_bytes > MAX_EXPANDED_BYTES:
        raise CheckpointError(
            f"{path} holds views that repeat its numbers, {expanded_bytes:,} bytes beyond what is stored; "
            "save the tensors with .contiguous()"
        )


def _name_tensors(values: object, path: Path) -> dict[str, Tensor]:
    """Return the tensors of nested mappings and sequences by dotted names, without what wrappers insert."""
    if not isinstance(values, Mapping) or not values:
        raise CheckpointError(f"{path} holds {type(values).__name__}, not a state dict; save model.state_dict()")
    tensors: dict[str, Tensor] = {}
    for parts, tensor in _walk(values, path):
        name = ".".join(part for part in ".".join(parts).split(".") if part not in INSERTED_NAMES)
        if name in tensors:
            raise CheckpointError(f"{path} has two tensors {show_name(name)}; save model.state_dict() of one model")
        tensors[name] = tensor
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; save model.state_dict()")
    return tensors


def _walk(values: object, path: Path) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yield every tensor with the keys that lead to it, in the file's order."""
    pending: list[tuple[tuple[str, ...], object]] = [((), values)]
    barren: set[int] = set()  # ids of containers without tensors, which may be large and shared
    entries = 0
    while pending:
        parts, value = pending.pop()
        if isinstance(value, torch.Tensor):
            yield parts, value
            continue
        if id(value) in barren:
            continue
        items = value.items() if isinstance(value, Mapping) else enumerate(cast("Sequence[object]", value))
        children = [(name, child) for name, child in items if isinstance(child, Mapping | list | tuple | torch.Tensor)]
        if not children:
            barren.add(id(value))
        entries += len(children)
        if len(parts) >= MAX_DEPTH or entries > MAX_ENTRIES:
            raise CheckpointError(
                f"{path} is nested more than {MAX_DEPTH} deep, or has more than {MAX_ENTRIES:,} entries; "
                "save model.state_dict() alone"
            )
        pending.extend(((*parts, str(name)), child) for name, child in reversed(children))


def _list_keys(tensors: Mapping[str, Tensor], anchor: str) -> list[str]:
    """Return the paths to all tensors of that name, in order."""
    return sorted(
        name.removesuffix(anchor).removesuffix(".") for name in tensors if name == anchor or name.endswith(f".{anchor}")
    )


def _choose_key(keys: Sequence[str], wanted: str | None, path: Path) -> str:
    if wanted is None:
        matches = keys if len(keys) == 1 else [key for key in keys if not key or PLAIN_NAMES.issuperset(key.split("."))]
    else:
        wanted = wanted.strip(".")
        matches = [key for key in keys if key == wanted] or [key for key in keys if key.startswith(f"{wanted}.")]
    if len(matches) == 1:
        return matches[0]
    where = f" under {show_name(wanted)!r}" if wanted else ""
    listed = list_names([key or "'' (the top level)" for key in matches or keys])
    count = f"{len(matches or keys)} sets of" if matches or wanted is None else "no"
    raise ConfigError(f"{path} holds {count} weights{where}; choose with --weights-key one of {listed}")


def _find_owner(name: str, keys: Sequence[str]) -> str | None:
    """Return the longest key that a tensor's name lies under; ``keys`` has the longest first."""
    return next((key for key in keys if not key or name.startswith(f"{key}.")), None)


def _name_part(name: str, key: str) -> str:
    """Return the shortest path to a tensor that leads away from ``key``."""
    parts, common = name.split("."), key.split(".")
    count = next((index for index, part in enumerate(parts) if [part] != common[index : index + 1]), len(parts))
    return ".".join(parts[: count + 1])
