"""The tables of a report of an engine.

Where layers are counted, every layer is in one row, and the last row has them all. Blocks that are alike in a table
stand in one row of it, which says what each of them has.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from flash_export.exporters.engine_report.alike import format_parts, group_alike, list_nodes, name_weights
from flash_export.exporters.engine_report.origins import get_block
from flash_export.exporters.engine_report.results import KINDS, sum_flops, sum_outputs, sum_weights
from flash_export.formatting import format_bytes, format_flops, format_percent
from flash_export.report.document import Table, TableRow, number, tabulate, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flash_export.exporters.engine_report.results import EngineReport, Layer, Point
    from flash_export.report.document import Cell, Columns

    Group = tuple[str, Sequence[Layer]]

KIND_TITLES = {
    "product": "products",
    "pointwise": "pointwise",
    "reduction": "sums",
    "move": "moves",
    "cast": "casts",
    "other": "other",
    "constant": "constants",
    "size": "sizes",
}
_ALL = "all"
_MAX_TENSORS, _MAX_WEIGHTS, _SHOWN = 30, 20, 8


def tabulate_types(report: EngineReport) -> Table:
    """Count the layers by type and dtype, the most frequent type first."""
    types = Counter(layer.type for layer in report.layers)
    groups = [(name, [layer for layer in report.layers if layer.type == name]) for name, _ in types.most_common()]
    return _tabulate_groups("type", groups, report, _count_by_dtype(report))


def tabulate_parts(report: EngineReport) -> Table:
    """Count the layers by part of the model and kind."""
    present = [kind for kind in KINDS if any(layer.kind == kind for layer in report.layers)]
    columns: Columns[Group] = [(number(KIND_TITLES[kind]), _count_by("kind", kind)) for kind in present]
    return _tabulate_groups("part", _group_by_part(report), report, columns)


def tabulate_dtypes(report: EngineReport) -> Table:
    """Count the layers by part of the model and dtype."""
    return _tabulate_groups("part", _group_by_part(report), report, _count_by_dtype(report))


def tabulate_work(report: EngineReport, point: int) -> Table:
    """Show by part of the model the work of products by what their operands are stored in, and what is written."""
    every = sum_flops(report.layers, point)
    kinds = Counter(_describe_operands(layer) for layer in report.layers if layer.kind == "product")

    def sum_kind(group: Group, kind: str) -> str:
        flops = sum_flops((one for one in group[1] if one.kind == "product" and _describe_operands(one) == kind), point)
        return format_flops(flops) if flops else ""

    columns: Columns[Group] = [
        (number("products"), _count_by("kind", "product")),
        *((number(kind), lambda group, kind=kind: sum_kind(group, kind)) for kind, _ in kinds.most_common()),
        (
            number("of the work"),
            lambda group: format_percent(flops / every) if (flops := sum_flops(group[1], point)) else "",
        ),
        (number("outputs"), lambda group: format_bytes(sum_outputs(group[1], point))),
    ]
    return _tabulate_groups("part", _group_by_part(report), report, columns, counts=False)


def tabulate_casts(report: EngineReport, point: int | None) -> Table:
    """Show by part of the model what is cast from which dtype to which."""
    casts: dict[tuple[str, str, str], list[Layer]] = {}
    for layer in report.layers:
        if layer.kind == "cast":
            casts.setdefault((layer.operands[0], layer.dtype, layer.part), []).append(layer)
    cells: dict[tuple[str, ...], list[str]] = {}
    for (source, target, part), layers in casts.items():
        outputs = () if point is None else (format_bytes(sum_outputs(layers, point)),)
        cells.setdefault((source, target, str(len(layers)), *outputs), []).append(part)
    columns = [text("part"), text("from"), text("to"), number("casts")]
    columns += [] if point is None else [number("outputs at opt")]
    return Table(tuple(columns), tuple(TableRow((_name_alike(parts), *row)) for row, parts in cells.items()))


def tabulate_weights(report: EngineReport) -> Table:
    """Show the bytes of weights by part of the model and dtype."""
    dtypes = Counter(layer.dtype for layer in report.layers if layer.weights_bytes)

    def sum_dtype(group: Group, dtype: str) -> str:
        size = sum_weights(layer for layer in group[1] if layer.dtype == dtype)
        return format_bytes(size) if size else ""

    columns: Columns[Group] = [
        (number("layers with weights"), lambda group: str(sum(layer.weights_bytes > 0 for layer in group[1]) or "")),
        *((number(dtype), lambda group, dtype=dtype: sum_dtype(group, dtype)) for dtype, _ in dtypes.most_common()),
        (number("bytes"), lambda group: format_bytes(sum_weights(group[1]))),
    ]
    return _tabulate_groups("part", _group_by_part(report), report, columns, counts=False)


def tabulate_largest_weights(report: EngineReport) -> Table:
    """Show the largest weights, those of alike blocks together."""
    groups = group_alike((layer for layer in report.layers if layer.weights_bytes), name_weights)
    groups.sort(key=lambda group: -group.layers[0].weights_bytes)
    return tabulate(
        groups[:_MAX_WEIGHTS],
        [
            (text("weights"), lambda group: group.name),
            (text("part"), lambda group: format_parts(layer.part for layer in group.layers)),
            (text("dtype"), lambda group: group.layers[0].dtype),
            (text("shape", is_minor=True), lambda group: format_shape(group.layers[0].shape or ())),
            (number("bytes of each"), lambda group: format_bytes(group.layers[0].weights_bytes)),
        ],
        max_rows=_SHOWN,
    )


def tabulate_points(report: EngineReport) -> Table:
    """Show for each shape of each profile the work, what all layers give, and the largest of it."""
    return tabulate(
        enumerate(report.points),
        [
            (number("profile"), lambda item: str(item[1].profile)),
            (text("shape"), lambda item: item[1].name),
            (text("inputs"), lambda item: format_point(item[1])),
            (number("work"), lambda item: format_flops(sum_flops(report.layers, item[0]))),
            (number("all tensors"), lambda item: format_bytes(sum_outputs(report.layers, item[0]))),
            (number("largest"), lambda item: format_bytes(find_largest(report, item[0]).outputs[item[0]].size_bytes)),
        ],
    )


def tabulate_tensors(report: EngineReport, point: int) -> Table:
    """Show the largest tensors that a run gives, those of alike blocks together, the largest of a maximum first."""
    shown = [(index, one) for index, one in enumerate(report.points) if one.name != "min"]
    most = max(shown, key=lambda item: sum_outputs(report.layers, item[0]))[0]
    groups = group_alike((layer for layer in report.layers if layer.works), lambda layer: ", ".join(layer.nodes))
    groups.sort(key=lambda group: -group.layers[0].outputs[most].size_bytes)
    several = len(shown) > 2
    return tabulate(
        groups[:_MAX_TENSORS],
        [
            (text("ONNX node"), lambda group: group.name),
            (text("part"), lambda group: format_parts(layer.part for layer in group.layers)),
            (text("dtype"), lambda group: group.layers[0].dtype),
            (text("shape at opt", is_minor=True), lambda group: format_shape(group.layers[0].outputs[point].shape)),
            *(
                (
                    number(f"{one.name} {one.profile}" if several else one.name, is_minor=several and index != most),
                    lambda group, index=index: format_bytes(group.layers[0].outputs[index].size_bytes),
                )
                for index, one in shown
            ),
        ],
        max_rows=_SHOWN,
    )


def tabulate_nodes(report: EngineReport, point: int | None) -> Table:
    """Show which layers each ONNX node became, nodes of alike blocks together."""
    return tabulate(
        list_nodes(report),
        [
            (text("ONNX node"), lambda row: row.node),
            (text("operator"), lambda row: row.operator),
            (text("part"), lambda row: format_parts(row.parts)),
            (number("layers"), lambda row: str(len(row.layers))),
            (text("of type", is_prose=True), lambda row: _list_types(row.layers)),
            (text("dtype"), lambda row: row.main.dtype),
            point is not None and (text("shape at opt"), lambda row: format_shape(row.main.outputs[point or 0].shape)),
            point is not None and (number("at opt"), lambda row: format_bytes(row.main.outputs[point or 0].size_bytes)),
        ],
    )


def tabulate_engine_layers(report: EngineReport) -> Table:
    """Show the layers of the engine itself."""
    return tabulate(
        report.engine_layers or (),
        [
            (text("layer", is_prose=True), lambda layer: layer.name),
            (text("type"), lambda layer: layer.type or None),
            (text("gives", is_prose=True), lambda layer: ", ".join(layer.outputs) or None),
            (text("from ONNX nodes", is_prose=True), lambda layer: ", ".join(layer.nodes) or None),
        ],
        max_rows=_SHOWN,
    )


def find_largest(report: EngineReport, point: int) -> Layer:
    """Return the layer that gives the most bytes at a point."""
    return max(report.layers, key=lambda layer: layer.outputs[point].size_bytes if layer.works else -1)


def format_point(point: Point) -> str:
    """Return the sizes of a point as they are written on the command line: ``1x512``."""
    return "x".join(map(str, point.sizes.values())) or "fixed sizes"


def format_shape(shape: Sequence[int]) -> str:
    """Format sizes.

    >>> format_shape((1, 4, 128)), format_shape(())
    ('1x4x128', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def _tabulate_groups(
    title: str, groups: Sequence[Group], report: EngineReport, columns: Columns[Group], *, counts: bool = True
) -> Table:
    """Return a row for each group, and one for all layers."""
    counting: Columns[Group] = [counts and (number("layers"), lambda group: str(len(group[1])))]
    table = tabulate([*groups, (_ALL, report.layers)], [*counting, *columns])
    alike: dict[tuple[Cell, ...], list[str]] = {}
    for (name, _), row in zip(groups, table.rows[:-1], strict=True):
        alike.setdefault(("" if get_block(name) is not None else name, *row.cells), []).append(name)
    rows = [TableRow((_name_alike(names), *cells)) for (_, *cells), names in alike.items()]
    return Table((text(title), *table.columns), (*rows, TableRow((_ALL, *table.rows[-1].cells), is_marked=True)))


def _name_alike(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{format_parts(parts)}, each"


def _count_by_dtype(report: EngineReport) -> Columns[Group]:
    dtypes = Counter(layer.dtype for layer in report.layers)
    return [(number(dtype), _count_by("dtype", dtype)) for dtype, _ in dtypes.most_common()]


def _group_by_part(report: EngineReport) -> list[Group]:
    return [(part, report.list_part(part)) for part in report.parts]


def _count_by(field: str, value: str) -> Callable[[Group], str]:
    """Return what counts the layers of a group whose field has a value; none is left blank, so that others are seen."""
    return lambda group: str(sum(getattr(layer, field) == value for layer in group[1]) or "")


def _describe_operands(layer: Layer) -> str:
    return " x ".join(dict.fromkeys(layer.operands[:2]))


def _list_types(layers: Sequence[Layer]) -> str:
    """Name the types of layers, sizes and constants last."""
    working = Counter(layer.type for layer in layers if layer.works)
    rest = Counter(KIND_TITLES[layer.kind] for layer in layers if not layer.works)
    named = [f"{count} {name}" if count > 1 else name for name, count in working.items()]
    return ", ".join(
        [*named, *(f"{count} {name if count > 1 else name.removesuffix('s')}" for name, count in rest.items())]
    )
