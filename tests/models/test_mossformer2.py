from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from flash_export.data.sources import RandomSource
from flash_export.errors import ConfigError
from flash_export.interface import Waveform
from flash_export.layers.convolution import DepthwiseConv
from flash_export.layers.fsmn import DilatedMemory, PlainMemory
from flash_export.layers.norm import GlobalNorm
from flash_export.models.mossformer2 import (
    Mossformer2Config,
    Mossformer2Model,
    SeparationModel,
    WaveformFrames,
    build_mossformer2,
)
from tests.models.macs import count_weight_macs

ENHANCEMENT = Mossformer2Config(
    in_channels=5, dim=8, depth=2, hidden_dim=14, out_channels=9, qk_dim=6, chunk_size=4, fsmn_dim=10
)
SEPARATION = replace(
    ENHANCEMENT, out_channels=5, fsmn="dilated", num_speakers=3, frames=WaveformFrames(kernel_size=6, sample_rate=8000)
)
CONFIGS = pytest.mark.parametrize("config", [ENHANCEMENT, SEPARATION], ids=["enhancement", "separation"])


def make_model(config: Mossformer2Config) -> Mossformer2Model:
    torch.manual_seed(0)
    return build_mossformer2(config).requires_grad_(requires_grad=False).eval()


def draw(config: Mossformer2Config, batch: int, seq_len: int) -> torch.Tensor:
    (inputs,) = RandomSource(config.interface).draw(batch, seq_len).arrays.values()
    return torch.from_numpy(inputs)


@CONFIGS
def test_interface_is_what_the_model_takes_and_gives(config: Mossformer2Config) -> None:
    interface = config.interface
    for seq_len in (interface.min_len, interface.min_len + 1, 60):
        outputs = make_model(config)(draw(config, 2, seq_len))
        sizes: dict[int | str, int | str] = {"batch": 2, "seq": seq_len}
        assert outputs.shape == tuple(sizes.get(size, size) for size in interface.outputs[0].shape)
        assert outputs.isfinite().all()
    assert (interface.padding, interface.task) == ("refused", "signal")


def test_lengths_count_frames_or_samples() -> None:
    frames, samples = ENHANCEMENT.interface, SEPARATION.interface
    assert (frames.unit, frames.min_len, frames.chunk_size) == ("frames", 1, 4)
    assert replace(ENHANCEMENT, fsmn="dilated").interface.min_len == 2
    assert replace(ENHANCEMENT, in_channels=1).interface.min_len == 2
    assert (samples.unit, samples.min_len, samples.chunk_size) == ("samples", 9, 12)
    assert samples.outputs[0].content == samples.inputs[0].content == Waveform(8000)
    model = cast("SeparationModel", make_model(SEPARATION))
    for seq_len, count in ((9, 2), (11, 2), (12, 3), (60, 19)):
        assert samples.count_frames(seq_len) == count
        assert model.encoder(torch.zeros(1, 1, seq_len)).shape[2] == count


def test_one_frame_is_too_short_for_norms_over_time() -> None:
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        make_model(SEPARATION)(torch.zeros(1, 8))


def test_what_no_frame_reaches_is_silent() -> None:
    sources = make_model(SEPARATION)(draw(SEPARATION, 2, 32))  # nine frames reach to sample 30
    assert (sources[:, :, 30:] == 0).all()
    assert sources[:, :, 29].abs().max() > 0


def test_padding_changes_everything() -> None:
    """So an interface that refuses it is right."""
    features = draw(ENHANCEMENT, 1, 9)
    model = make_model(ENHANCEMENT)
    padded = model(torch.nn.functional.pad(features, (0, 0, 0, 3)))
    assert (padded[:, :9] - model(features)).abs().max() > 1e-3


def test_rows_of_a_batch_do_not_know_of_each_other() -> None:
    for config, seq_len in ((ENHANCEMENT, 1), (ENHANCEMENT, 9), (SEPARATION, 50)):
        model, inputs = make_model(config).double(), draw(config, 3, seq_len).double()
        alone = torch.cat([model(row[None]) for row in inputs])
        torch.testing.assert_close(model(inputs), alone, rtol=0, atol=1e-12)


def test_enhancement_returns_the_mask_of_the_first_speaker() -> None:
    model, features = make_model(ENHANCEMENT), draw(ENHANCEMENT, 2, 5)
    before = model(features)
    model.to_speakers.weight[8:] = 0  # of the second
    torch.testing.assert_close(model(features), before, rtol=0, atol=0)
    model.to_speakers.weight[:8] = 0
    assert (model(features) - before).abs().max() > 0


