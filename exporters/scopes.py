"""The scopes of a traced graph: which submodule a node comes from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

SCOPE_PROPERTY = "pkg.torch.onnx.name_scopes"
SCOPE_PLACEHOLDER = "_empty_nn_module_stack_from_metadata_hook"
GRAPH_SCOPE = "graph"


def read_scope(node: ir.Node) -> str | None:
    """Return the dotted name of the innermost submodule that a node was traced in."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPE_PROPERTY, ""))
    named = [scope for scope in scopes[:-1] if scope not in ("", SCOPE_PLACEHOLDER)]
    return named[-1] if named else (GRAPH_SCOPE if scopes else None)
