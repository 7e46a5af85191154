"""The metadata of TensorRT's layers, in which its parser writes down the ONNX nodes that a layer came from."""

from __future__ import annotations

import re

# A layer of an engine may stand for several nodes; then a record separator stands between them.
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[|\x1e|$)")


def parse_metadata(text: str) -> tuple[str, ...]:
    r"""Return the names of the ONNX nodes, each once.

    >>> parse_metadata("[ONNX Layer: layers.0/Add_0]\x1e[ONNX Layer: layers.0/Mul_0]")
    ('layers.0/Add_0', 'layers.0/Mul_0')
    """
    return tuple(dict.fromkeys(_NODE.findall(text)))
