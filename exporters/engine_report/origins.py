"""Where each layer of a network came from: the ONNX nodes it stands for, and the part of the model they are in."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from flash_export.exporters.analysis import BLOCK_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flash_export.exporters.engine_report.network import NetworkLayer

BEFORE, BETWEEN, AFTER, SHARED, WHOLE = "before", "between", "after", "shared", "graph"
_BLOCK = "block "


class Origins:
    """The nodes and the part of every layer of a network, by its place in the network."""

    def __init__(self, layers: Sequence[NetworkLayer]) -> None:
        """Follow each layer without a node to the layers that use it, and see on which side of the blocks the rest is.

        The parser's helpers and the constants carry no node. They count as what uses them: the broadcast of a bias as
        the Add that it is for, and what computes the size of a slice as the Slice.
        """
        self._layers = layers
        self._producers = {layer.output: place for place, layer in enumerate(layers)}
        self._users: dict[str, list[int]] = defaultdict(list)
        for place, layer in enumerate(layers):
            for name in dict.fromkeys(layer.inputs):
                if name is not None:
                    self._users[name].append(place)
        self._found: dict[int, tuple[str, ...]] = {}
        self.nodes = [self._find_nodes(place) for place in range(len(layers))]
        in_block = [place for place, layer in enumerate(layers) if find_blocks(layer.nodes)]
        needed, reached = _walk(in_block, self._list_producers), _walk(in_block, self._list_users)
        self.parts = [
            _name_part(find_blocks(nodes), place in needed, place in reached, bool(in_block))
            for place, nodes in enumerate(self.nodes)
        ]

    def list_fixed(self, inputs: Iterable[str]) -> set[int]:
        """Return the places of the layers that depend on none of the network's inputs: constants, and what follows."""
        users = [place for name in inputs for place in self._users.get(name, ())]
        return set(range(len(self._layers))) - _walk(users, self._list_users)

    def find_producer(self, name: str | None) -> NetworkLayer | None:
        """Return the layer that gives a value; None for an input of the network."""
        place = None if name is None else self._producers.get(name)
        return None if place is None else self._layers[place]

    def _list_producers(self, place: int) -> list[int]:
        return [self._producers[name] for name in self._layers[place].inputs if name in self._producers]

    def _list_users(self, place: int) -> list[int]:
        return self._users.get(self._layers[place].output, [])

    def _find_nodes(self, place: int) -> tuple[str, ...]:
        """Return the nodes of a layer, else those of its users, else, at the end of a network, of what it uses."""
        if place not in self._found:
            self._found[place] = own = self._layers[place].nodes
            near = () if own else self._list_users(place) or self._list_producers(place)
            self._found[place] = own or tuple(dict.fromkeys(name for one in near for name in self._find_nodes(one)))
        return self._found[place]


def _walk(start: Iterable[int], list_next: Callable[[int], Iterable[int]]) -> set[int]:
    """Return where one comes from some places, with these."""
    stack = list(start)
    seen = set(stack)
    while stack:
        found = [place for place in list_next(stack.pop()) if place not in seen]
        seen.update(found)
        stack.extend(found)
    return seen


def find_blocks(nodes: Iterable[str]) -> set[int | None]:
    """Return the blocks that nodes are in; None for those outside of all blocks, and nothing if no node is in one."""
    blocks = {int(match[1]) if (match := BLOCK_NAME.match(name)) else None for name in nodes}
    return blocks if blocks - {None} else set()


def name_block(block: int) -> str:
    """Return the part that a block is."""
    return f"{_BLOCK}{block}"


def sort_parts(parts: Iterable[str]) -> list[str]:
    """Return parts, each once, in the order of the model.

    >>> sort_parts(["after", "block 10", "shared", "block 9", "before"])
    ['before', 'block 9', 'block 10', 'after', 'shared']
    """
    order = {BEFORE: 0, BETWEEN: 2, AFTER: 3, SHARED: 4, WHOLE: 5}
    return sorted(set(parts), key=lambda part: (order.get(part, 1), get_block(part) or 0))


def get_block(part: str) -> int | None:
    """Return the number of the block that a part is; None if it is none."""
    return int(part.removeprefix(_BLOCK)) if part.startswith(_BLOCK) else None


def _name_part(blocks: set[int | None], is_needed: bool, is_reached: bool, has_blocks: bool) -> str:
    if len(blocks) > 1:
        return SHARED
    if blocks:
        (block,) = blocks
        assert block is not None
        return name_block(block)
    if not has_blocks:
        return WHOLE
    if is_needed:
        return BETWEEN if is_reached else BEFORE
    return AFTER
