"""The tables of a report of an engine: what they count adds up, and each format shows it."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import pytest

from flash_export.exporters.engine_report.alike import list_nodes
from flash_export.exporters.engine_report.page import describe_engine_report
from flash_export.exporters.engine_report.report import report_engine
from flash_export.report.document import Plots, Section, Table
from flash_export.report.html import render_html
from flash_export.report.markdown import render_markdown
from flash_export.runtime.trt_inspector import EngineLayer
from tests.runtime.test_trt import make_engine

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.exporters.engine_report.results import EngineReport
    from tests.conftest import PrecisionExporter

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
COUNTED = ("Layers by type and dtype", "Layers by part of the model", "Dtypes by part of the model")


@pytest.fixture(scope="module")
def report(causal_bundle: Bundle) -> EngineReport:
    return report_engine(causal_bundle, graph="forward")


def get_section(report: EngineReport, title: str) -> Section:
    return next(section for section in describe_engine_report(report).sections if section.title.startswith(title))


def read_table(report: EngineReport, title: str) -> list[dict[str, str]]:
    table = get_section(report, title).block
    assert isinstance(table, Table)
    titles = [column.title for column in table.columns]
    return [dict(zip(titles, map(str, row.cells), strict=True)) for row in table.rows]


def count_blocks(label: str) -> int:
    """Return how many parts a row of a table is of: two for ``blocks 0, 1, each`` and ``before, after, each``."""
    return len(re.findall(r"\d+|before|after|shared", label)) if label.endswith(", each") else 1


@pytest.mark.parametrize("title", COUNTED)
@pytest.mark.parametrize("graph", ["forward", "prefill", "decode"])
def test_rows_and_columns_add_up_to_all_layers(causal_bundle: Bundle, title: str, graph: str) -> None:
    report = report_engine(causal_bundle, graph=graph)
    *rows, total = read_table(report, title)
    label = next(iter(total))
    assert int(total["layers"]) == len(report.layers)
    for column in total.keys() - {label}:
        assert sum(count_blocks(row[label]) * int(row[column] or 0) for row in rows) == int(total[column])
    for row in (*rows, total):
        assert sum(int(row[column] or 0) for column in row.keys() - {label, "layers"}) == int(row["layers"])


def test_alike_blocks_stand_in_one_row_and_others_alone(report: EngineReport) -> None:
    labels = [row["part"] for row in read_table(report, "Layers by part of the model")]
    assert labels == ["before", "blocks 0, 1, each", "after", "shared", "all"]
    first = next(layer for layer in report.layers if layer.part == "block 1" and layer.kind == "product")
    changed = [dataclasses.replace(layer, dtype="float16") if layer is first else layer for layer in report.layers]
    other = dataclasses.replace(report, layers=tuple(changed))
    labels = [row["part"] for row in read_table(other, "Dtypes by part of the model")]
    assert labels == ["before", "block 0", "block 1", "after", "shared", "all"]


def test_nodes_have_every_layer_once(report: EngineReport) -> None:
    rows = list_nodes(report)
    assert sum(len(row.parts) * len(row.layers) for row in rows) == len(report.layers)
    split = next(row for row in rows if row.node == "layers.*/Split_0")
    assert (split.operator, split.parts) == ("Split", ("block 0", "block 1"))
    assert {layer.kind for layer in split.layers} == {"move", "size"}
    assert split.main.type == "SLICE"


def test_casts_are_told_and_their_absence_too(report: EngineReport, export_half: PrecisionExporter) -> None:
    half = report_engine(export_half("bf16"), graph="forward")
    rows = read_table(half, "Casts")
    blocks = [row for row in rows if row["part"] == "blocks 0, 1, each"]
    assert {(row["from"], row["to"]) for row in blocks} >= {("bfloat16", "float32"), ("float32", "bfloat16")}
    assert sum(count_blocks(row["part"]) * int(row["casts"]) for row in rows) == sum(
        layer.kind == "cast" for layer in half.layers
    )
    none = dataclasses.replace(report, layers=tuple(layer for layer in report.layers if layer.kind != "cast"))
    assert "no layer casts" in render_markdown(describe_engine_report(none))


def test_page_holds_plots_tables_and_what_was_not_read(report: EngineReport) -> None:
    page = render_html(describe_engine_report(report))
    assert page.count('<dl class="bars">') == 2
    assert "layers.*/Split_0" in page
    assert "fusions and kernels were not read: this is a graph, from which no engine was built" in page
    plots = next(
        section.block for section in describe_engine_report(report).sections if isinstance(section.block, Plots)
    )
    bars = plots.plots[0]
    assert not hasattr(bars, "series")
    assert sum(sum(bar.pieces) for bar in getattr(bars, "bars", ())) == len(report.layers)


def test_engine_layers_are_a_table_only_if_they_were_read(report: EngineReport) -> None:
    assert not get_section(report, "Layers of the engine").block
    layers = (EngineLayer("fused <0>", "gemm", ("layers.0/Add_0",), ("Half",)),)
    read = dataclasses.replace(report, engine_layers=layers, not_read="")
    assert read_table(read, "Layers of the engine") == [
        {"layer": "fused <0>", "type": "gemm", "gives": "Half", "from ONNX nodes": "layers.0/Add_0"}
    ]
    page = render_html(describe_engine_report(read))
    assert "fused &lt;0&gt;" in page
    assert "not read" not in page


def test_without_sizes_the_counts_remain(report: EngineReport) -> None:
    layers = tuple(dataclasses.replace(layer, outputs=()) for layer in report.layers)
    blind = dataclasses.replace(report, layers=layers, not_measured="a layer is unknown")
    document = describe_engine_report(blind)
    titles = [section.title for section in document.list_sections("page")]
    assert "Largest tensors" not in titles
    assert set(COUNTED) < set(titles)
    assert "shapes, bytes and work skipped: not computed: a layer is unknown" in render_markdown(document)
    assert render_html(document).count('<dl class="bars">') == 1


def test_another_network_than_the_engines_is_a_caveat(report: EngineReport) -> None:
    same = dataclasses.replace(report, engine=make_engine(num_layers=len(report.layers)))
    assert describe_engine_report(same).caveats == ()
    other = dataclasses.replace(report, engine=make_engine(num_layers=7, version="1.6"))
    (caveat,) = describe_engine_report(other).caveats
    assert caveat.startswith(
        "The engine was built from a network of 7 layers by tensorrt-rtx 1.6; what is counted here"
    )
