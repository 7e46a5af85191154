"""Lowering: from a reference model to the same function in the form that is exported."""
