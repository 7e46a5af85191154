"""What each layer of a TensorRT network computes, in PyTorch on the CPU, and in the dtype that the layer has.

Source: the operator reference of TensorRT 10 and 11 and the docstrings of its Python API. Every function takes the
layer, cast to its class, and its inputs, and returns its one output. ``ITensor`` shapes of -1 are never asked: sizes
come from the tensors that are there. Inputs on the ``meta`` device, which have a shape and no values, give an output of
that kind, as long as the sizes that a layer reads from its inputs have values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Inputs = Sequence[Tensor | None]


class UnknownLayerError(Exception):
    """A layer, or a way of using it, that nothing here computes."""


def _list_sizes(x: Tensor) -> list[int]:
    """Return the entries of a shape tensor."""
    return [int(entry) for entry in x.reshape(-1).tolist()]


def _pick(x: Tensor | None) -> Tensor:
    """Return an input that a layer has to have."""
    if x is None:
        raise UnknownLayerError("lacks an input")
    return x


def _get(inputs: Inputs, index: int) -> Tensor | None:
    """Return an input that a layer may have."""
    return inputs[index] if index < len(inputs) else None


def _read_axes(mask: int, rank: int) -> list[int]:
    """Return the axes of a bit mask."""
    return [axis for axis in range(rank) if mask >> axis & 1]


def _compute_shape(layer: Any, inputs: Inputs) -> Tensor:
    return torch.tensor(list(_pick(inputs[0]).shape), dtype=torch.int64)


def _keep(layer: Any, inputs: Inputs) -> Tensor:
    """Return the input; whoever called converts it to the dtype of the output."""
    return _pick(inputs[0])


def _compute_slice(layer: Any, inputs: Inputs) -> Tensor:
    """Take ``size`` entries from ``start`` on; what lies beyond the ends is what the mode says."""
    x, mode = _pick(inputs[0]), layer.mode.name

    def read(index: int, name: str) -> list[int]:
        given = _get(inputs, index)
        if given is None:  # asked for in any other case, TensorRT warns
            own = getattr(layer, name)
            return [] if own is None else list(own)
        return _list_sizes(given)

    starts, sizes, strides = read(1, "start"), read(2, "shape"), read(3, "stride")
    axes = read(5, "axes") or range(x.ndim)
    fill = _get(inputs, 4)
    fill = torch.zeros((), dtype=x.dtype) if fill is None else fill
    for axis, start, size, stride in zip(axes, starts, sizes, strides, strict=True):
        x = _slice_axis(x, axis % x.ndim, (start, size, stride), mode, fill)
    return x


def _slice_axis(x: Tensor, axis: int, place: tuple[int, int, int], mode: str, fill: Tensor) -> Tensor:
    start, size, stride = place
    length = x.shape[axis]
    if size < 0:
        raise RuntimeError(f"a slice of {size} entries of an axis of {length}")
    if (start, size, stride) == (0, length, 1):
        return x
    last = start + (size - 1) * stride
    inside = size == 0 or (0 <= start < length and 0 <= last < length)
    if inside and stride == 1:
        return x.narrow(axis, min(start, length), size)
    index = start + stride * torch.arange(size)
    if inside:
        return x.index_select(axis, index)
    if mode == "STRICT_BOUNDS":
        raise RuntimeError(f"a slice from {start} to {last} of an axis of {length}")
    if mode == "WRAP":
        return x.index_select(axis, index % length)
    if mode == "REFLECT":
        period = max(2 * (length - 1), 1)
        index = index % period
        return x.index_select(axis, torch.minimum(index, period - index))
    taken = x.index_select(axis, index.clamp(0, length - 1)) if length else x.new_zeros(_resize(x.shape, axis, size))
    if mode == "CLAMP":
        return taken
    outside = ((index < 0) | (index >= length)).reshape([-1 if one == axis else 1 for one in range(x.ndim)])
    return torch.where(outside, fill.reshape(()).to(x.dtype), taken)


def _resize(shape: Sequence[int], axis: int, size: int) -> list[int]:
    return [size if one == axis else old for one, old in enumerate(shape)]


def _compute_shuffle(layer: Any, inputs: Inputs) -> Tensor:
    """Transpose, reshape, transpose; 0 keeps a size unless it is told to be one, -1 takes what is left."""
    x = _pick(inputs[0])
    x = x.permute(_read_permutation(layer.first_transpose, x.ndim))
    shape = _get(inputs, 1)
    sizes = layer.reshape_dims if shape is None else _list_sizes(shape)  # None: it only transposes
    if sizes is not None:
        sizes = list(sizes)
        if layer.zero_is_placeholder:
            sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
        x = x.reshape(sizes)
    return x.permute(_read_permutation(layer.second_transpose, x.ndim))


def _read_permutation(permutation: Any, rank: int) -> list[int]:
    order = list(permutation)[:rank]
    return order if sorted(order) == list(range(rank)) else list(range(rank))


def _compute_gather(layer: Any, inputs: Inputs) -> Tensor:
    x, index, mode = _pick(inputs[0]), _pick(inputs[1]).long(), layer.mode.name
    if mode == "ELEMENT":
        return x.gather(layer.axis, index + (index < 0) * x.shape[layer.axis])
    batch = layer.num_elementwise_dims
    if mode == "ND":
        if batch:
            raise UnknownLayerError(f"gathers ND with {batch} axes in common")
        return x[tuple(index.unbind(-1))]
    axis = layer.axis % x.ndim
    if batch:
        raise UnknownLayerError(f"gathers with {batch} axes in common")
    size = x.shape[axis]
    index = index + (index < 0) * size
    if index.numel() and not index.is_meta and not 0 <= int(index.min()) <= int(index.max()) < size:
        raise RuntimeError(f"an index from {int(index.min())} to {int(index.max())} of an axis of {size}")
    taken = x.index_select(axis, index.reshape(-1))
    return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _compute_scatter(layer: Any, inputs: Inputs) -> Tensor:
    x, index, updates = _pick(inputs[0]).clone(), _pick(inputs[1]).long(), _pick(inputs[2])
    if layer.mode.name == "ELEMENT":
        axis = layer.axis % x.ndim
        return x.scatter(axis, index + (index < 0) * x.shape[axis], updates)
    x[tuple(index.unbind(-1))] = updates
    return x


def _concatenate(layer: Any, inputs: Inputs) -> Tensor:
    return torch.cat([_pick(x) for x in inputs], dim=layer.axis)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


_ELEMENTWISE: dict[str, Callable[[Any, Any], Any]] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "SUB": torch.sub,
    "DIV": _divide,
    "POW": torch.pow,
    "FLOOR_DIV": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}


def _compute_elementwise(layer: Any, inputs: Inputs) -> Tensor:
    a, b = _pick(inputs[0]), _pick(inputs[1])
    if a.ndim != b.ndim:
        raise RuntimeError(f"combines {a.ndim} axes with {b.ndim}")
    return _look_up(_ELEMENTWISE, layer.op)(a, b)


_UNARY_NAMES = (
    *("exp", "log", "sqrt", "abs", "neg", "erf", "ceil", "floor", "round", "sign", "isnan", "isinf"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
)
_UNARY: dict[str, Callable[[Any], Any]] = {
    **{name.upper(): getattr(torch, name) for name in _UNARY_NAMES},
    "RECIP": torch.reciprocal,
    "NOT": torch.logical_not,
}


def _compute_unary(layer: Any, inputs: Inputs) -> Tensor:
    return _look_up(_UNARY, layer.op)(_pick(inputs[0]))


_ACTIVATIONS: dict[str, Callable[[Any, float, float], Any]] = {
    "RELU": lambda x, a, b: x.clamp(min=0),
    "SIGMOID": lambda x, a, b: torch.sigmoid(x),
    "TANH": lambda x, a, b: torch.tanh(x),
    "LEAKY_RELU": lambda x, a, b: torch.where(x >= 0, x, a * x),
    "ELU": lambda x, a, b: torch.where(x >= 0, x, a * torch.expm1(x)),
    "SOFTSIGN": lambda x, a, b: F.softsign(x),
    "SOFTPLUS": lambda x, a, b: a * F.softplus(b * x),
    "CLIP": lambda x, a, b: x.clamp(_round_bound(x, a), _round_bound(x, b)),
    "HARD_SIGMOID": lambda x, a, b: (a * x + b).clamp(0, 1),
    "SCALED_TANH": lambda x, a, b: a * torch.tanh(b * x),
    "THRESHOLDED_RELU": lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)),
    "GELU_ERF": lambda x, a, b: F.gelu(x),
    "GELU_TANH": lambda x, a, b: F.gelu(x, approximate="tanh"),
}


def _round_bound(x: Tensor, bound: float) -> float | int:
    """Return a bound of a clip, whole and in range where the values are."""
    if x.is_floating_point():
        return bound
    limits = torch.iinfo(x.dtype)
    return int(max(limits.min, min(limits.max, bound)))


def compute_activation(kind: Any, layer: Any, inputs: Inputs) -> Tensor:
    """Apply a function of this kind; a layer that is cast to its class hides its kind behind that of layers."""
    return _look_up(_ACTIVATIONS, kind)(_pick(inputs[0]), layer.alpha, layer.beta)


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "SUM": torch.sum,
    "AVG": torch.mean,
    "MAX": torch.amax,
    "MIN": torch.amin,
}


def _compute_reduce(layer: Any, inputs: Inputs) -> Tensor:
    x = _pick(inputs[0])
    axes = _read_axes(layer.axes, x.ndim)
    if layer.op.name == "PROD":
        for axis in reversed(axes):
            x = x.prod(dim=axis, keepdim=layer.keep_dims)
        return x
    return _look_up(_REDUCTIONS, layer.op)(x, dim=axes, keepdim=layer.keep_dims)


def _multiply(layer: Any, inputs: Inputs) -> Tensor:
    """Multiply matrices, the axes before the last two broadcast; half ones are summed in fp32, as GPUs do."""
    first, second = layer.op0.name, layer.op1.name
    a, b = (_widen(_pick(x)) for x in inputs)
    a = a.unsqueeze(-2) if first == "VECTOR" else a
    b = b.unsqueeze(-1) if second == "VECTOR" else b
    product = (a.mT if first == "TRANSPOSE" else a) @ (b.mT if second == "TRANSPOSE" else b)
    product = product.squeeze(-1) if second == "VECTOR" else product
    return product.squeeze(-1 if second == "VECTOR" else -2) if first == "VECTOR" else product


def _accumulate(layer: Any, inputs: Inputs) -> Tensor:
    x = _pick(inputs[0])
    axis = int(_pick(inputs[1]))
    if layer.op.name != "SUM":
        raise UnknownLayerError(f"accumulates {layer.op.name}")
    if layer.reverse:
        x = x.flip(axis)
    summed = x.cumsum(axis)
    if layer.exclusive:
        summed = torch.cat(
            (torch.zeros_like(summed.narrow(axis, 0, 1)), summed.narrow(axis, 0, x.shape[axis] - 1)), axis
        )
    return summed.flip(axis) if layer.reverse else summed


def _fill(layer: Any, inputs: Inputs) -> Tensor:
    """Count up along the axes: ``alpha`` and ``beta`` for each step of an axis."""
    if layer.operation.name != "LINSPACE":
        raise UnknownLayerError(f"fills with {layer.operation.name}")
    shape, alpha, beta = (_get(inputs, index) for index in range(3))
    sizes = list(layer.shape) if shape is None else _list_sizes(shape)
    alpha = torch.tensor(layer.alpha) if alpha is None else alpha
    beta = torch.tensor(layer.beta) if beta is None else beta
    filled = alpha.reshape(()).expand(sizes).clone()
    for axis, step in enumerate(beta.reshape(-1)):
        steps = torch.arange(sizes[axis], dtype=step.dtype) * step
        filled = filled + steps.reshape([-1 if one == axis else 1 for one in range(len(sizes))])
    return filled


def _squeeze(layer: Any, inputs: Inputs) -> Tensor:
    x = _pick(inputs[0])
    given = _get(inputs, 1)
    if given is None:
        return x.squeeze()
    axes = {axis % x.ndim for axis in _list_sizes(given)}
    if wrong := [axis for axis in axes if x.shape[axis] != 1]:
        raise RuntimeError(f"takes away axis {wrong[0]}, which has size {x.shape[wrong[0]]}")
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])


def _unsqueeze(layer: Any, inputs: Inputs) -> Tensor:
    x = _pick(inputs[0])
    added = _list_sizes(_pick(inputs[1]))
    rank = x.ndim + len(added)
    places, sizes = {axis % rank for axis in added}, iter(x.shape)
    return x.reshape([1 if axis in places else next(sizes) for axis in range(rank)])


def _normalise(layer: Any, inputs: Inputs) -> Tensor:
    """Take mean and scale off, in fp32 where that is the layer's precision."""
    x, scale, bias = (_pick(one) for one in inputs[:3])
    if layer.num_groups != 1:
        raise UnknownLayerError(f"norms {layer.num_groups} groups")
    axes = _read_axes(layer.axes, x.ndim)
    wide = x.float()
    centred = wide - wide.mean(dim=axes, keepdim=True)
    normed = centred / (centred.square().mean(dim=axes, keepdim=True) + layer.epsilon).sqrt()
    return (normed * scale.float() + bias.float()).to(x.dtype)


