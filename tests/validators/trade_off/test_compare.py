from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flash_export.config import WEIGHTS_FILE
from flash_export.data.heldout import open_heldout
from flash_export.errors import ConfigError, InputError
from flash_export.runtime.eager import EagerRunner
from flash_export.runtime.ort import OrtRunner
from flash_export.validators.heldout_score import measure_score
from flash_export.validators.trade_off.compare import CompareOptions, compare_bundles
from tests.validators.conftest import sign_files
from tests.validators.trade_off.conftest import limit_seq_len, scale_weights, use_unknown_operator

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.data.batch import Batch, Outputs
    from tests.validators.trade_off.conftest import BundleMaker

UNTIMED = CompareOptions(threads=1, latency_budget_s=0.0)
TIMED = CompareOptions(seq_lens=(17, 80), threads=1, windows=1, latency_budget_s=0.01)


def test_quality_is_that_of_each_graph(make_bundle: BundleMaker) -> None:
    first, worse = make_bundle("first", seq_len=64), make_bundle("worse", scale_weights(1.05))
    worst = make_bundle("worst", scale_weights(1.5))
    trade = compare_bundles([first, worse, worst], UNTIMED)

    good, bad, awful = (entry.quality for entry in trade.entries)
    assert [entry.name for entry in trade.entries] == ["first", "worse", "worst"]
    assert good.measures["top1_agreement"] == 1
    divergences = [quality.measures["kl_bits"] for quality in (good, bad, awful)]
    assert 0 <= divergences[0] < 1e-9 < divergences[1] < divergences[2]
    assert good.change == 0
    assert bad.score is not None
    assert bad.change == pytest.approx(bad.score / (good.score or 0) - 1)
    assert awful.measures["top1_agreement"] < 0.9
    assert trade
    assert trade.entries[1].timings == ()
    assert trade.entries[1].footprint is None


def test_figures_are_those_of_the_definitions(make_bundle: BundleMaker) -> None:
    bundle = make_bundle("bundle", scale_weights(1.2), seq_len=64)
    trade = compare_bundles([bundle], UNTIMED)
    heldout = open_heldout(bundle)
    assert heldout is not None

    def predict(batch: Batch) -> Outputs:
        return EagerRunner(bundle.load_model(), precision="fp64").run({"input_ids": batch.arrays["input_ids"]})

    assert trade.predictions == sum(sample.counted.sum() for sample in heldout.samples)
    score = measure_score(heldout, bundle.manifest.interface, predict)
    assert trade.reference_score == pytest.approx(score, rel=1e-12)

    graph, divergences, agreeing = OrtRunner(bundle.get_graph(), bundle.get_graph_path()), [], 0
    for sample in heldout.samples:
        arrays = sample.batch.to_inputs(bundle.get_graph().inputs)
        actual = graph.run(arrays)["logits"][sample.counted].astype(np.float64)
        expected = predict(sample.batch)["logits"][sample.counted]
        p, q = (np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True) for logits in (expected, actual))
        divergences += (p * np.log2(p / q)).sum(axis=-1).tolist()
        agreeing += int((p.argmax(axis=-1) == q.argmax(axis=-1)).sum())
    (entry,) = trade.entries
    assert entry.quality.measures["kl_bits"] == pytest.approx(np.mean(divergences), rel=1e-6)
    assert entry.quality.measures["top1_agreement"] == pytest.approx(agreeing / trade.predictions)


def test_without_text_random_tokens_are_read(make_bundle: BundleMaker) -> None:
    trade = compare_bundles([make_bundle("first"), limit_seq_len(make_bundle("short"), 50)], UNTIMED)
    assert trade.data == "random tokens"
    assert trade.predictions == 8 * 50  # what all of them can take
    assert (trade.reference_score, trade.score) == (None, None)
    assert all(entry.quality.score is None and "kl_bits" in entry.quality.measures for entry in trade.entries)


def test_everything_is_timed_beside_the_reference(make_bundle: BundleMaker) -> None:
    trade = compare_bundles([make_bundle("first"), make_bundle("second")], TIMED)
    first, second = trade.entries
    assert [timing.seq_len for timing in second.timings] == [17, 80]
    for timing in (*first.timings, *second.timings):
        assert timing.latency_ms is not None
        assert timing.ratio is not None
        assert timing.latency_ms.runs >= 3
    assert {timing.ratio.median for timing in first.timings if timing.ratio} == {1.0}
    assert second.decode is None  # a model that is not causal has no such graph
    assert second.footprint is not None
    assert second.footprint.peak_seq_len in (None, 80)
    assert second.size_bytes == second.graph_bytes["forward"] == (Path(second.path) / "model.onnx").stat().st_size


def test_bundle_that_cannot_be_run_keeps_its_row_with_the_reason(make_bundle: BundleMaker) -> None:
    trade = compare_bundles([make_bundle("first", seq_len=64), make_bundle("odd", use_unknown_operator)], TIMED)
    first, odd = trade.entries
    assert not trade
    assert first
    (reason,) = odd.reasons
    assert reason.startswith("it cannot be run here: ")
    assert "Nonsense" in reason
    assert odd.path not in reason
    assert odd.size_bytes > 0
    assert [timing.reason for timing in odd.timings] == [reason, reason]


