"""Every benchmark runs, at a size at which its numbers mean nothing, and writes JSON; the helpers count right."""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from flash_export.errors import ConfigError
from flash_export.exporters.analysis import analyse_graph
from tests.models.oracles import find_oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.peer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module the way the script does: with ``benchmarks`` as the first folder of the search path."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.fixture
def run_quick(
    load_module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Run a benchmark's main function for one tiny model, in this process, and return its JSON."""

    def run(name: str, *arguments: str) -> dict[str, Any]:
        module = load_module(name)
        for attribute, value in {
            "run_in_process": lambda function, *rest: function(*rest),
            "ATTENTIONS": (True,),
            "COMMAND_RUNS": 1,
        }.items():
            if hasattr(module, attribute):
                monkeypatch.setattr(module, attribute, value)
        target = tmp_path / "result.json"
        module.main(["--quick", "--json", str(target), *arguments])
        results: dict[str, Any] = json.loads(target.read_text())
        environment = results.pop("environment")
        assert environment["packages"]["torch"] == metadata.version("torch")
        assert environment["packages"]["flash-pytorch"] == metadata.version("flash-pytorch")
        assert environment["cores"] >= 1
        return results

    return run


@pytest.mark.slow
def test_compare(run_quick: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxslim")
    pytest.importorskip("openvino")
    (comparison,) = run_quick("compare", "--causal", "--no-compile", "--lengths", "20")["comparisons"]
    (length,) = comparison["lengths"]
    assert set(length["median_ms"]) == {
        "eager",
        "legacy",
        "legacy+slim",
        "ours",
        "ours, segments",
        "ours, OpenVINO",
        "limit",
        "Transformer",
    }
    assert length["ratio_to_ours"]["ours"] == 1
    assert "geometric mean" in capsys.readouterr().out


@pytest.mark.slow
def test_attention(run_quick: Callable[..., dict[str, Any]]) -> None:
    (row,) = run_quick("attention", "--causal", "--lengths", "20")["attentions"]
    assert set(row["median_ms"]) == {"written out", "operator"}
    assert row["ratio"] > 0


@pytest.mark.slow
def test_bisection(run_quick: Callable[..., dict[str, Any]]) -> None:
    (finding,) = run_quick("bisection")["findings"]
    assert (finding["found"], finding["verdict"]) == ("layers.3.value", "in place")


def test_compare_refuses_another_model(load_module: Callable[[str], Any]) -> None:
    compare, logits = load_module("compare"), np.ones((1, 5, 50), np.float32)
    compare.check_outputs({"eager": logits, "legacy": logits})
    with pytest.raises(RuntimeError, match=r"legacy differs from flash-pytorch by 0\.01 of the output's scale"):
        compare.check_outputs({"eager": logits, "legacy": 1.01 * logits})


@pytest.mark.slow
def test_long_sequences(run_quick: Callable[..., dict[str, Any]]) -> None:
    results = run_quick("long_sequences", "--causal", "--lengths", "40,80")["long_sequences"]
    assert [result["way"] for result in results] == ["one pass", "segments"]
    for result in results:
        assert [length["seq_len"] for length in result["lengths"]] == [40, 80]
        assert result["lengths"][0]["time_ratio"] == 1


@pytest.mark.slow
def test_mixed_lengths(run_quick: Callable[..., dict[str, Any]]) -> None:
    results = run_quick("mixed_lengths", "--causal")
    assert len(results["lengths"]) == 5
    assert [len(model["settings"]) for model in results["mixed_lengths"]] == [4]


@pytest.mark.slow
def test_decode(run_quick: Callable[..., dict[str, Any]]) -> None:
    results = run_quick("decode", "--steps", "30")
    rows = {row["name"]: row["value"] for row in results["decode"]}
    assert {"step at position 100 / position 10", "forward / step at 64", "Transformer / ours at 16"} < set(rows)
    assert rows["keys and values / state at 64"] == pytest.approx(4 * rows["keys and values / state at 16"])
    assert len(results["endurance"]["resident_mib"]) == 3


@pytest.mark.slow
def test_extend(run_quick: Callable[..., dict[str, Any]]) -> None:
    rows = {row["name"]: row["value"] for row in run_quick("extend")["extend"]}
    ratios = {"extend of 1 / decode of 1", "extend of a chunk / prefill of a chunk", "turn, steps / turn, extend"}
    assert ratios <= set(rows)
    assert all(value > 0 for value in rows.values())


def test_decode_refuses_another_model(
    load_module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decode, models = load_module("decode"), load_module("harness.models")
    path = models.export_ours(replace(models.TINY, causal=True), tmp_path)
    step = decode.OrtStateRunner.step
    monkeypatch.setattr(decode.OrtStateRunner, "step", lambda self, tokens: 1.01 * step(self, tokens))
    with pytest.raises(RuntimeError, match=r"decoding at position 19 differs from reading the text at once by 0\.01 "):
        decode.prepare_step(path, 20, models.TINY.num_tokens)


@pytest.fixture
def no_fp8(load_module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it impossible to make fp8."""
    precisions = load_module("harness.precisions")
    quantize = precisions.quantize_bundle

    def refuse(bundle: Any, output: Path, *, options: Any) -> Any:
        if options.scheme == "fp8":
            raise ConfigError("fp8 needs more")
        return quantize(bundle, output, options=options)

    monkeypatch.setattr(precisions, "quantize_bundle", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("no_fp8")
def test_precision(
    run_quick: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "precision.md"
    page.write_text("before\n<!-- precision table: begin -->\nold\n<!-- precision table: end -->\nafter\n")
    results = run_quick("precision", "--only", "int4,fp8", "--no-build", "--markdown", str(page))

    assert [model["model"] for model in results["models"]] == ["byte-causal", "byte-masked"]
    for model in results["models"]:
        assert [entry["name"] for entry in model["trade_off"]["entries"]] == ["fp32", "int4"]
        assert model["trade_off"]["entries"][1]["quality"]["measures"]["kl_bits"] > 1e-9
        assert model["not_made"] == {"fp8": "fp8 needs more"}
    assert [(case["graph"], case["precision"]) for case in results["cases"]] == [("decode", "int4")]
    assert all(case["speed"] > 0 and case["error"] > 1e-6 for case in results["cases"])
    # Of tiny graphs, the nodes are most, and there are more of them.
    assert all(0 < case["size"] < 1.5 for case in results["cases"])
    assert results["engines"] == []
    verdicts = {target["what"]: target["verdict"] for target in results["targets"]}
    assert verdicts["step, d=32, no budget, int4: size / fp32"] == "NOT reached (<= 0.2)"

    text = page.read_text()
    assert (text.startswith("before\n<!--"), text.endswith("-->\nafter\n"), "old" in text) == (True, True, False)
    assert text.count("- fp8: fp8 needs more") == 2
    assert text.count("| int4 |") >= 3
    assert "fp8 needs more" in capsys.readouterr().out


def test_precision_of_what_is_not_measured_reaches_no_target(load_module: Callable[[str], Any]) -> None:
    precision, precisions = load_module("precision"), load_module("harness.precisions")
    case = precisions.Case("a run", "forward", "int8", 512, reason="no kernel")
    assert {figure.target for figure in precision.judge_case(case)} == {"NOT reached (not measured)"}
    good = precisions.Case("a run", "decode", "int4", 1024, speed=1.6, size=0.19)
    assert [figure.target for figure in precision.judge_case(good)] == ["reached (>= 1.5)", "reached (<= 0.2)"]


def test_precision_tables_need_their_markers(load_module: Callable[[str], Any], tmp_path: Path) -> None:
    report, page = load_module("harness.report"), tmp_path / "page.md"
    for text in ("nothing", f"{report.END}\n{report.BEGIN}", f"{report.BEGIN}\n{report.BEGIN}\n{report.END}"):
        page.write_text(text)
        with pytest.raises(ConfigError, match=r"has no place for the tables; add the lines"):
            report.write_between_markers(page, ["new"])
        assert page.read_text() == text


def test_table_of_a_page(load_module: Callable[[str], Any]) -> None:
    report = load_module("harness.report")
    figures = [report.Figure("x|y", 1.234), report.Figure("z", None)]
    table = report.make_table(figures, {"name": "name", "ms": "value"}, left=1)
    assert [column.align for column in table.columns] == ["left", "right"]
    assert [row.cells for row in table.rows] == [("x|y", "1.23"), ("z", None)]


def test_columns_are_attributes_with_formats(load_module: Callable[[str], Any]) -> None:
    report = load_module("harness.report")
    figures = [report.Figure("a", 0.25), report.Figure.judge("b", None, at_most=1.0)]
    cells = report.tabulate(figures, {"": "name", "share": "value:.0%", "target": "target"})
    assert cells == [["a", "25%", None], ["b", None, "NOT reached (not measured)"]]


@pytest.mark.slow
def test_export_cost(run_quick: Callable[..., dict[str, Any]]) -> None:
    rows = {row["name"]: row["value"] for row in run_quick("export_cost", "--no-build")["export_cost"]}
    assert rows["causal: parameters, millions"] == pytest.approx(0.0103, abs=1e-4)
    assert rows["causal: export, s"] > 0


@pytest.mark.slow
def test_profile_graph(run_quick: Callable[..., dict[str, Any]]) -> None:
    (profile,) = run_quick("profile_graph", "--causal", "--seq-len", "20")["profiles"]
    names = [node["name"] for node in profile["nodes"]]
    assert any(name.startswith("layers.0") for name in names)
    assert {"shape", "operator", "time_ms"} < set(profile["nodes"][0])


def test_lowering_steps(run_quick: Callable[..., dict[str, Any]]) -> None:
    results = run_quick("lowering_steps", "--causal", "--only", "shapes")
    (timing,) = results["steps"]
    assert timing["nodes_without"] == timing["nodes_with"] > 0
    assert timing["quartiles"][0] <= timing["ratio"] <= timing["quartiles"][1]
    assert results["memory"][0]["seq_len"] == 64


@pytest.mark.parametrize("causal", [False, True])
def test_a_step_taken_back_changes_nothing(load_module: Callable[[str], Any], tmp_path: Path, causal: bool) -> None:
    models, lowering_steps = load_module("harness.models"), load_module("lowering_steps")
    config = replace(models.TINY, depth=2, causal=causal)
    model = lowering_steps.load_model(config, tmp_path).requires_grad_(requires_grad=False).eval()
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, config.num_tokens, (2, 37)))
    mask = (torch.arange(37) < torch.tensor([[37], [21]])).long()
    valid, expected = mask.bool(), model(tokens, mask)
    for step in lowering_steps.select_steps(config, ""):
        with step.take_back(model) as lowered:
            error = (lowered(tokens, mask) - expected)[valid].abs().max()
        assert error <= lowering_steps.TOLERANCE * expected[valid].abs().max(), step.name


# Nodes that a block has more without a step, causal and not; as many as docs/lowering.md says.
NODES_WITHOUT = {
    False: {
        "values of padding zeroed, not scores masked": 1,
        "divisors and norm gain in the weights": 1,
        "queries and keys in the product of the gates": 3,
        "values in a product of their own": -4,
        "rotary without cutting channels out": 3,
        "token shift by half a token": 1,
    },
    True: {
        "no mask where padding is in the future": 1,
        "divisors and norm gain in the weights": 2,
        "bias table hides the future": 1,
        "queries and keys in the product of the gates": 3,
        "values in a product of their own": -4,
        "rotary without cutting channels out": 3,
        "token shift by half a token": 1,
        "CumSum, not a triangular product": 2,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_a_step_taken_back_is_not_in_the_graph(load_module: Callable[[str], Any], tmp_path: Path, causal: bool) -> None:
    models, lowering_steps = load_module("harness.models"), load_module("lowering_steps")
    config = replace(models.TINY, depth=2, causal=causal)
    model, nodes = lowering_steps.load_model(config, tmp_path), {}
    for step in lowering_steps.select_steps(config, ""):
        with step.take_back(model) as lowered:
            graph = lowering_steps.write_graph(lowered, tmp_path / "without.onnx", mask=step.mask)
        nodes[step.name] = analyse_graph(graph).nodes_by_block[config.depth - 1]
    ours = nodes["none: the noise"]
    assert {name: count - ours for name, count in nodes.items() if count != ours} == NODES_WITHOUT[causal]


def test_transformer_has_as_many_parameters(load_module: Callable[[str], Any]) -> None:
    models, transformer = load_module("harness.models"), load_module("harness.transformer")
    config = models.PeerConfig()
    wanted = models.count_parameters(models.build_original(config))
    assert models.count_parameters(transformer.build_transformer(config)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_limit_counts_the_arithmetic_of_the_model(load_module: Callable[[str], Any], causal: bool) -> None:
    from flash_export.models.flash import FlashConfig

    models, limit = load_module("harness.models"), load_module("harness.limit")
    config = models.PeerConfig(causal=causal)
    ours = FlashConfig(config.num_tokens, config.dim, config.depth, config.hidden_dim, causal=causal)
    products = limit.list_products(config, 1000)
    assert sum(product.flops for product in products) == 2 * ours.count_macs(1000)


def test_rounds_that_others_disturb_are_repeated(
    load_module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = load_module("harness.timing")
    shares = iter([0.5, 0.01, 0.3, 0.02])
    monkeypatch.setattr(timing.Activity, "compute_others_share", lambda _self: next(shares))
    candidates = {"a": lambda: time.sleep(1e-3), "b": lambda: None}
    timings = timing.time_alternating(candidates, timing.Effort(rounds=2, block_ms=1))
    assert timings.others_share == (0.01, 0.02)
    assert timings.compute_ratio("a", "b") > 10
    assert timings.medians_ms["a"] >= 1


def test_peak_memory_is_that_of_the_process(load_module: Callable[[str], Any]) -> None:
    processes = load_module("harness.processes")
    array = np.ones(1 << 22)
    assert processes.read_peak_mib() >= array.nbytes / processes.MIB
    assert processes.run_in_process(len, "abc") == 3


@pytest.mark.slow
def test_bf16_on_cpu(run_quick: Callable[..., dict[str, Any]]) -> None:
    (model,) = run_quick("bf16_on_cpu")["models"]
    for found in model["accuracy"].values():
        assert found["fp32"]["error"] < 1e-5 < found["islands"]["error"] < found["own bf16"]["error"] < 0.1


@pytest.mark.slow
def test_islands(run_quick: Callable[..., dict[str, Any]]) -> None:
    taken_back, provoked, texts = run_quick("islands").values()
    assert all(ratio > 0 for *_, ratio in texts)
    errors = {(row["model"], row["change"]): row["error"] for row in taken_back}
    assert errors["byte-causal", "fp16, norms square in half"] > 10 * errors["byte-causal", "fp16"]
    assert all(row["finite"] < 1 for row in provoked if row["change"].endswith("minimal"))
    assert all(row["finite"] == 1 for row in provoked if "auto" in row["change"])


@pytest.mark.slow
def test_speech(run_quick: Callable[..., dict[str, Any]]) -> None:
    results = run_quick("speech", "--clearvoice", str(find_oracle("clearvoice==0.1.2")))
    assert [row["kind"] for row in results["speeds"]] == ["enhancement", "separation"]
    assert all(0.3 < row["products"] <= 1 for row in results["speeds"])
    figures = {figure["name"]: figure for figure in results["figures"]}
    assert figures["enhancement: nodes of the legacy export"]["value"] > 1000
    for kind in ("enhancement", "separation"):
        assert figures[f"{kind}: error as a multiple of clearvoice's own"]["value"] < 8
