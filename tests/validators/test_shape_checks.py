from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.bundle.manifest import ProfileShapes
from flash_export.data.sources import Data, RandomSource
from flash_export.interface import Mask, TensorSpec
from flash_export.limits import ERROR_BUDGETS, Tolerance
from flash_export.models.flash import FlashConfig
from flash_export.validators.backends import Backend
from flash_export.validators.lengths import NOISE_POSITIONS, Cell
from flash_export.validators.shape_checks import CellChecker, OpenBackend

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

INPUTS = (
    TensorSpec("input_ids", "int64", ("batch", "seq")),
    TensorSpec("attention_mask", "int64", ("batch", "seq"), Mask()),
)
OUTPUTS = (TensorSpec("logits", "float32", ("batch", "seq", 3)),)


class FakeRunner:
    """Sums each row, so that padding matters, and remembers what it was asked; raises at its ``failing`` run."""

    def __init__(self, *, use_mask: bool = True, failing: int | None = None) -> None:
        self.asked: list[dict[str, np.ndarray]] = []
        self.use_mask = use_mask
        self.failing = failing

    @property
    def name(self) -> str:
        return "fake"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.asked.append(dict(inputs))
        if self.failing == len(self.asked):
            raise RuntimeError("out of\nluck")
        ids = inputs["input_ids"]
        if self.use_mask and "attention_mask" in inputs:
            ids = ids * inputs["attention_mask"]
        total = ids.sum(axis=1, dtype=np.float32)[:, None, None]
        return {"logits": np.broadcast_to(total, (*inputs["input_ids"].shape, 3)).astype(np.float32)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def open_backend(
    runner: FakeRunner, eager: FakeRunner, name: str = "ort-cpu", profiles: tuple[dict[str, ProfileShapes], ...] = ()
) -> OpenBackend:
    backend = Backend(name, "forward", "cpu", INPUTS, OUTPUTS, lambda: runner, profiles)
    return OpenBackend(backend, runner, eager, Tolerance())


def make_checker(eager: FakeRunner, *, budget_s: float = 0.0, mask_divisor: str = "valid") -> CellChecker:
    config = FlashConfig(vocab_size=3, dim=4, depth=1, hidden_dim=4, chunk_size=4, qk_dim=4, mask_divisor=mask_divisor)
    data = Data(RandomSource(config.interface))
    return CellChecker(config, FakeRunner(), eager, budget_s, is_default_plan=False, data=data)


def test_masked_rows_are_compared_with_each_row_alone() -> None:
    eager = FakeRunner()
    (row,) = make_checker(eager).check(Cell(3, 9, masked=True), [open_backend(FakeRunner(), eager)])

    assert row.status == "passed"
    *own, drawn = eager.asked
    assert len(own) == 3
    assert all(set(asked) == {"input_ids"} and asked["input_ids"].shape[0] == 1 for asked in own)
    assert own[0]["input_ids"].shape == (1, 9)
    assert min(asked["input_ids"].shape[1] for asked in own) < 9
    assert drawn["input_ids"].size >= NOISE_POSITIONS


def test_model_that_counts_padding_is_compared_under_the_same_mask() -> None:
    eager = FakeRunner()
    checker = make_checker(eager, mask_divisor="padded")
    (row,) = checker.check(Cell(3, 9, masked=True), [open_backend(FakeRunner(), eager)])

    assert row.status == "passed"
    asked, drawn = eager.asked
    assert asked["input_ids"].shape == (3, 9)
    assert asked["attention_mask"].sum() < 27
    assert "attention_mask" not in drawn


@pytest.mark.parametrize(("seq_len", "status"), [(9, "passed"), (NOISE_POSITIONS, "failed")])
def test_noise_of_a_small_cell_is_that_of_more_draws(seq_len: int, status: str) -> None:
    class Lucky(FakeRunner):
        """Is exact on one row, and off by one part in 2**18 on more: of one draw nobody would know."""

        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            (logits,) = super().run(inputs).values()
            return {"logits": logits if len(logits) == 1 else logits * np.float32(1 + 2.0**-18)}

    class Graph(FakeRunner):
        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            (logits,) = super().run(inputs).values()
            return {"logits": logits * np.float32(1 + 2.0**-17)}

    eager, graph = Lucky(), Graph()
    opened = replace(open_backend(graph, eager), limit=ERROR_BUDGETS["fp32"])
    (row,) = make_checker(eager).check(Cell(1, seq_len, masked=False), [opened])
    assert row.status == status


def test_backend_that_reads_the_padding_fails() -> None:
    eager = FakeRunner()
    checker, careless = make_checker(eager), open_backend(FakeRunner(use_mask=False), eager)

    assert [row.status for row in checker.check(Cell(3, 9, masked=True), [careless])] == ["failed"]
    assert [row.status for row in checker.check(Cell(3, 9, masked=False), [careless])] == ["passed"]


@pytest.mark.parametrize("failing", [1, 2])
def test_exception_fails_its_own_row_only(failing: int) -> None:
    eager = FakeRunner()
    backends = [open_backend(FakeRunner(failing=failing), eager), open_backend(FakeRunner(), eager, "trt:good")]
    first, second = make_checker(eager, budget_s=0.01).check(Cell(1, 9, masked=False), backends)

    assert (first.status, first.reason) == ("failed", "RuntimeError: out of luck")
    assert first.latency_ms is None
    assert second.status == "passed"
    assert second.latency_ms is not None


def test_reference_that_fails_proves_nothing() -> None:
    eager = FakeRunner(failing=1)
    (row,) = make_checker(eager).check(Cell(1, 9, masked=False), [open_backend(FakeRunner(), eager)])

    assert (row.status, row.reason) == ("failed", "the eager model failed: RuntimeError: out of luck")


def test_shape_outside_of_a_profile_is_not_run() -> None:
    eager, runner = FakeRunner(), FakeRunner()
    profile = {"input_ids": ProfileShapes((1, 1), (1, 4), (1, 8))}
    (row,) = make_checker(eager).check(Cell(1, 9, masked=False), [open_backend(runner, eager, profiles=(profile,))])

    assert row.status == "skipped"
    assert "outside of the engine's profiles" in str(row.reason)
    assert runner.asked == []
    assert eager.asked == []


def test_slow_runs_are_not_timed_and_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flash_export.validators.shape_checks._MAX_PAIR_S", -1.0)
    eager = FakeRunner()
    (row,) = make_checker(eager, budget_s=0.5).check(Cell(1, 9, masked=False), [open_backend(FakeRunner(), eager)])

    assert row.status == "passed"
    assert row.latency_ms is None
    assert "latency not measured" in str(row.reason)


def test_noise_of_small_cells_is_drawn_once_a_length() -> None:
    eager = FakeRunner()
    checker, backend = make_checker(eager), open_backend(FakeRunner(), eager)
    for batch in (1, 2, 3):
        checker.check(Cell(batch, 9, masked=False), [backend])
    assert sum(asked["input_ids"].size >= NOISE_POSITIONS for asked in eager.asked) == 1
