"""The reference of MossFormer2 against clearvoice 0.1.2's own files, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flash_export.models.importers.arguments import GivenArguments
from flash_export.models.importers.clearvoice import import_clearvoice as import_weights
from flash_export.models.mossformer2 import Mossformer2Model, build_mossformer2
from tests.models.clearvoice_release import ClearvoiceRelease, import_clearvoice, randomise

pytestmark = pytest.mark.peer

RELATIVE_TOLERANCE = 1e-8
PUBLISHED: dict[str, Any] = {"dim": 512, "depth": 1}

sizes: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "dim": st.sampled_from((2, 8, 22)),
        "depth": st.integers(1, 2),
        "qk_dim": st.sampled_from((4, 8, 37)),
        "chunk_size": st.sampled_from((1, 5, 16)),
        "fsmn_dim": st.sampled_from((2, 5, 12)),
        "num_speakers": st.integers(1, 3),
    }
)


@pytest.fixture(scope="module")
def clearvoice() -> ClearvoiceRelease:
    return import_clearvoice()


def load(theirs: nn.Module, chunk_size: int = 256) -> Mossformer2Model:
    """Import clearvoice's tensors into our model in float64, strictly."""
    given = GivenArguments({"group_size": chunk_size, "sampling_rate": 16000})
    imported = import_weights(theirs.state_dict(), given)
    ours = build_mossformer2(imported.config).double().eval().requires_grad_(requires_grad=False)  # type: ignore[arg-type]
    ours.load_state_dict(imported.tensors)
    return ours


def compare(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    assert scale < 1e6  # 0 where the ReLU of the masks leaves nothing; both are then exactly that
    assert actual.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=0, atol=RELATIVE_TOLERANCE * scale)


def check_enhancement(theirs: nn.Module, ours: Mossformer2Model, batch: int, num_frames: int) -> None:
    torch.manual_seed(num_frames)
    features = torch.randn(batch, num_frames, ours.config.in_channels, dtype=torch.float64)
    compare(ours(features), theirs(features)[-1])


def check_separation(theirs: nn.Module, ours: Mossformer2Model, batch: int, num_samples: int) -> None:
    torch.manual_seed(num_samples)
    waveform = torch.randn(batch, num_samples, dtype=torch.float64)
    compare(ours(waveform), torch.stack(theirs(waveform), dim=1))


def test_enhancement_of_published_widths_equals_clearvoice(clearvoice: ClearvoiceRelease) -> None:
    theirs = randomise(clearvoice.build_enhancement(180, out_channels=961, **PUBLISHED), 0)
    ours = load(theirs)
    assert ours.config.hidden_dim == 2 * ours.config.dim
    for num_frames in (1, 257):
        check_enhancement(theirs, ours, 1, num_frames)


def test_wrapper_has_the_published_sizes(clearvoice: ClearvoiceRelease) -> None:
    with torch.device("meta"):
        theirs = clearvoice.wrapper.MossFormer2_SE_48K(None).model
    tensors = theirs.state_dict()
    tensors |= {name: torch.zeros(16) for name in tensors if name.endswith("freqs")}
    imported = import_weights(tensors, GivenArguments(assume_defaults=True))
    with torch.device("meta"):
        ours = build_mossformer2(imported.config)  # type: ignore[arg-type]
    assert (imported.config.depth, imported.config.out_channels) == (24, 961)  # type: ignore[attr-defined]
    assert {name: tensor.shape for name, tensor in imported.tensors.items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }
    assert ours.count_parameters() == sum(
        parameter.numel() for name, parameter in theirs.named_parameters() if not name.endswith("freqs")
    )
    assert 55.2e6 < ours.count_parameters() < 55.3e6


@pytest.mark.parametrize("num_frames", [1, 17, 200, 255, 256, 257, 400])
def test_enhancement_equals_clearvoice_around_its_chunk(clearvoice: ClearvoiceRelease, num_frames: int) -> None:
    theirs = randomise(clearvoice.build_enhancement(12, 16, 21, depth=2, fsmn_dim=8), num_frames)
    check_enhancement(theirs, load(theirs), 1 if num_frames == 1 else 2, num_frames)


@settings(deadline=None, max_examples=40)
@given(
    sizes=sizes,
    in_channels=st.integers(1, 6),
    out_channels=st.integers(5, 12),
    batch=st.integers(1, 3),
    num_frames=st.integers(2, 40),
    seed=st.integers(0, 2**31),
)
def test_enhancement_equals_clearvoice(
    clearvoice: ClearvoiceRelease,
    sizes: dict[str, Any],
    in_channels: int,
    out_channels: int,
    batch: int,
    num_frames: int,
    seed: int,
) -> None:
    theirs = randomise(clearvoice.build_enhancement(in_channels, out_channels=out_channels, **sizes), seed)
    check_enhancement(theirs, load(theirs, sizes["chunk_size"]), batch, num_frames)


@pytest.mark.parametrize("num_samples", [24, 25, 31, 2055, 2056, 2063, 2064, 4099])
def test_separation_equals_clearvoice_around_its_chunk(clearvoice: ClearvoiceRelease, num_samples: int) -> None:
    """A chunk of 256 frames has 2,056 samples."""
    theirs = randomise(clearvoice.build_separation(16, depth=2, fsmn_dim=8), num_samples)
    check_separation(theirs, load(theirs), 2, num_samples)


@settings(deadline=None, max_examples=40)
@given(
    sizes=sizes,
    kernel_size=st.sampled_from((2, 5, 16)),
    num_frames=st.integers(2, 40),
    remainder=st.integers(0, 7),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_separation_equals_clearvoice(
    clearvoice: ClearvoiceRelease,
    sizes: dict[str, Any],
    kernel_size: int,
    num_frames: int,
    remainder: int,
    batch: int,
    seed: int,
) -> None:
    theirs = randomise(clearvoice.build_separation(kernel_size=kernel_size, **sizes), seed)
    ours = load(theirs, sizes["chunk_size"])
    hop = kernel_size // 2
    check_separation(theirs, ours, batch, ours.config.interface.find_length(num_frames) + remainder % hop)


def test_separation_of_published_widths_equals_clearvoice(clearvoice: ClearvoiceRelease) -> None:
    theirs = randomise(clearvoice.build_separation(**PUBLISHED), 0)
    check_separation(theirs, load(theirs), 1, 2081)


def test_shortest_waveform_is_the_shortest_that_clearvoice_takes(clearvoice: ClearvoiceRelease) -> None:
    theirs = randomise(clearvoice.build_separation(16, depth=1, fsmn_dim=8), 0)
    assert load(theirs).config.interface.min_len == 24
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        theirs(torch.randn(1, 23, dtype=torch.float64))


def test_rows_of_a_single_frame_are_mixed_in_clearvoice(clearvoice: ClearvoiceRelease) -> None:
    """Its memory drops all axes of size 1 and adds what is left to every row; ours keeps rows apart."""
    theirs = randomise(clearvoice.build_enhancement(12, 16, 21, depth=1, fsmn_dim=8), 0)
    ours = load(theirs)
    features = torch.randn(2, 1, 12, dtype=torch.float64)
    assert theirs(features)[-1].shape == (2, 2, 21)
    for row in range(2):
        compare(ours(features)[row : row + 1], theirs(features[row : row + 1])[-1])
