"""Checking the inputs of a run against a graph's contract, before any backend sees them.

A backend's own message about a wrong shape names internals and no cure; some faults (a length beyond the declared
range, a negative id, which counts from the end of the vocabulary) it would not complain of at all.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from flash_export.errors import InputError
from flash_export.interface import PAST, SEQ, Lengths, Positions, TokenIds

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor

    from flash_export.bundle.manifest import AxisRange, GraphSpec
    from flash_export.interface import Content, TensorSpec


def check_inputs(graph: GraphSpec, inputs: Mapping[str, np.ndarray]) -> None:
    """Check names, dtypes, ranks, fixed sizes, values, and that equal axes have equal sizes within their range.

    Raises:
        InputError: What was got, what the graph takes, and what to do about it.
    """
    sizes = check_shapes(graph, inputs)
    for spec in graph.inputs:
        if spec.content is not None:
            check_content(spec.name, inputs[spec.name], spec.content, sizes)


def check_shapes(graph: GraphSpec, inputs: Mapping[str, np.ndarray | Tensor]) -> dict[str, int]:
    """Check the same but values, which a GPU would have to be waited for; return the sizes of the symbolic axes.

    Raises:
        InputError: What was got, what the graph takes, and what to do about it.
    """
    check_input_names(inputs, required=[spec.name for spec in graph.inputs])
    sizes: dict[str, tuple[int, str]] = {}
    for spec in graph.inputs:
        _check_tensor(spec, inputs[spec.name], sizes, graph.axes)
    return {axis: size for axis, (size, _) in sizes.items()}


def check_input_names(inputs: Mapping[str, object], *, required: list[str], optional: tuple[str, ...] = ()) -> None:
    """Check that every required input is there, and nothing unknown.

    Raises:
        InputError: Which input is missing or unknown.
    """
    known = ", ".join([*required, *optional])
    if missing := [name for name in required if name not in inputs]:
        raise InputError(f"input {', '.join(missing)} is missing; the model takes {known}, so add it")
    if unknown := sorted(set(inputs) - set(required) - set(optional)):
        raise InputError(f"input {', '.join(unknown)} is unknown; the model takes {known}, so leave it out")


def check_axis(name: str, value: int, axis: AxisRange) -> None:
    """Check one size against the range of its symbolic axis.

    Raises:
        InputError: The size lies outside of the range.
    """
    if value < axis.min:
        raise InputError(f"{_label_axis(name)}={value} is below the graph's minimum {axis.min}; use {axis.min} or more")
    if value > axis.max:
        raise InputError(
            f"{_label_axis(name)}={value} exceeds the graph's maximum {axis.max}; use at most {axis.max}, or export "
            f"again with --max-{_name_option(name)} {value}"
        )


def check_content(name: str, value: np.ndarray, content: Content, sizes: Mapping[str, int] | None = None) -> None:
    """Check that token ids are of the vocabulary, lengths within the row, and positions where a run may start.

    Other inputs may have any values.

    Args:
        name: What messages call it.
        value: The input.
        content: What it holds.
        sizes: Of the symbolic axes, where one of them is the largest value.

    Raises:
        InputError: A value lies outside.
    """
    if isinstance(content, TokenIds):
        least, most, cure = 0, content.vocab_size - 1, "encode the text with the model's own tokenizer"
    elif isinstance(content, Lengths):
        most = content.max if isinstance(content.max, int) else (sizes or {}).get(content.max, sys.maxsize)
        least, cure = content.min, "give the number of real tokens of each row"
    elif isinstance(content, Positions):
        _check_positions(name, value, content.step)
        return
    else:
        return
    if value.size and (int(value.min()) < least or int(value.max()) > most):
        odd = int(value.min() if value.min() < least else value.max())
        raise InputError(f"{name} has {odd}, {content.kind} are {least} to {most} here; {cure}")


def _check_positions(name: str, value: np.ndarray, step: int) -> None:
    odd = value[(value < 0) | (value % step != 0)]
    if odd.size:
        cure = "start again from the prompt" if odd[0] < 0 else "read on to there by the graph extend or decode"
        raise InputError(f"{name} has {odd[0]}, the graph starts at multiples of {step} from 0 on; {cure}")


def _check_tensor(
    spec: TensorSpec, value: np.ndarray | Tensor, sizes: dict[str, tuple[int, str]], axes: Mapping[str, AxisRange]
) -> None:
    if (dtype := str(value.dtype).removeprefix("torch.")) != spec.dtype:
        cure = "astype" if hasattr(value, "astype") else "to"
        raise InputError(f"{spec.name} has dtype {dtype}, the graph takes {spec.dtype}; convert it with {cure}")
    if value.ndim != len(spec.shape):
        wanted = ", ".join(map(str, spec.shape))
        raise InputError(
            f"{spec.name} has rank {value.ndim}, shape {tuple(value.shape)}; the graph takes rank {len(spec.shape)} "
            f"({wanted}), so reshape it"
        )
    for axis, size in zip(spec.shape, value.shape, strict=True):
        if isinstance(axis, int):
            if size != axis:
                raise InputError(
                    f"{spec.name} has shape {tuple(value.shape)}, the graph takes {spec.shape}; reshape it"
                )
            continue
        if axis in axes:
            check_axis(axis, size, axes[axis])
        known, owner = sizes.setdefault(axis, (size, spec.name))
        if size != known:
            raise InputError(
                f"{spec.name} has {_label_axis(axis)}={size} but {owner} has {known}; give them the same shape"
            )


def _name_option(axis: str) -> str:
    """Return the end of the option that an axis is as long as."""
    return _label_axis(SEQ if axis == PAST else axis).replace("_", "-")


def _label_axis(name: str) -> str:
    """Return the name that users know an axis by."""
    return {"seq": "seq_len"}.get(name, name)
