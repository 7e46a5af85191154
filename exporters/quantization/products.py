"""Finding the products with weights in a traced graph."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator

EMBEDDING = "embedding"
EMBEDDING_TABLE = f"{EMBEDDING}.table"


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
        return self.node.inputs[0]

    @property
    def weight(self) -> ir.Value:
        """The weight, ``(k, n)``."""
        return self.node.inputs[1]


def list_products(model: ir.Model) -> Iterator[Product]:
    """Yield the products with weights, in the order of the graph."""
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1].is_initializer():
            yield Product(name_product(node.inputs[1].name), node)


def name_product(weight: str) -> str:
    """Return the name of the product with a weight.

    >>> name_product("layers.3.out_weight"), name_product("head.weight")
    ('layers.3.out', 'head')
    """
    return re.sub(r"[._]weight$", "", weight)
