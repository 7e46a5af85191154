"""What the lowering of a family says of itself, beside the module that it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from flash_export.config import ATTENTION_OPSET, FORWARD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.interface import TensorSpec
    from flash_export.models.base import ModelConfig


class LoweredModel(nn.Module):
    """Base of the export forms.

    ``forward`` takes the inputs of the forward graph by position, in the order of the interface and then the mask, if
    the graph has one, and returns its outputs.

    Attributes:
        config: Config of the reference model.
        orders: By the name that marks use, where index i of the graph stands in the reference.
    """

    config: ModelConfig
    orders: Mapping[str, list[int]]


@dataclass(frozen=True)
class StateGraphs:
    """The graphs that carry the past from run to run.

    Attributes:
        modules: By the name of the graph, what makes its module of the lowered model.
        describe: Returns the tensors of the state, given config, size or name of the batch axis, prefix of the names,
            and precision.
    """

    modules: Mapping[str, Callable[[Any], nn.Module]]
    describe: Callable[[Any, int | str, str, Precision], tuple[TensorSpec, ...]]


@dataclass(frozen=True)
class Lowering:
    """How a family is written for export.

    Attributes:
        model: Makes the export form of a reference model in a precision.
        growing: Values of a block that grow with the length or are squares, or whose rounding costs most: what
            ``--islands all`` keeps in fp32.
        growing_around: The same of the values outside of the blocks, as far as a model of a config has them.
        bounded: Values that do not grow with the length, and that the weights bound. All others are at most sums over
            all positions, which grow in proportion.
        state: The graphs that carry a state; None: there are none, see ``state_refusal`` of the config.
        fuse_attention: Makes the attention of an export form ONNX's one operator for it; None: it is none.
        written_out: The graphs whose attention stays written out all the same.
    """

    model: Callable[[Any, Precision], LoweredModel]
    growing: tuple[str, ...]
    growing_around: Callable[[Any], tuple[str, ...]]
    bounded: frozenset[str] = field(default_factory=frozenset)
    state: StateGraphs | None = None
    fuse_attention: Callable[[Any], None] | None = None
    written_out: frozenset[str] = frozenset()

    def fuses_attention(self, opset: int, graph: str = FORWARD) -> bool:
        """Tell whether the attention of a graph is one operator at an opset."""
        return self.fuse_attention is not None and opset >= ATTENTION_OPSET and graph not in self.written_out

    def name_growing(self, config: ModelConfig) -> frozenset[str]:
        """Return the full names of all that may grow in a model."""
        blocks = (f"layers.{index}.{name}" for index in range(config.num_blocks) for name in self.growing)
        return frozenset({*blocks, *self.growing_around(config)})