def _compute_softmax(layer: Any, inputs: Inputs) -> Tensor:
    x = _pick(inputs[0])
    (axis,) = _read_axes(layer.axes, x.ndim)
    return x.softmax(dim=axis)


def _attend(layer: Any, inputs: Inputs) -> Tensor:
    """Compute an attention, which enters the network by one layer and leaves it by another that does nothing.

    Queries carry the scale already. Scores and weights are fp32, as in the fused kernels, which keep neither.
    """
    attention = layer.attention
    q, k, v = (_widen(_pick(x)) for x in inputs[:3])
    for form in (attention.query_form.name, attention.key_value_form.name):
        if form != "PADDED_BHND":
            raise UnknownLayerError(f"attends to {form}")
    if attention.key_value_lengths is not None or attention.normalization_quantize_scale is not None:
        raise UnknownLayerError("attends with lengths or scales of quantization")
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT
    if attention.mask is not None:
        mask = _pick(inputs[3])
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if (kind := attention.causal_kind.name) != "NONE":
        first = 1 if kind == "UPPER_LEFT" else 1 + k.shape[2] - q.shape[2]
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(first)
        scores = scores.masked_fill(later, -torch.inf)
    weights = scores.softmax(dim=-1) if attention.norm_op.name == "SOFTMAX" else scores
    return weights @ v