def test_reference_that_cannot_be_run_leaves_figures_without_ratios(make_bundle: BundleMaker) -> None:
    trade = compare_bundles([make_bundle("odd", use_unknown_operator, seq_len=64), make_bundle("good")], TIMED)
    good = trade.entries[1]
    assert good.quality.score == pytest.approx(trade.reference_score)
    assert good.quality.change is None
    assert good.timings[0].latency_ms is not None
    assert good.timings[0].ratio is None


def test_output_that_is_not_finite_is_a_reason(make_bundle: BundleMaker) -> None:
    trade = compare_bundles([make_bundle("first"), make_bundle("nan", scale_weights(math.nan))], UNTIMED)
    assert (trade.entries[1].quality.reason or "").startswith("logits has NaN or infinity in")
    assert trade.entries[1].quality.measures == {}


def test_length_that_only_the_reference_takes_is_a_reason(make_bundle: BundleMaker) -> None:
    short = limit_seq_len(make_bundle("short"), 50)
    trade = compare_bundles([make_bundle("first", seq_len=64), short], TIMED)
    entry = trade.entries[1]
    assert "seq_len=64 exceeds the graph's maximum 50" in (entry.quality.reason or "")
    assert entry.timings[0].latency_ms is not None
    assert "seq_len=80 exceeds the graph's maximum 50" in (entry.timings[1].reason or "")


def test_reference_comes_first_wherever_it_was_given(make_bundle: BundleMaker) -> None:
    first, second = make_bundle("first"), make_bundle("second")
    for given in ([first, second], [first]):
        trade = compare_bundles(given, UNTIMED, reference=second)
        assert [entry.name for entry in trade.entries] == ["second", "first"]


def test_progress_counts_to_the_end(make_bundle: BundleMaker) -> None:
    seen: list[tuple[int, int, str]] = []
    compare_bundles([make_bundle("first", seq_len=64)], TIMED, lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(5))
    assert {total for _, total, _ in seen} == {5}
    assert [label for _, _, label in seen][:2] == ["sample 1 of 1", "timing 1 x 17"]


def test_other_models_are_refused(make_bundle: BundleMaker) -> None:
    first = make_bundle("first")
    other = make_bundle("config")
    text = (other.path / "config.json").read_text().replace('"norm_type": "scalenorm"', '"norm_type": "layernorm"')
    (other.path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config is another model .* norm_type='layernorm' in place of 'scalenorm'"):
        compare_bundles([first, sign_files(other)], UNTIMED)

    trained = make_bundle("trained")
    weights = bytearray((trained.path / WEIGHTS_FILE).read_bytes())
    weights[-1] ^= 1
    (trained.path / WEIGHTS_FILE).write_bytes(bytes(weights))
    with pytest.raises(ConfigError, match=r"trained is another model .* model.safetensors has sha256"):
        compare_bundles([first, sign_files(trained)], UNTIMED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_lens": (97,)}, "seq_len=97 exceeds the graph's maximum 96"),
        ({"seq_lens": ()}, "no value was given for seq"),
        ({"batch": 5}, "batch=5 exceeds the graph's maximum 4"),
    ],
)
def test_shapes_outside_of_the_reference_are_refused(
    pristine_bundle: Bundle, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compare_bundles([pristine_bundle], CompareOptions(**options))


def test_bundles_run_on_the_backend_that_is_asked_for(causal_byte_bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    bundles = [causal_byte_bundle]
    here = compare_bundles(bundles, CompareOptions(seq_lens=(9,), threads=1, windows=1, latency_budget_s=0.01))
    there = compare_bundles(
        bundles, CompareOptions(seq_lens=(9,), backend="openvino", threads=1, windows=1, latency_budget_s=0.01)
    )
    assert (here.backend, there.backend) == ("ort-cpu", "openvino")
    first, second = here.entries[0], there.entries[0]
    assert first.quality.score == pytest.approx(second.quality.score, rel=1e-5)
    assert first.quality.measures["kl_bits"] != second.quality.measures["kl_bits"]  # two runtimes round differently
    assert second.decode is not None
    assert second.decode.latency_ms is not None
    assert second.footprint is not None
    assert second.footprint.backend == "openvino"


def test_bundle_without_an_engine_has_the_reason(causal_byte_bundle: Bundle) -> None:
    trade = compare_bundles([causal_byte_bundle], CompareOptions(backend="trt", windows=1))
    (reason,) = trade.entries[0].reasons
    assert reason.startswith("it cannot be run here: the bundle has no engine of the forward graph; build one with ")


def test_unknown_backend_is_refused_with_the_known_ones() -> None:
    for name in ("ort-cup", "ort-cpu:x"):
        with pytest.raises(ConfigError, match=f"unknown backend '{name}'; use one of .*ort-cpu"):
            CompareOptions(backend=name)


def test_bad_lists_and_options_are_refused(pristine_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="was given twice; give each bundle once"):
        compare_bundles([pristine_bundle, pristine_bundle])
    with pytest.raises(ConfigError, match="no bundle was given"):
        compare_bundles([])
    for options in ({"threads": 0}, {"windows": 0}, {"latency_budget_s": math.nan}, {"latency_budget_s": -1.0}):
        with pytest.raises(ConfigError, match="is not usable"):
            CompareOptions(**options)
