"""Blocks are alike, so that what differs in nothing but its block is shown once."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.exporters.analysis import BLOCK_NAME
from flash_export.exporters.engine_report.origins import get_block, sort_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from flash_export.exporters.engine_report.results import EngineReport, Layer

SEVERAL = "several nodes"
_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class NodeLayers:
    """The layers that an ONNX node became, in one block or in several that are alike in this.

    Attributes:
        node: Name of the node, ``*`` for the block; ``several nodes`` of what several share.
        operator: Of the node.
        parts: Where such nodes are.
        layers: Those of one of them.
    """

    node: str
    operator: str
    parts: tuple[str, ...]
    layers: tuple[Layer, ...]

    @property
    def main(self) -> Layer:
        """The layer that gives what the node gives: the last one that works, if any does."""
        return next((layer for layer in reversed(self.layers) if layer.works), self.layers[-1])


def list_nodes(report: EngineReport) -> list[NodeLayers]:
    """Return every ONNX node with its layers, each layer once, those of alike blocks together."""
    by_node: dict[tuple[str, str], list[Layer]] = {}
    for layer in report.layers:
        node = layer.nodes[0] if len(layer.nodes) == 1 else SEVERAL
        by_node.setdefault((node, layer.part), []).append(layer)
    parts: dict[Hashable, list[str]] = {}
    first: dict[Hashable, tuple[str, list[Layer]]] = {}
    for (node, part), layers in by_node.items():
        facts = frozenset(Counter((layer.type, layer.kind, layer.dtype, layer.outputs) for layer in layers).items())
        key = (mask_block(node), facts)
        parts.setdefault(key, []).append(part)
        first.setdefault(key, (node, layers))
    order = report.parts
    rows = [
        NodeLayers(
            mask_block(node) if len(parts[key]) > 1 else node,
            report.nodes.get(node, ""),
            tuple(parts[key]),
            tuple(layers),
        )
        for key, (node, layers) in first.items()
    ]
    return sorted(rows, key=lambda row: order.index(row.parts[0]))


@dataclass(frozen=True)
class Alike:
    """Layers that differ in nothing but their block; ``name`` is what they are called, ``*`` for the block."""

    name: str
    layers: tuple[Layer, ...]


def group_alike(layers: Iterable[Layer], name: Callable[[Layer], str]) -> list[Alike]:
    """Return layers that are alike together, in the order of the first ones.

    Args:
        layers: The layers.
        name: What to call one of them.
    """
    groups: dict[Hashable, list[Layer]] = {}
    for layer in layers:
        key = (mask_block(name(layer)), layer.type, layer.dtype, layer.shape, layer.weights_bytes, layer.outputs)
        groups.setdefault(key, []).append(layer)
    return [
        Alike(name(group[0]) if len({layer.part for layer in group}) == 1 else mask_block(name(group[0])), tuple(group))
        for group in groups.values()
    ]


def name_weights(layer: Layer) -> str:
    """Return the name of a layer's weights; those that the parser made have a number, which says nothing."""
    if BLOCK_NAME.match(layer.name) or get_block(layer.part) is None:
        return layer.name
    return _NUMBER.sub("", layer.name)


def mask_block(name: str) -> str:
    """Return a name without its block.

    >>> mask_block("layers.3.heads/Mul_0"), mask_block("head/MatMul_0")
    ('layers.*.heads/Mul_0', 'head/MatMul_0')
    """
    match = BLOCK_NAME.match(name)
    return f"layers.*{name[match.end(1) :]}" if match else name


def format_parts(parts: Iterable[str]) -> str:
    """Say which parts of a model are meant.

    >>> format_parts(["block 0", "block 1", "block 2", "block 5"]), format_parts(["block 3"])
    ('blocks 0 to 2, 5', 'block 3')
    >>> format_parts(["after", "block 1", "block 0"])
    'blocks 0, 1, after'
    """
    ordered = sort_parts(parts)
    blocks = [block for part in ordered if (block := get_block(part)) is not None]
    others = [part for part in ordered if get_block(part) is None]
    if not blocks:
        return ", ".join(others)
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    pieces = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join([f"{'block' if len(blocks) == 1 else 'blocks'} {', '.join(pieces)}", *others])
