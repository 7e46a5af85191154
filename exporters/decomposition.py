"""Tracing once, not twice: PyTorch's composite operators that lowered models use, translated as they are.

``torch.onnx`` traces a traced program a second time, which takes as long as the first, to decompose the operators that
have no translation. Those of our models have one: the exporter's, or the one here. So there is nothing to decompose.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.export import ExportedProgram

op: Any = opset18


@contextmanager
def decompose_only_if_needed() -> Iterator[None]:
    """Let the exporter leave programs as they are whose operators all have a translation."""
    decompose = torch.export.ExportedProgram.run_decompositions

    def run(program: ExportedProgram, table: Mapping[Any, Any] | None = None) -> ExportedProgram:
        return decompose(program, table) if table is None or _needs(program, table) else program

    with mock.patch.object(torch.export.ExportedProgram, "run_decompositions", run):
        yield


def _needs(program: ExportedProgram, table: Mapping[Any, Any]) -> bool:
    """Tell whether an operator of a program is to be decomposed, or writes into its input."""
    targets = {node.target for module in program.graph_module.modules() for node in module.graph.nodes}
    operators = [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    return any(target in table or target._schema.is_mutable for target in operators)


def _translate_mt(x: Any) -> Any:
    *rest, rows, columns = range(len(x.shape))
    return op.Transpose(x, perm=[*rest, columns, rows])


def _translate_to(
    x: Any, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: int | None = None
) -> Any:
    return op.Cast(x, to=dtype)


def _translate_narrow(x: Any, dim: int, start: int, length: Any) -> Any:
    axis, first = op.Constant(value_ints=[dim]), op.Constant(value_ints=[start])
    if isinstance(length, int):
        return op.Slice(x, first, op.Constant(value_ints=[start + length]), axis)
    size = op.Reshape(length, op.Constant(value_ints=[-1]))
    return op.Slice(x, first, op.Add(size, first) if start else size, axis)


def _translate_chunk(x: Any, chunks: int, dim: int = 0) -> Any:
    size = x.shape[dim]
    if not isinstance(size, int) or size % chunks:
        raise NotImplementedError(f"chunk takes an axis apart that has {size} in {chunks} parts; use split")
    return op.Split(x, axis=dim, num_outputs=chunks)


def _translate_rsub(x: Any, other: float, alpha: float = 1) -> Any:
    if alpha != 1:
        raise NotImplementedError(f"rsub with alpha={alpha}; multiply before")
    return op.Sub(op.Constant(value=ir.tensor(np.array(other, x.dtype.numpy()))), x)


def _translate_conv_transpose2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1),
) -> Any:
    return op.ConvTranspose(
        x,
        weight,
        bias,
        strides=list(stride),
        pads=[*padding, *padding],
        output_padding=list(output_padding),
        group=groups,
        dilations=list(dilation),
    )


COMPOSITES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.mT.default: _translate_mt,
    torch.ops.aten.to.dtype: _translate_to,
    torch.ops.aten.narrow.default: _translate_narrow,
    torch.ops.aten.chunk.default: _translate_chunk,
    torch.ops.aten.rsub.Scalar: _translate_rsub,
    torch.ops.aten.conv_transpose2d.input: _translate_conv_transpose2d,
}
