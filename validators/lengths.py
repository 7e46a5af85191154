"""The length plan: which batches and lengths are compared, and with which inputs.

Short default lengths never leave the first, padded chunk, and that is where other tools' checks end. This plan
crosses the chunk boundary from both sides and then doubles up to the longest sequence that the graph promises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flash_export.bundle.manifest import AxisRange
from flash_export.data.sources import draw_padded
from flash_export.errors import ConfigError, InputError
from flash_export.reading import read_record
from flash_export.runtime.inputs import check_axis
from flash_export.suggest import list_known
from flash_export.validators.latency import DEFAULT_BUDGET_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.data.batch import Batch
    from flash_export.data.sources import Data, Source
    from flash_export.interface import Interface

DEFAULT_BATCHES = (1, 3)
DEFAULT_CELL_POSITIONS = 65536
QUICK_SEQ_LEN, QUICK_BUDGET_S = 1024, 0.1
# Cells of fewer positions are drawn again for their noise floor.
NOISE_POSITIONS = 128
RANDOM, RECORDED = "random", "recorded"
QUICK, FULL = "quick", "full"
_CELL_NAME = re.compile(r"(?P<batch>\d{1,9})x(?P<seq_len>\d{1,9})(?P<masked>-masked)?(?P<heldout>-heldout)?", re.ASCII)


@dataclass(frozen=True)
class Cell:
    """One shape to compare: a batch of sequences, with or without right padding.

    Attributes:
        batch: Sequences.
        seq_len: Length of each, padding included.
        masked: Whether rows are padded on the right.
        inputs: ``random`` or ``recorded``, from the held-out data.
        is_timed: Whether its latency is worth measuring.
    """

    batch: int
    seq_len: int
    masked: bool
    inputs: str = RANDOM
    is_timed: bool = True

    @property
    def positions(self) -> int:
        """Number of positions, padding included."""
        return self.batch * self.seq_len

    @property
    def name(self) -> str:
        """What ``--check`` calls it: ``3x300``, ``3x300-masked``, ``1x515-heldout``."""
        held_out = "-heldout" if self.inputs == RECORDED else ""
        return f"{self.batch}x{self.seq_len}{'-masked' if self.masked else ''}{held_out}"

    @classmethod
    def parse(cls, name: str) -> Cell | None:
        """Return the cell of a name; None for what is none.

        >>> Cell.parse("3x300-masked")
        Cell(batch=3, seq_len=300, masked=True, inputs='random', is_timed=True)
        """
        match = _CELL_NAME.fullmatch(name)
        if match is None or "0" in (match["batch"], match["seq_len"]):
            return None
        inputs = RECORDED if match["heldout"] else RANDOM
        return cls(int(match["batch"]), int(match["seq_len"]), bool(match["masked"]), inputs)

    def __str__(self) -> str:
        recorded = " of held-out data" if self.inputs == RECORDED else ""
        return f"{self.batch} x {self.seq_len}{recorded}{' masked' if self.masked else ''}"


@dataclass(frozen=True)
class Plan:
    """Which shapes are compared.

    Attributes:
        name: ``quick``, ``full``, or the name of a file.
        seq_lens: Lengths, each with every batch.
        batches: Batch sizes.
        data_lens: Lengths of held-out data, one sequence each.
        sweep: Lengths that stand for each remainder of the chunk, one sequence each, not timed.
        cells: The shapes, in place of all of the above.
        is_default: Whether we chose the lengths, so that very expensive shapes may be left out.
        checks: Names of what else is checked: what needs no reference, and the score; None: all of it.
        latency_budget_s: Time for measuring the latency of one cell.
    """

    name: str
    seq_lens: tuple[int, ...]
    batches: tuple[int, ...] = DEFAULT_BATCHES
    data_lens: tuple[int, ...] = ()
    sweep: tuple[int, ...] = ()
    cells: tuple[Cell, ...] | None = None
    is_default: bool = True
    checks: tuple[str, ...] | None = None
    latency_budget_s: float = DEFAULT_BUDGET_S

    def list_cells(self, graph: GraphSpec) -> tuple[Cell, ...]:
        """Return every shape, the sweep first, since it is what finds lengths that were baked in."""
        if self.cells is not None:
            return self.cells
        swept = (Cell(1, length, masked=False, is_timed=False) for length in self.sweep if length not in self.seq_lens)
        texts = (Cell(1, length, masked=False, inputs=RECORDED, is_timed=False) for length in self.data_lens)
        return (*swept, *plan_cells(graph, self.seq_lens, self.batches), *texts)

    def includes(self, check: str) -> bool:
        """Tell whether what is no shape is checked."""
        return self.checks is None or check in self.checks


def make_plan(
    name: str,
    graph: GraphSpec,
    interface: Interface,
    *,
    profile_lens: Iterable[int] = (),
    data_len: int = 0,
    max_seq_len: int | None = None,
) -> Plan:
    """Return the plan of a name, or of a file.

    ``quick`` has both sides of the chunk boundary, a prime, powers of two to 1,024 and the points of engine profiles;
    ``full`` goes on to the longest sequence that the graph promises, and sweeps over every remainder of the chunk.

    Args:
        name: ``quick``, ``full``, or a JSON file such as ``{"seq_lens": [1, 17, 300], "batches": [1, 8]}``.
        graph: Contract of the graph.
        interface: Interface of the model.
        profile_lens: Lengths that engines were built around.
        data_len: Length of the held-out data; 0: there is none.
        max_seq_len: Longest length of ``quick`` and ``full``; None: their own.

    Raises:
        ConfigError: There is no such plan, or the file cannot be used.
        InputError: A length or batch of the file lies outside of the graph's range.
    """
    axis, batch_axis = graph.axes["seq"], graph.axes["batch"]
    chunk, frames = interface.chunk_size, interface.chunk_frames
    batches = tuple(size for size in DEFAULT_BATCHES if size in batch_axis) or (batch_axis.min,)
    if name not in (QUICK, FULL):
        plan = _read_plan(Path(name), batches)
        check_lengths(graph, plan.seq_lens, plan.batches)
        return plan
    longest = min(axis.max, max_seq_len or axis.max)
    if name == QUICK:
        longest = max(axis.min, min(longest, max(QUICK_SEQ_LEN, interface.find_length(4 * frames + 3))))
    within = AxisRange(axis.min, longest)
    lengths = plan_lengths(interface, within) + tuple(length for length in profile_lens if length in within)
    swept = (interface.find_length(c) + c % interface.frame_hop for c in range(frames, 2 * frames))
    texts = (chunk + 1, 4 * chunk + 3) if name == QUICK else (1, chunk, chunk + 1, 4 * chunk + 3, longest)
    return Plan(
        name,
        tuple(sorted({*lengths, longest})),
        batches,
        tuple(sorted({length for length in texts if length in within and length <= data_len})),
        tuple(length for length in swept if length in within) if name == FULL else (),
        latency_budget_s=QUICK_BUDGET_S if name == QUICK else DEFAULT_BUDGET_S,
    )


def plan_lengths(interface: Interface, seq_axis: AxisRange) -> tuple[int, ...]:
    """Return the default lengths within the range: both sides of the chunk boundary, a prime, and powers of two.

    They are laid out in frames. Where these take several units, the shortest lengths and those of one whole chunk also
    have one unit more than their frames, and as many as are not yet another frame.

    >>> from flash_export.bundle.manifest import AxisRange
    >>> from flash_export.models.token_model import describe_token_model
    >>> interface = describe_token_model(256, needs_mask=False, is_causal=True, window=16)
    >>> plan_lengths(interface, AxisRange(1, 256))
    (1, 2, 4, 8, 15, 16, 17, 32, 53, 64, 67, 128, 256)
    """
    c, hop = interface.chunk_frames, interface.frame_hop
    counts = (1, 2, c - 1, c, c + 1, 2 * c, _find_prime_above(3 * c), 4 * c + 3)
    lengths = {interface.find_length(count) for count in counts}
    if hop > 1:
        lengths |= {start + more for start in (seq_axis.min, interface.find_length(c)) for more in (0, 1, hop - 1)}
    lengths |= {1 << power for power in range(seq_axis.max.bit_length())}
    return tuple(sorted(length for length in lengths if length in seq_axis))


def plan_cells(graph: GraphSpec, seq_lens: Iterable[int], batches: Iterable[int]) -> tuple[Cell, ...]:
    """Return every batch at every length; with a mask input also masked, where there is room for padding.

    A length of 1 in a batch of 1 cannot be padded: a row has at least one real token.
    """
    return tuple(
        Cell(batch, seq_len, masked)
        for seq_len in sorted(set(seq_lens))
        for batch in sorted(set(batches))
        for masked in ((False, True) if graph.has_mask and batch * seq_len > 1 else (False,))
    )


def check_lengths(graph: GraphSpec, seq_lens: Sequence[int] | None, batches: Sequence[int] | None) -> None:
    """Check lengths and batches that a user asked for against the graph's ranges.

    Raises:
        InputError: One lies outside.
    """
    for name, values in (("seq", seq_lens), ("batch", batches)):
        if values is not None and not values:
            raise InputError(f"no value was given for {name}; give at least one, or leave the option out")
        for value in values or ():
            check_axis(name, value, graph.axes[name])


def describe_default_omission(cell: Cell) -> str | None:
    """Say why the default plan leaves a cell out, or None when it does not.

    A batch repeats the work of one row; beyond this many positions on a CPU it takes most of the time and tells little
    that the single row of that length has not told.
    """
    if cell.batch == 1 or cell.positions <= DEFAULT_CELL_POSITIONS:
        return None
    return (
        f"left out by default: {cell.batch} x {cell.seq_len} is more than {DEFAULT_CELL_POSITIONS} positions; check it "
        f"with --seq-lens {cell.seq_len} --batch {cell.batch}"
    )


def build_batch(cell: Cell, data: Data, *, seed: int = 0) -> Batch:
    """Draw the inputs of a cell; the same cell always gets the same ones.

    Args:
        cell: The shape, and whether its inputs are random or recorded.
        data: Where they come from.
        seed: Another number gives other inputs.
    """
    source: Source = data.random
    if cell.inputs == RECORDED and data.recorded is not None:
        source = data.recorded
    if cell.masked:
        return draw_padded(source, cell.batch, cell.seq_len, seed=seed)
    return source.draw(cell.batch, cell.seq_len, seed=seed)


def build_noise_batch(cell: Cell, data: Data) -> tuple[Cell, Batch] | None:
    """Draw more inputs of a small cell's length, for the eager model's error on them; None: the cell is large enough.

    Of a few positions one draw tells little of what rounding costs: by chance the eager model may be right to the last
    bit. So the noise floor of a small cell is that of as many rows as hold ``NOISE_POSITIONS``.
    """
    if cell.positions >= NOISE_POSITIONS:
        return None
    more = replace(cell, batch=-(-NOISE_POSITIONS // cell.seq_len), masked=False, is_timed=False)
    return more, build_batch(more, data, seed=1)


@dataclass(frozen=True)
class _PlanFile:
    """A plan that a user wrote."""

    seq_lens: tuple[int, ...]
    batches: tuple[int, ...] | None = None


def _read_plan(path: Path, batches: tuple[int, ...]) -> Plan:
    """Read a plan from a JSON file."""
    known = list_known(path, (QUICK, FULL))
    cure = f'use a JSON file such as {{"seq_lens": [1, 17, 300], "batches": [1, 8]}}, or one of {known}'
    found = read_record(path, _PlanFile, ConfigError, cure)
    chosen = batches if found.batches is None else found.batches
    return Plan(path.name, tuple(sorted(set(found.seq_lens))), chosen, is_default=False)


def _find_prime_above(start: int) -> int:
    candidate = start + 1
    while any(candidate % divisor == 0 for divisor in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate
