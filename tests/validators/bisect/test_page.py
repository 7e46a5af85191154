from __future__ import annotations

from rich.console import Console

from flash_export.report.html import render_html
from flash_export.report.terminal import print_document
from flash_export.validators.bisect.page import build_depth_plot, describe_bisection
from flash_export.validators.bisect.results import BisectReport, ProbeRow, Run
from flash_export.validators.bisect.summary import describe_finding, group_by_block, pick_worst

EMBEDDING = ProbeRow("embedding", "graph/Add_0:0", "clean", 1e-8, 2e-8, 3e-5, label="embedding")
NORMED = ProbeRow(
    "layers.7.normed", "layers.7/Reshape_0:0", "clean", 1.3e-6, 1e-6, 3e-5, label="input after norm and token shift"
)
KV = ProbeRow(
    "layers.7.kv", "layers.7.linear/CumSum_0:0", "wrong", 3e-2, 1e-6, 3e-5, "from chunk 2 on", "linear key-value sum"
)
LINEAR = ProbeRow("layers.7.linear", "layers.7.linear/Reshape_2:0", "infinite", None, 1e-6, 3e-5, label="linear part")
LOGITS = ProbeRow("logits", "logits", "missing", note="the graph has no such value", label="logits")
RUN = Run(2, 300, True, (EMBEDDING, NORMED, KV, LINEAR, LOGITS))
FOUND = BisectReport("bundle", "float64 model", "ort-cpu", (RUN,))
BROKEN = BisectReport(
    "bundle", "float64 model", "ort-cpu", (Run(2, 300, False, (), "Fail: Reshape of node layers.0/Reshape_0"),)
)
CLEAN = BisectReport("bundle", "float64 model", "ort-cpu", (Run(1, 9, False, (EMBEDDING, NORMED, LOGITS)),))


def show(report: BisectReport) -> str:
    console = Console(width=200, record=True, force_terminal=False)
    print_document(describe_bisection(report), console)
    return console.export_text()


def test_finding_is_one_sentence_in_the_model_s_terms() -> None:
    assert describe_finding(FOUND) == (
        "Block 7, linear key-value sum: relative error 3.0e-02, 1,000 times the limit (from chunk 2 on); it is the "
        "first point above the noise floor, everything before is below 2e-06 (at 2 x 300 masked)"
    )
    assert describe_finding(CLEAN) == (
        "No fault found: 2 quantities are within their limits at 1 x 9; the nearest to its own is block 7, input after "
        "norm and token shift with 4.3% of it; 1 quantities are not in the graph and were not compared"
    )


def test_rows_are_grouped_by_block_and_the_first_wrong_one_is_the_fault() -> None:
    assert RUN.fault is KV
    assert [len(rows) for rows in group_by_block(RUN)] == [1, 3, 1]
    assert pick_worst([NORMED, KV, LINEAR]) is LINEAR
    assert pick_worst([NORMED, KV]) is KV


def test_terminal_shows_the_block_at_fault() -> None:
    text = show(FOUND)
    assert "linear key-value sum" in text
    assert "input after norm and token shift" in text
    assert "In the graph it is the value layers.7.linear/CumSum_0:0" in text
    assert "FOUND  Block 7, linear key-value sum" in text
    assert "CLEAN  No fault found" in show(CLEAN)
    assert (
        show(BROKEN)
        .strip()
        .endswith(
            "FOUND  The graph does not run at 2 x 300, so that nothing in it can be read: Fail: Reshape of node "
            "layers.0/Reshape_0"
        )
    )


def test_page_stands_alone_and_names_the_fault() -> None:
    page = render_html(describe_bisection(FOUND))
    assert "Block 7, linear key-value sum is wrong first." in page
    assert page.count("<svg") == 4  # the plot and three keys
    assert 'class="marked"' in page
    assert "In the graph it is the value layers.7.linear/CumSum_0:0." in page
    assert "http://" not in page
    assert "https://" not in page
    assert "Every quantity is within its limit." in render_html(describe_bisection(CLEAN))
    assert "The graph does not run." in render_html(describe_bisection(BROKEN))


def test_plot_has_a_mark_for_every_number_and_one_at_the_fault() -> None:
    plot = build_depth_plot(RUN)
    assert plot is not None
    assert plot.x.ticks == ((1.0, "7"),)
    points = plot.series[-1].points
    assert [point.kind for point in points] == ["dot", "dot", "cross", "cross"]
    assert points[3].y is None
    assert plot.marker == (points[2].x, "block 7, linear key-value sum")
    nothing = Run(1, 1, False, (ProbeRow("logits", "logits", "clean", 0.0, 0.0, 0.0),))
    assert build_depth_plot(nothing) is None
