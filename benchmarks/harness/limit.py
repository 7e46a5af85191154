"""The arithmetic limit: the matrix products that the model cannot do without, each as a graph of one node.

Nothing that computes the model with onnxruntime's products can be faster than their sum, short of needing fewer of
them. Axes: n padded sequence, g chunk, c position in a chunk, d model, e hidden, s query/key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.sessions import bind_run, open_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.models import PeerConfig

OPSET = 18
IR_VERSION = 10


@dataclass(frozen=True)
class Product:
    """One matrix product of the model."""

    name: str  # what it computes
    left: tuple[int, ...]  # shapes of the operands
    right: tuple[int, ...]
    constant: bool  # whether the right operand is weights, which onnxruntime packs once
    number: int  # how often the model does it

    @property
    def flops(self) -> int:
        """Floating-point operations of all of them, a multiply-add being two."""
        return 2 * int(np.prod(self.left)) * self.right[-1] * self.number


def list_products(config: PeerConfig, seq_len: int) -> list[Product]:
    """Return the products of a FLASH model for one sequence, padded to whole chunks except in the head."""
    g, c = -(-seq_len // config.group_size), config.group_size
    n, d, e, s = g * c, config.dim, config.hidden_dim, config.query_key_dim
    chunked = (g,) if config.causal else ()
    rows = c if config.causal else n
    return [
        Product("values, gates, query/key", (n, d), (d, 2 * e + s), True, config.depth),
        Product("scores", (g, c, s), (g, s, c), False, config.depth),
        Product("scores x values", (g, c, c), (g, c, e), False, config.depth),
        Product("keys x values", (*chunked, s, rows), (*chunked, rows, e), False, config.depth),
        Product("queries x sums", (*chunked, rows, s), (*chunked, s, e), False, config.depth),
        Product("output", (n, e), (e, d), True, config.depth),
        Product("logits", (seq_len, d), (d, config.num_tokens), True, 1),
    ]


def bind_products(products: list[Product]) -> Callable[[], object]:
    """Return a function that runs every product as often as the model does."""
    runs = [run for product in products for run in [bind_product(product)] * product.number]
    return lambda: [run() for run in runs]


def bind_product(product: Product) -> Callable[[], object]:
    """Return a function that runs one product, once."""
    random = np.random.default_rng(0)
    left, right = (random.standard_normal(shape, np.float32) for shape in (product.left, product.right))
    feeds = {"left": left} if product.constant else {"left": left, "right": right}
    shapes = {name: array.shape for name, array in feeds.items()} | {"product": (*left.shape[:-1], right.shape[-1])}
    *inputs, output = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    weights = [numpy_helper.from_array(right, "right")] if product.constant else []
    graph = helper.make_graph([node], "product", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bind_run(open_session(model.SerializeToString()), feeds)
