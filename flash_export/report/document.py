"""A report as plain data: what happened, in facts, tables, plots and sentences. Each format has one renderer for it.

All text is as people read it, numbers are formatted; what has to be escaped for a format, its renderer escapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

View = Literal["terminal", "page", "markdown"]
EVERYWHERE: tuple[View, ...] = ("terminal", "page", "markdown")
# ``soft`` is what matters less; the others are also what can come out of a check.
Style = Literal["", "passed", "failed", "skipped", "soft"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Styled:
    """The text of a cell that stands out."""

    text: str
    style: Style


# None: there is no value, which is not the same as an empty text.
Cell = str | Styled | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        align: Numbers stand on the right.
        is_prose: Whether its text may be broken into lines.
        is_minor: Whether it is left out where the terminal is too narrow for the table.
    """

    title: str
    align: Literal["left", "right"] = "left"
    is_prose: bool = False
    is_minor: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row of a table; ``remark`` stands below its cells, and ``is_marked`` sets it off from the others."""

    cells: tuple[Cell, ...]
    remark: str = ""
    is_marked: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as there are columns; beyond ``max_rows`` the terminal and Markdown count the others."""

    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    max_rows: int | None = None

    def __post_init__(self) -> None:
        """Check that every row has a cell a column."""
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"a row has {len(row.cells)} cells, the table {len(self.columns)} columns")

    def __bool__(self) -> bool:
        return bool(self.rows)


@dataclass(frozen=True)
class Pairs:
    """Labels and their values."""

    pairs: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.pairs)


@dataclass(frozen=True)
class Note:
    """A sentence: about what came out in ``style`` of ``who``, if that is given.

    Attributes:
        text: The sentence.
        style: What came out.
        who: Of what.
        where: At which inputs.
        command: What repeats it alone.
    """

    text: str
    style: Style = ""
    who: str = ""
    where: str = ""
    command: str = ""


@dataclass(frozen=True)
class Notes:
    """Sentences, a line each."""

    notes: tuple[Note, ...]

    def __bool__(self) -> bool:
        return bool(self.notes)


@dataclass(frozen=True)
class Explanations:
    """What terms mean; a word between two backticks is code."""

    terms: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.terms)


@dataclass(frozen=True)
class Axis:
    """How values become positions: ``linear``; ``decades`` in whole powers of ten; ``lengths`` in powers of two.

    Attributes:
        label: What it shows, with the unit.
        scale: How.
        unit: ``ms`` where ticks are durations; empty where they are numbers.
        ticks: Values and their labels; None: the scale's own.
    """

    label: str
    scale: Literal["linear", "decades", "lengths"]
    unit: Literal["", "ms"] = ""
    ticks: tuple[tuple[float, str], ...] | None = None


@dataclass(frozen=True)
class Point:
    """A point with what it says when hovered.

    Attributes:
        x: Value on the horizontal axis.
        y: Value on the vertical one; None: beyond any number, at its upper end.
        title: What it says.
        kind: Its shape; a cross is a failure.
        spread: Ends of a vertical bar through it.
        label: What is always to be read beside it.
    """

    x: float
    y: float | None
    title: str
    kind: Literal["dot", "ring", "cross"] = "dot"
    spread: tuple[float, float] | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """A line, points, or both, in one colour.

    Attributes:
        label: Name in the legend.
        style: Class in the style sheet: ``s0`` to ``s5``, ``limit``, ``noise``, ``eager``, ``compiled``, ``bad``.
        line: Where the line goes.
        points: The points.
        swatch: What stands in the legend.
        is_filled: Whether the ground below the line is coloured.
    """

    label: str
    style: str
    line: tuple[tuple[float, float], ...] = ()
    points: tuple[Point, ...] = ()
    swatch: Literal["line", "dash", "ring", "cross", "area"] = "line"
    is_filled: bool = False


@dataclass(frozen=True)
class Plot:
    """Series over two axes; ``marker`` is a vertical line with its label."""

    title: str
    caption: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    marker: tuple[float, str] | None = None


