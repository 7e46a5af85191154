"""Deciding what of a model is kept in how few bits, by measurement: above exporters and validators, which it uses."""
