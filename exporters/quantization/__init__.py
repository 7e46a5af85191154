"""Putting low precision into traced graphs, by standard operators alone."""
