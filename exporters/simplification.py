"""Cleaning up a traced graph: what the exporter's optimizer does, without the rules that never apply here.

``torch.onnx.export(optimize=True)`` tries some fifty rewrite rules on every node, twice. Of lowered models, those below
are the ones that match (``tests/exporters/test_simplification.py`` compares the two), and leaving the rest out saves a
tenth of the time of an export.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules

_RULES = (
    rules.mul_by_1_rule,
    rules.max_min_rule,
    rules.squeeze_reshape_1d_rule,
    rules.unsqueeze_unsqueeze_rule,
)
_ROUNDS = 2


def simplify_graph(model: ir.Model) -> None:
    """Fold constants, merge what is there twice, and remove what does nothing, in place."""
    passes.InlinePass()(model)
    for _ in range(_ROUNDS):
        fold_constants_ir(model, onnx_shape_inference=True)
        rewrite(model, _RULES)
    ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)
