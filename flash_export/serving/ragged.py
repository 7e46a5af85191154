"""Whole inputs of any lengths in one batch: padded in the server, each answered as if it were alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.config import FORWARD
from flash_export.data.batch import Batch, cut_output
from flash_export.errors import BundleError, InputError
from flash_export.interface import BATCH, SEQ
from flash_export.runtime.inputs import check_axis, check_content
from flash_export.serving.folder import check_precision
from flash_export.serving.model_config import describe_batching, describe_tensor, has_batch_axis
from flash_export.serving.options import RAGGED
from flash_export.serving.python_model import describe_python_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.interface import Interface
    from flash_export.serving.folder import ModelFolder
    from flash_export.serving.options import TritonOptions

    Arrays = Mapping[str, np.ndarray]

_WIDEST = 2  # the most times that a row of a run is as long as another, in chunks


def describe_ragged(bundle: Bundle, name: str, options: TritonOptions) -> ModelFolder:
    """Describe a model that batches requests of different lengths.

    Raises:
        BundleError: A padded row does not give what it gives alone.
    """
    graph, interface = bundle.get_graph(), bundle.manifest.interface
    _check_padding(bundle)
    check_precision(bundle, graph, options)
    limit = graph.axes[BATCH].max
    config = {
        "name": name,
        "max_batch_size": min(limit, options.max_batch or limit),
        "input": [
            {**describe_tensor(spec, graph.axes, is_batched=True), "allow_ragged_batch": True}
            for spec in graph.inputs
            if spec.name in {one.name for one in interface.inputs}
        ],
        "output": [describe_tensor(spec, graph.axes, is_batched=True) for spec in graph.outputs],
        "dynamic_batching": describe_batching(options),
    }
    return describe_python_model(bundle, FORWARD, config, options, form=RAGGED, module="ragged_model", settings={})


def _check_padding(bundle: Bundle) -> None:
    """Check that rows may be padded.

    Raises:
        BundleError: They may not, and what to do.
    """
    graph, interface = bundle.get_graph(), bundle.manifest.interface
    cure = "use --form forward, which batches requests of equal lengths"
    if interface.padding != "exact":
        raise BundleError(f"{bundle.path} holds a model whose answers padding changes ({interface.padding}); {cure}")
    if interface.fixed_len is not None:
        raise BundleError(f"{bundle.path} holds a model of one length, {interface.fixed_len}; {cure}")
    if interface.needs_mask and not graph.has_mask:
        raise BundleError(
            f"{graph.file} takes no mask, without which padding changes answers; export again with --mask"
        )
    if not has_batch_axis(graph):
        raise BundleError(f"{graph.file} takes one batch alone; export it again without --batch")


def check_request(graph: GraphSpec, interface: Interface, arrays: Arrays) -> None:
    """Check one request before it is joined with others, whose answers it must not spoil.

    Raises:
        InputError: It has no rows, its length is out of range, or a value is.
    """
    for spec in interface.inputs:
        values = arrays[spec.name]
        for axis in (BATCH, SEQ):
            if (index := spec.find_axis(axis)) is not None:
                check_axis(axis, values.shape[index], graph.axes[axis])
        if spec.content is not None:
            check_content(spec.name, values, spec.content)
    lengths = {arrays[spec.name].shape[spec.shape.index(SEQ)] for spec in interface.inputs if SEQ in spec.shape}
    if len(lengths) != 1:
        raise InputError(f"the inputs have {sorted(lengths)} {interface.unit}; give them one length")


def make_example(graph: GraphSpec, interface: Interface) -> dict[str, np.ndarray]:
    """Return a request of one row of zeros and one chunk, or what the graph takes next to it."""
    bounds = graph.axes[SEQ]
    sizes = {BATCH: 1, SEQ: min(max(interface.chunk_size, bounds.min), bounds.max)}
    return {
        spec.name: np.zeros([one if isinstance(one, int) else sizes[one] for one in spec.shape], spec.dtype)
        for spec in interface.inputs
    }


def group_requests(interface: Interface, requests: Sequence[Arrays]) -> list[list[int]]:
    """Return which requests are run together: none is padded to more than twice its length in chunks."""
    sizes = [-(-_find_length(interface, one) // interface.chunk_size) for one in requests]
    groups: list[list[int]] = []
    for index in sorted(range(len(requests)), key=lambda index: sizes[index]):
        if groups and sizes[index] <= _WIDEST * sizes[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def join_requests(interface: Interface, requests: Sequence[Arrays]) -> Batch:
    """Return the rows of requests as one batch, padded with zeros on the right."""
    seq_len = max(_find_length(interface, one) for one in requests)
    arrays = {
        spec.name: np.concatenate(
            [_pad(one[spec.name], spec.find_axis(SEQ), seq_len) for one in requests], axis=spec.shape.index(BATCH)
        )
        for spec in interface.inputs
    }
    lengths = [_find_length(interface, one) for one in requests for _ in range(_count_rows(interface, one))]
    return Batch(interface, arrays, np.array(lengths, np.int64), seq_len)


def split_outputs(interface: Interface, requests: Sequence[Arrays], outputs: Arrays) -> list[dict[str, np.ndarray]]:
    """Return what each request is answered with: its rows, without their padding."""
    ends = np.cumsum([_count_rows(interface, one) for one in requests])
    answers: list[dict[str, np.ndarray]] = [{} for _ in requests]
    for spec in interface.outputs:
        parts = np.split(outputs[spec.name], ends[:-1], axis=spec.shape.index(BATCH))
        for answer, request, values in zip(answers, requests, parts, strict=True):
            answer[spec.name] = cut_output(values, spec, _find_length(interface, request))
    return answers


def _find_length(interface: Interface, arrays: Arrays) -> int:
    spec = next(spec for spec in interface.inputs if SEQ in spec.shape)
    return int(arrays[spec.name].shape[spec.shape.index(SEQ)])


def _count_rows(interface: Interface, arrays: Arrays) -> int:
    spec = interface.inputs[0]
    return int(arrays[spec.name].shape[spec.shape.index(BATCH)])


def _pad(values: np.ndarray, axis: int | None, seq_len: int) -> np.ndarray:
    if axis is None:
        return values
    return np.pad(values, [(0, seq_len - size if one == axis else 0) for one, size in enumerate(values.shape)])