@dataclass(frozen=True)
class Bar:
    """A bar: what it is of, the lengths of its pieces in the order of their names, and what is written at its end."""

    label: str
    pieces: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class Bars:
    """Horizontal bars of pieces that are 0 or more.

    Attributes:
        title: What they show.
        caption: How to read it.
        names: Of the pieces, each with its class in the style sheet, such as ``s0``.
        bars: The bars, each with a piece for every name.
    """

    title: str
    caption: str
    names: tuple[tuple[str, str], ...]
    bars: tuple[Bar, ...]

    def __post_init__(self) -> None:
        """Check that every bar has a piece for every name."""
        for bar in self.bars:
            if len(bar.pieces) != len(self.names):
                raise ValueError(
                    f"the bar {bar.label!r} has {len(bar.pieces)} pieces, there are {len(self.names)} names"
                )

    @property
    def longest(self) -> float:
        """Length of the longest bar; 1 if none has any."""
        return max((sum(bar.pieces) for bar in self.bars), default=0.0) or 1.0


@dataclass(frozen=True)
class Plots:
    """Plots beside each other, which pages have."""

    plots: tuple[Plot | Bars, ...]

    def __bool__(self) -> bool:
        return bool(self.plots)


Block = Table | Pairs | Notes | Explanations | Plots


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; a section whose block is empty is not shown.

    Attributes:
        title: The heading.
        block: What stands under it.
        intro: What a reader of the page has to know of it.
        views: The formats that show it.
        is_folded: Whether Markdown folds it away.
    """

    title: str
    block: Block
    intro: str = ""
    views: tuple[View, ...] = EVERYWHERE
    is_folded: bool = False


@dataclass(frozen=True)
class Fact:
    """One figure that a reader wants first, and what belongs to it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Check:
    """One check, as a CI system lists them.

    Attributes:
        group: What was checked, such as a backend.
        kind: Of which kind the check is.
        name: What tells it from the others of its kind.
        status: What came out.
        reason: Why it failed or was skipped.
        seconds: How long one run takes; 0 if that was not measured.
    """

    group: str
    kind: str
    name: str
    status: Literal["passed", "failed", "skipped"]
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        subject: What it is about, such as ``Validation of bundle``.
        command: The command that made it.
        headline: What came out, as one sentence.
        status: What came out.
        word: The same in a word or two, such as ``PASSED``; empty where there is no verdict.
        counts: How many of what, in a few words.
        alarms: What is wrong, a sentence each.
        lead: What was done, in a sentence or two.
        caveats: What no check can find.
        facts: The figures that matter most.
        notes: What failed and what was skipped.
        sections: All else.
        checks: Every check.
        environment: Where it was measured, and of what.
    """

    subject: str
    command: str
    headline: str = ""
    status: Style = ""
    word: str = ""
    counts: str = ""
    alarms: tuple[str, ...] = ()
    lead: str = ""
    caveats: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    notes: tuple[Note, ...] = ()
    sections: tuple[Section, ...] = ()
    checks: tuple[Check, ...] = ()
    environment: tuple[tuple[str, str | int], ...] = ()

    @property
    def environment_pairs(self) -> Pairs:
        """The environment as people read it: ``chunk_size`` as ``chunk size``, large numbers in groups of digits."""
        return Pairs(
            tuple(
                (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
                for name, value in self.environment
            )
        )

    def list_sections(self, view: View) -> list[Section]:
        """Return what a format shows."""
        return [section for section in self.sections if view in section.views and section.block]


if TYPE_CHECKING:
    # Columns with what makes a cell from an item; False and None stand for a column that a report does not have.
    Columns: TypeAlias = Sequence[tuple[Column, Callable[[Item], Cell]] | bool | None]


def text(title: str, *, is_prose: bool = False, is_minor: bool = False) -> Column:
    """Return a column of text."""
    return Column(title, "left", is_prose, is_minor)


def number(title: str, *, is_minor: bool = False) -> Column:
    """Return a column of numbers."""
    return Column(title, "right", is_minor=is_minor)


def tabulate(
    items: Iterable[Item],
    columns: Columns[Item],
    remark: Callable[[Item], str | None] = lambda _: None,
    max_rows: int | None = None,
    is_marked: Callable[[Item], bool] = lambda _: False,
) -> Table:
    """Return a table with a row an item.

    Args:
        items: What the rows are of.
        columns: Each with what makes its cell from an item.
        remark: Makes what stands below the row.
        max_rows: See :class:`Table`.
        is_marked: Whether a row is set off from the others.
    """
    shown = [column for column in columns if isinstance(column, tuple)]
    rows = (TableRow(tuple(make(item) for _, make in shown), remark(item) or "", is_marked(item)) for item in items)
    return Table(tuple(column for column, _ in shown), tuple(rows), max_rows)
