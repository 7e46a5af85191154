from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.data.sources import RandomSource
from flash_export.interface import Mask, TensorSpec
from flash_export.models.token_model import describe_token_model
from flash_export.validators import footprint_process
from flash_export.validators.backends import Backend
from flash_export.validators.footprint import FootprintRequest, ShapeCost
from flash_export.validators.footprint_process import measure_backend, read_peak_bytes, read_resident_bytes, reset_peak

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

INTERFACE = describe_token_model(3, needs_mask=True, is_causal=False)
SOURCE = RandomSource(INTERFACE)
MASK = TensorSpec("attention_mask", "int64", ("batch", "seq"), Mask())


class Clock:
    """Advances when a runner works."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class SlowRunner:
    """Takes a millisecond a token, and two more seconds at a length that it sees for the first time."""

    name = "slow"

    def __init__(self, clock: Clock, preparation_s: float = 2.0) -> None:
        self.clock, self.preparation_s = clock, preparation_s
        self.seen: list[tuple[int, ...]] = []
        clock.seconds += 0.5

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shape = inputs["input_ids"].shape
        assert inputs["attention_mask"].all()
        self.clock.seconds += shape[1] / 1000 + (0.0 if shape in self.seen else self.preparation_s)
        self.seen.append(shape)
        return {"logits": np.zeros((*shape, 3), np.float32)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def make_backend(clock: Clock, device: str = "cpu") -> Backend:
    return Backend("slow", "forward", device, (*INTERFACE.inputs, MASK), INTERFACE.outputs, lambda: SlowRunner(clock))


def make_request(*seq_lens: int, budget_s: float = 60.0) -> FootprintRequest:
    return FootprintRequest("bundle", "slow", (), None, 2, seq_lens, budget_s)


def test_every_length_is_run_twice_the_shortest_first() -> None:
    clock = Clock()
    found = measure_backend(make_backend(clock), SOURCE, make_request(100, 200, 400), clock=clock)

    assert found.open_ms == pytest.approx(500)
    assert [shape.seq_len for shape in found.shapes] == [100, 200, 400]
    assert found.shapes[1].first_ms == pytest.approx(2200)
    assert found.shapes[1].second_ms == pytest.approx(200)
    assert found.first_call_ms == pytest.approx(2100)
    assert found.shape_change_ms == pytest.approx(2000)


def test_length_that_would_take_too_long_is_left_out_and_named() -> None:
    clock = Clock()
    found = measure_backend(make_backend(clock), SOURCE, make_request(100, 200, 40_000, budget_s=10.0), clock=clock)

    assert [shape.seq_len for shape in found.shapes] == [100, 200]
    assert found.reason == "40000 tokens were not run: two runs would take more than 10 s"
    assert found.peak_seq_len in (200, None)


def test_shape_change_is_unknown_for_one_length_and_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    assert measure_backend(make_backend(clock), SOURCE, make_request(100), clock=clock).shape_change_ms is None
    costs = [ShapeCost(1, 1.0, 1.0), ShapeCost(2, 1.0, 1.5)]
    monkeypatch.setattr(footprint_process, "_run_shapes", lambda *_: costs)
    assert measure_backend(make_backend(clock), SOURCE, make_request(1, 2), clock=clock).shape_change_ms == 0


def test_memory_of_a_gpu_backend_is_not_that_of_the_process() -> None:
    clock = Clock()
    found = measure_backend(make_backend(clock, "cuda"), SOURCE, make_request(100), clock=clock)
    assert found.peak_bytes is None
    assert "uses that of the GPU" in str(found.reason)


def test_system_that_does_not_tell_has_no_memory_but_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_STATUS", "_CLEAR_REFS"):
        monkeypatch.setattr(footprint_process, name, tmp_path / "nothing" / "here")
    clock = Clock()
    found = measure_backend(make_backend(clock), SOURCE, make_request(100), clock=clock)
    assert found.peak_bytes is found.session_bytes is found.peak_seq_len is None
    assert found.reason == "memory was not measured: only Linux tells the peak of a part of a process"
    assert found.first_call_ms is not None


@pytest.mark.skipif(not footprint_process._CLEAR_REFS.exists(), reason="only Linux resets the peak")
def test_peak_is_of_what_came_after_the_reset() -> None:
    assert reset_peak()
    before = read_resident_bytes()
    peak = read_peak_bytes()
    assert before is not None
    assert peak is not None
    size = 64 << 20
    assert peak - before < size // 4
    # An array could be put where a freed one lies in memory already, so that nothing grows.
    with mmap.mmap(-1, size) as pages:
        pages.write(b"\1" * size)
    after = read_peak_bytes()
    assert after is not None
    assert after - before > 3 * size // 4