@CONFIGS
def test_probes_read_the_quantities_in_order(config: Mossformer2Config) -> None:
    names: list[str] = []
    model = make_model(config)
    with model.read_probes(lambda name, _: names.append(name)):
        model(draw(config, 1, 20))
    once = [name.removeprefix("layers.0.") for name in names if not name.startswith("layers.1.")]
    wanted = list(config.quantities)
    assert sorted(once) == sorted(wanted)
    assert [name.removeprefix("layers.1.") for name in names if name.startswith("layers.1.")] == [
        name for name in once if config.quantities[name].place == "block"
    ]
    order = {name: index for index, name in enumerate(wanted)}
    heads = ("quad_q", "quad_k", "lin_q", "lin_k")  # made at once, and named by branch
    assert [order[name] for name in once if name not in heads] == sorted(
        order[name] for name in wanted if name not in heads
    )


@CONFIGS
def test_macs_are_those_of_the_products_and_convolutions(config: Mossformer2Config) -> None:
    counted = count_weight_macs(make_model(config), draw(config, 1, 33))
    num_frames = config.interface.count_frames(33)
    both, padded_len = 2 * config.hidden_dim, -(-num_frames // 4) * 4
    between_frames = 4 * padded_len * (config.qk_dim + both) + 2 * num_frames * config.qk_dim * both
    assert config.count_macs(33) == counted + config.depth * between_frames


def test_convolution_reads_as_far_to_both_sides_and_keeps_channels_apart() -> None:
    conv = DepthwiseConv(3, 5, dilation=2).requires_grad_(requires_grad=False)
    torch.nn.init.ones_(conv.weight)
    x = torch.zeros(1, 20, 3)
    x[0, 9, 1] = 1
    heard = conv(x)[0]
    assert heard[:, 1].nonzero().flatten().tolist() == [5, 7, 9, 11, 13]
    assert (heard[:, [0, 2]] == 0).all()


def test_second_stage_of_a_dilated_memory_reads_neighbouring_channels() -> None:
    """Channel 0 reads channels 0 and 1 of the first stage's output, channel 2 those of the input."""
    memory = DilatedMemory(4, 3).requires_grad_(requires_grad=False).eval()
    x = torch.randn(1, 9, 4)
    before = memory(x)
    changed = x.clone()
    changed[:, :, 1] = torch.randn(1, 9)
    difference = (memory(changed) - before).abs().amax(dim=(0, 1)) > 1e-6
    assert difference.tolist() == [True, False, True, False]


def test_plain_memory_of_nothing_is_what_is_given() -> None:
    memory = PlainMemory(4, 3).requires_grad_(requires_grad=False)
    torch.nn.init.zeros_(memory.conv.weight)
    x = torch.randn(1, 9, 4)
    torch.testing.assert_close(memory(x), x)


def test_global_norm_goes_over_positions_and_channels() -> None:
    norm = GlobalNorm(3)
    torch.nn.init.constant_(norm.bias, 2.0)
    x = 5 + 3 * torch.randn(2, 7, 3)
    normed = norm(x)
    torch.testing.assert_close(normed.mean(dim=(1, 2)), torch.full((2,), 2.0))
    torch.testing.assert_close(normed.std(dim=(1, 2), correction=0), torch.ones(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 7}, "dim=7 is odd; .* use an even width"),
        ({"qk_dim": 1}, "qk_dim=1 is too narrow"),
        ({"conv_size": 16}, "conv_size=16 is even, .*; use an odd one"),
        ({"memory_size": 2}, "memory_size=2 is even"),
        ({"fsmn": "dense"}, "fsmn='dense' is unknown; use one of plain, dilated"),
        ({"frames": {"kernel_size": 6, "sample_rate": 8000}}, "out_channels=9, but .* 5 encoded channels; use 5"),
        ({"frames": {"kernel_size": 1, "sample_rate": 8000}}, "kernel_size=1 leaves no half to move on by"),
        ({"frames": {"kernel_size": 6}}, "config of frames of model_type 'mossformer2' lacks sample_rate"),
        ({"num_speakers": 0}, "num_speakers=0 is not usable"),
    ],
)
def test_unusable_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mossformer2Config.from_dict({**ENHANCEMENT.to_dict(), **changes})
