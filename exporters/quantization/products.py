"""Finding the products with weights in a traced graph."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.exporters.quantization.nodes import get_input, is_constant

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

_WEIGHT = re.compile(r"[._]weight$")


@dataclass(frozen=True)
class Product:
    """A matrix product whose second factor is a weight.

    Attributes:
        name: Such as ``layers.3.projection``, ``layers.3.out`` or ``head``.
        node: The MatMul.
    """

    name: str
    node: ir.Node

    @property
    def input(self) -> ir.Value:
        """The activation."""
        return get_input(self.node, 0)

    @property
    def weight(self) -> ir.Value:
        """The weight, ``(k, n)``."""
        return get_input(self.node, 1)


def list_products(model: ir.Model) -> Iterator[Product]:
    """Yield the products with weights, in the order of the graph."""
    for node in model.graph:
        if node.op_type != "MatMul" or not is_constant(weight := get_input(node, 1)):
            continue
        if _WEIGHT.search(name := str(weight.name)):  # others only bring values to their places, such as those for RoPE
            yield Product(name_product(name), node)


def name_product(weight: str) -> str:
    """Return the name of the product with a weight.

    >>> name_product("layers.3.out_weight"), name_product("head.weight")
    ('layers.3.out', 'head')
    """
    return _WEIGHT.sub("", weight)
