"""Probes: named intermediate quantities that both the reference model and an exported graph compute.

The graph computes them in its own terms: channels in another order, divisors in the weights. ``probes.json`` of a
bundle says which value of the graph is which quantity, and how to get from one to the other.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Literal

from flash_export.typed_json import show

PROBES_FILE = "probes.json"  # of the forward graph

# What an array is indexed by: a token; a query and a key; a channel of the keys and one of the values; or a slot of a
# cache.
Kind = Literal["tokens", "pairs", "sums", "slots"]


@dataclass(frozen=True)
class Quantity:
    """An intermediate quantity of the models.

    Attributes:
        label: What messages call it.
        kind: What it is indexed by.
        is_zero_in_padding: Whether padded tokens are known to have zeros, so that they can be compared too.
        place: Whether it is computed before the blocks, in each of them, or after them.
        is_normed: Whether a norm reads it: that of the next block, if it is the last of its own or before them all; the
            last one, if it is after them all.
        is_fp32: Whether every half-precision graph holds it in fp32.
        has_heads: Whether graphs hold the channels of a token as heads, ``(b, n, h, w)``.
    """

    label: str
    kind: Kind = "tokens"
    is_zero_in_padding: bool = False
    place: Literal["before", "block", "after"] = "block"
    is_normed: bool = False
    is_fp32: bool = False
    has_heads: bool = False


@dataclass(frozen=True)
class Point:
    """Where a model is read: a quantity of a block, or of the model around the blocks."""

    block: int | None
    quantity: str

    @classmethod
    def parse(cls, name: str) -> Point:
        """Read a name such as ``layers.3.kv`` or ``embedding``.

        >>> Point.parse("layers.3.kv"), Point.parse("embedding")
        (Point(block=3, quantity='kv'), Point(block=None, quantity='embedding'))
        """
        match = re.fullmatch(r"layers\.([0-9]{1,9})\.(\w+)", name)
        return cls(int(match[1]), match[2]) if match else cls(None, name)


@dataclass(frozen=True)
class Probe:
    """Where a graph computes a quantity, and how to get it in the reference's terms.

    The reference's values are the graph's, times ``scale``, times the number of tokens to the power ``length_power``;
    index i of the graph's ``axis`` is index ``orders[order][i]`` of the reference's.

    Attributes:
        name: The quantity, such as ``layers.3.kv``.
        tensor: Name of the value in the graph.
        scale: Factor from the graph's values to the reference's.
        order: Name of a permutation; None: the order is the reference's.
        axis: Axis that is permuted, from the last one.
        length_power: Power of the number of tokens, by which scores are divided in the family ``gau``.
    """

    name: str
    tensor: str
    scale: float = 1.0
    order: str | None = None
    axis: int = -1
    length_power: int = 0

    def __post_init__(self) -> None:
        """Check that values can be brought into the reference's terms by it."""
        if abs(self.length_power) > 4 or not -4 <= self.axis < 0:
            raise ValueError(f"{self.name} has length_power {self.length_power} and axis {self.axis}")


@dataclass(frozen=True)
class ProbeMap:
    """``probes.json``, ``probes.extend.json`` and so on: the probes of a graph, and the permutations that they name."""

    graph: str
    orders: dict[str, tuple[int, ...]]
    probes: tuple[Probe, ...]

    def __post_init__(self) -> None:
        """Check that every order is a permutation, and that the probes name those that there are."""
        for name, order in self.orders.items():
            if sorted(order) != list(range(len(order))):
                raise ValueError(f"orders.{name} is no permutation")
        for probe in self.probes:
            if probe.order is not None and probe.order not in self.orders:
                raise ValueError(f"{probe.name} has the unknown order {show(probe.order)}")

    def to_json(self) -> str:
        """Return the text of ``probes.json``: a probe and a permutation a line."""
        values = dataclasses.asdict(self)
        orders = ",\n".join(f"    {json.dumps(name)}: {json.dumps(order)}" for name, order in self.orders.items())
        probes = ",\n".join(f"    {json.dumps(probe)}" for probe in values["probes"])
        return (
            f'{{\n  "graph": {json.dumps(self.graph)},\n  "orders": {{\n{orders}\n  }},\n'
            f'  "probes": [\n{probes}\n  ]\n}}\n'
        )
