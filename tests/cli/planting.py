"""A fault in a graph whose bundle says that nothing was changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import numpy_helper

from tests.validators.conftest import sign_files

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from flash_export.bundle.bundle import Bundle


def plant_fault(bundle: Bundle, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one weight of the forward graph, and the hash of the graph in the manifest."""
    path = bundle.get_graph_path()
    model = onnx.load(path)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)), weight.name))
    onnx.save(model, path)
    sign_files(bundle)