def _select(layer: Any, inputs: Inputs) -> Tensor:
    return torch.where(_pick(inputs[0]), _pick(inputs[1]), _pick(inputs[2]))


def _apply_prelu(layer: Any, inputs: Inputs) -> Tensor:
    x, slope = _pick(inputs[0]), _pick(inputs[1])
    return torch.where(x >= 0, x, slope * x)


def _pad(layer: Any, inputs: Inputs) -> Tensor:
    return _pad_planes(_pick(inputs[0]), layer.pre_padding_nd, layer.post_padding_nd)


def _pad_planes(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Put zeros around the last axes, or cut where there are fewer than none."""
    pairs = zip(reversed(tuple(before)), reversed(tuple(after)), strict=True)
    return F.pad(x, [side for sides in pairs for side in sides])


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _convolve(layer: Any, inputs: Inputs) -> Tensor:
    x, kernel, bias = _read_convolution(layer, inputs, transposed=False)
    padded = _pad_planes(x, layer.pre_padding, layer.post_padding)
    return _CONVOLUTIONS[x.ndim - 2](
        padded, kernel, bias, tuple(layer.stride_nd), 0, tuple(layer.dilation_nd), layer.num_groups
    )


def _convolve_transposed(layer: Any, inputs: Inputs) -> Tensor:
    x, kernel, bias = _read_convolution(layer, inputs, transposed=True)
    before, after = list(layer.pre_padding), list(layer.post_padding)
    full = _TRANSPOSED[len(before)](
        x, kernel, bias, tuple(layer.stride_nd), 0, 0, layer.num_groups, tuple(layer.dilation_nd)
    )
    for axis, (start, end) in enumerate(zip(before, after, strict=True), 2):
        full = full.narrow(axis, start, full.shape[axis] - start - end)
    return full


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _read_convolution(layer: Any, inputs: Inputs, *, transposed: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return input, kernel and bias; the last two may be weights of the layer or tensors."""
    if not layer.padding_mode.name.startswith("EXPLICIT"):
        raise UnknownLayerError(f"pads as {layer.padding_mode.name}")
    x = _widen(_pick(inputs[0]))
    size, groups = list(layer.kernel_size_nd), layer.num_groups
    maps, channels = layer.num_output_maps, x.shape[1]
    kernel, bias = _get(inputs, 1), _get(inputs, 2)
    if kernel is None:
        shape = [channels, maps // groups, *size] if transposed else [maps, channels // groups, *size]
        kernel = to_tensor(layer.kernel).reshape(shape)
    if bias is None and (own := to_tensor(layer.bias)).numel():
        bias = own.reshape(-1)
    return x, _widen(kernel).to(x.device), None if bias is None else _widen(bias).to(x.device)


def _quantize(layer: Any, inputs: Inputs) -> Tensor:
    x, scale = _pick(inputs[0]), _pick(inputs[1])
    steps = x.float() / _spread_scale(layer, x, scale).float()
    kind = layer.get_output(0).dtype.name
    if kind == "INT8":
        return steps.round().clamp(-128, 127).to(torch.int8)
    if kind == "FP8":
        return steps.clamp(-448, 448).to(torch.float8_e4m3fn)
    raise UnknownLayerError(f"quantizes to {kind}")


def _dequantize(layer: Any, inputs: Inputs) -> Tensor:
    x, scale = _pick(inputs[0]), _pick(inputs[1])
    return (x.float() * _spread_scale(layer, x, scale).float()).to(scale.dtype)


def _spread_scale(layer: Any, x: Tensor, scale: Tensor) -> Tensor:
    """Return the scale of each entry: of all, of a channel, or of a block along an axis."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim == 1:
        return scale.reshape([-1 if axis == layer.axis % x.ndim else 1 for axis in range(x.ndim)])
    for axis, (size, count) in enumerate(zip(x.shape, scale.shape, strict=True)):
        if count not in (1, size):
            scale = scale.repeat_interleave(size // count, dim=axis)
    return scale


def to_tensor(weights: Any) -> Tensor:
    """Return weights of a network, which arrive as a numpy array, or as bytes where numpy has no such dtype."""
    array = np.asarray(weights)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _look_up(known: dict[str, Any], operation: Any) -> Any:
    if operation.name not in known:
        raise UnknownLayerError(f"computes {operation.name}")
    return known[operation.name]


# By the name of the layer's type: its class, and what computes it.
LAYERS: dict[str, tuple[str, Callable[[Any, Inputs], Tensor]]] = {
    "SHAPE": ("IShapeLayer", _compute_shape),
    "CAST": ("ICastLayer", _keep),
    "IDENTITY": ("IIdentityLayer", _keep),
    "SLICE": ("ISliceLayer", _compute_slice),
    "SHUFFLE": ("IShuffleLayer", _compute_shuffle),
    "GATHER": ("IGatherLayer", _compute_gather),
    "SCATTER": ("IScatterLayer", _compute_scatter),
    "CONCATENATION": ("IConcatenationLayer", _concatenate),
    "ELEMENTWISE": ("IElementWiseLayer", _compute_elementwise),
    "UNARY": ("IUnaryLayer", _compute_unary),
    "REDUCE": ("IReduceLayer", _compute_reduce),
    "MATRIX_MULTIPLY": ("IMatrixMultiplyLayer", _multiply),
    "CUMULATIVE": ("ICumulativeLayer", _accumulate),
    "FILL": ("IFillLayer", _fill),
    "SQUEEZE": ("ISqueezeLayer", _squeeze),
    "UNSQUEEZE": ("IUnsqueezeLayer", _unsqueeze),
    "NORMALIZATION": ("INormalizationLayer", _normalise),
    "SOFTMAX": ("ISoftMaxLayer", _compute_softmax),
    "ATTENTION_INPUT": ("IAttentionInputLayer", _attend),
    "ATTENTION_OUTPUT": ("IAttentionOutputLayer", _keep),
    "SELECT": ("ISelectLayer", _select),
    "PARAMETRIC_RELU": ("IParametricReLULayer", _apply_prelu),
    "PADDING": ("IPaddingLayer", _pad),
    "CONVOLUTION": ("IConvolutionLayer", _convolve),
    "DECONVOLUTION": ("IDeconvolutionLayer", _convolve_transposed),
    "QUANTIZE": ("IQuantizeLayer", _quantize),
    "DEQUANTIZE": ("IDequantizeLayer", _dequantize),
}
