"""The libraries that weights come from, run by themselves: what ``validate --against original`` compares with.

A library may need packages that do not go together with ours, so it runs in a process and, if need be, with a Python of
its own. ``serve`` is what that process runs. It and the file of each library import nothing of this package but each
other, and only PyTorch and numpy beside what the library itself needs.
"""
