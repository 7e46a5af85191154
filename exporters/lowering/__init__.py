"""Lowering: from a reference model to the same function in the form that is exported.

A lowered model shares no memory with its reference, so that the reference can be let go.
"""
