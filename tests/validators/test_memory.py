from __future__ import annotations

import os

import pytest

from flash_export.models.flash import FlashConfig
from flash_export.models.gau import GauConfig
from flash_export.validators.lengths import Cell
from flash_export.validators.memory import describe_lack_of_memory, read_free_bytes

FLASH = FlashConfig(vocab_size=257, dim=192, depth=2, hidden_dim=384, qk_dim=64, chunk_size=128)
GAU = GauConfig(vocab_size=257, dim=64, depth=2, hidden_dim=128, qk_dim=64)


def estimate(config: FlashConfig | GauConfig, batch: int, seq_len: int) -> int:
    return config.estimate_bytes(batch, seq_len)


def test_estimate_is_linear_with_chunks_and_quadratic_without() -> None:
    assert estimate(FLASH, 1, 1 << 16) == 2 * estimate(FLASH, 1, 1 << 15)
    assert estimate(GAU, 1, 1 << 16) > 3.9 * estimate(GAU, 1, 1 << 15)
    assert estimate(FLASH, 1, 1) == estimate(FLASH, 1, 128)  # one chunk either way


def test_estimate_is_near_what_was_measured() -> None:
    """Peak of the resident memory during a reference run in float64 and an eager one, with PyTorch 2.13 on a CPU."""
    assert estimate(FLASH, 1, 65536) == pytest.approx(1845e6, rel=0.25)
    assert estimate(GAU, 1, 4096) == pytest.approx(876e6, rel=0.25)
    assert estimate(GAU, 3, 2048) == pytest.approx(349e6, rel=0.25)


def test_free_memory_is_less_than_the_machine_has() -> None:
    assert 0 < read_free_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("free", "fits"), [(2.1, True), (1.9, False)])
def test_half_of_the_free_memory_may_be_used(monkeypatch: pytest.MonkeyPatch, free: float, fits: bool) -> None:
    cell = Cell(1, 4096, masked=False)
    monkeypatch.setattr(
        "flash_export.validators.memory.read_free_bytes", lambda: int(free * GAU.estimate_bytes(1, 4096))
    )
    reason = describe_lack_of_memory(GAU, cell)
    assert (reason is None) == fits
    assert fits or "GiB for 1 x 4096" in str(reason)
