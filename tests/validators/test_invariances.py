"""Each invariance is broken by a runner that breaks it and nothing else, and held by one that does not."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.bundle.manifest import AxisRange, GraphSpec
from flash_export.data.sources import Data, RandomSource
from flash_export.interface import Mask, TensorSpec
from flash_export.limits import ErrorBudget
from flash_export.models.flash import FlashConfig
from flash_export.validators.backends import Backend
from flash_export.validators.invariances import INVARIANCES, check_invariances
from flash_export.validators.shape_checks import CellChecker, OpenBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from flash_export.validators.results import Row

AXES = {"batch": AxisRange(1, 8), "seq": AxisRange(1, 64)}
TOKENS = TensorSpec("input_ids", "int64", ("batch", "seq"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "seq"), Mask())
LOGITS = TensorSpec("logits", "float32", ("batch", "seq", 2))
BUDGET = ErrorBudget(noise_ratio=8.0, floor=1e-6)


class CausalRunner:
    """Sums the tokens so far, and lets a fault spoil the sums."""

    def __init__(self, spoil: Callable[[np.ndarray, np.ndarray, int], np.ndarray], batch: int | None = None) -> None:
        self.spoil, self.batch, self.runs = spoil, batch, 0

    @property
    def name(self) -> str:
        return "fake"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs += 1
        assert self.batch in (None, len(inputs["input_ids"]))
        ids = inputs["input_ids"] * inputs.get("attention_mask", np.ones_like(inputs["input_ids"]))
        sums = self.spoil(ids.cumsum(axis=1).astype(np.float64), inputs["input_ids"], self.runs)
        return {"logits": np.repeat(sums[..., None], 2, axis=2).astype(np.float32)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def keep(sums: np.ndarray, ids: np.ndarray, run: int) -> np.ndarray:
    return sums


def drift(sums: np.ndarray, ids: np.ndarray, run: int) -> np.ndarray:
    return sums + 1e-2 * run


def favour_first_row(sums: np.ndarray, ids: np.ndarray, run: int) -> np.ndarray:
    return sums + (np.arange(len(sums)) == 0)[:, None]


def mix_rows(sums: np.ndarray, ids: np.ndarray, run: int) -> np.ndarray:
    return sums + sums.mean(axis=0, keepdims=True)


def look_ahead(sums: np.ndarray, ids: np.ndarray, run: int) -> np.ndarray:
    return sums + np.roll(ids, -1, axis=1)


def read_padding(sums: np.ndarray, ids: np.ndarray, run: int) -> np.ndarray:
    return ids.cumsum(axis=1) + ids.sum(axis=1, keepdims=True)


def check(
    spoil: Callable[[np.ndarray, np.ndarray, int], np.ndarray], *, masked: bool = False, batch: int | None = None
) -> dict[str, Row]:
    inputs: tuple[TensorSpec, ...] = (TOKENS, MASK) if masked else (TOKENS,)
    axes = AXES
    if batch is not None:
        inputs = tuple(dataclasses.replace(spec, shape=(batch, "seq")) for spec in inputs)
        axes = {**AXES, "batch": AxisRange(batch, batch)}
    runner = CausalRunner(spoil, batch)
    backend = Backend("ort-cpu", "forward", "cpu", inputs, (LOGITS,), lambda: runner)
    graph = GraphSpec("model.onnx", 20, "fp32", inputs, (LOGITS,), axes)
    config = FlashConfig(
        vocab_size=100, dim=4, depth=1, hidden_dim=4, chunk_size=8, qk_dim=4, causal=not masked, mask_divisor="valid"
    )
    backend = dataclasses.replace(backend, open_static=lambda sizes: CausalRunner(keep))
    opened = OpenBackend(backend, runner, runner, BUDGET)
    data = Data(RandomSource(config.interface))
    checker = CellChecker(config, CausalRunner(keep), CausalRunner(keep), 0.0, is_default_plan=False, data=data)
    return {row.check: row for row in check_invariances(opened, checker, graph)}


def test_healthy_runners_hold_all_of_them() -> None:
    rows = check(keep) | check(keep, masked=True)
    without_state = {invariance.name for invariance in INVARIANCES} - {"saved-state"}
    assert rows.keys() == without_state
    assert all(row.status == "passed" and row.tolerance is not None for row in rows.values())
    assert rows["repeat"].tolerance == 0.0


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_graphs_of_one_fixed_batch_hold_all_of_them(batch: int) -> None:
    rows = check(keep, batch=batch)
    assert rows.keys() == check(keep).keys()
    assert {row.status for row in rows.values()} == {"passed"}
    assert {row.batch for row in rows.values()} == {batch}
    assert check(mix_rows, batch=batch)["row-alone"].status == "failed"
    assert check(favour_first_row, batch=batch)["equal-rows"].status == "failed"


def test_what_takes_several_rows_is_skipped_where_the_graph_takes_one() -> None:
    rows = check(keep, batch=1)
    assert {name for name, row in rows.items() if row.status == "skipped"} == {"equal-rows", "row-alone"}
    assert rows["row-alone"].reason == "it takes several rows, and the graph takes one"


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        (drift, "repeat"),
        (favour_first_row, "equal-rows"),
        (mix_rows, "row-alone"),
        (look_ahead, "future"),
        (favour_first_row, "static-shape"),
    ],
)
def test_a_broken_one_is_named(spoil: Callable[[np.ndarray, np.ndarray, int], np.ndarray], broken: str) -> None:
    row = check(spoil)[broken]
    assert row.status == "failed"
    assert "must" in str(row.reason)
    assert row.max_abs_error is not None
    assert row.max_abs_error > (row.tolerance or 0.0)


def test_padding_that_is_read_is_found() -> None:
    assert check(read_padding, masked=True)["padding"].status == "failed"


def test_nan_is_no_agreement() -> None:
    rows = check(lambda sums, ids, run: sums * np.nan)
    assert {row.status for row in rows.values()} == {"failed"}
