"""Importing MossFormer2: clearvoice's checkpoints, what weights do not tell, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.models.checkpoint import load_checkpoint, load_pretrained
from flash_export.models.importers.arguments import GivenArguments
from flash_export.models.importers.clearvoice import import_clearvoice
from flash_export.models.mossformer2 import Mossformer2Config, WaveformFrames
from tests.models.clearvoice_release import import_clearvoice as import_release
from tests.models.clearvoice_release import randomise

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from flash_export.models.importers.arguments import ImportedModel

    Tensors = dict[str, Tensor]

pytestmark = pytest.mark.peer

FAMILY = "mossformer2"
# What clearvoice's YAML files say of the two models, in small.
SE_CONFIG: dict[str, Any] = {
    "mode": "inference",
    "use_cuda": 1,
    "num_gpu": 1,
    "sampling_rate": 48000,
    "network": "MossFormer2_SE_48K",
    "checkpoint_dir": "checkpoints/MossFormer2_SE_48K",
    "one_time_decode_length": 20,
    "decode_window": 4,
    "win_type": "hamming",
    "win_len": 1920,
    "win_inc": 384,
    "fft_len": 1920,
    "num_mels": 60,
}
SS_CONFIG: dict[str, Any] = {
    "mode": "inference",
    "use_cuda": 1,
    "num_gpu": 1,
    "sampling_rate": 16000,
    "network": "MossFormer2_SS_16K",
    "num_spks": 3,
    "encoder_kernel_size": 6,
    "encoder_embedding_dim": 10,
    "mossformer_sequence_dim": 10,
    "num_mossformer_layer": 2,
}
SIZES = {"depth": 2, "qk_dim": 6, "chunk_size": 16, "fsmn_dim": 8}
ENHANCEMENT = Mossformer2Config(4, 10, 2, 20, 9, qk_dim=6, chunk_size=16, fsmn_dim=8)
SEPARATION = replace(
    ENHANCEMENT, in_channels=10, out_channels=10, fsmn="dilated", num_speakers=3, frames=WaveformFrames(6, 16000)
)
BLOCK = "mossformer.mdl.intra_mdl.mossformerM"
TO_U, FSMN = f"{BLOCK}.fsmn.1.gated_fsmn.to_u", f"{BLOCK}.fsmn.1.gated_fsmn.fsmn"


@pytest.fixture(scope="module")
def enhancement() -> nn.Module:
    return randomise(import_release().build_enhancement(4, 10, 9, **SIZES), 0).float().double()


@pytest.fixture(scope="module")
def separation() -> nn.Module:
    return randomise(import_release().build_separation(10, num_speakers=3, kernel_size=6, **SIZES), 0).float().double()


def read(model: nn.Module, arguments: dict[str, Any], **given: Any) -> ImportedModel:
    return import_clearvoice(model.state_dict(), GivenArguments(arguments, **given))


def save_folder(tensors: Tensors, folder: Path, key: str = "model", prefix: str = "") -> Path:
    """Write a folder as clearvoice reads it."""
    state = {f"{prefix}{name}": tensor.float() for name, tensor in tensors.items()}
    torch.save({key: state, "epoch": 120, "step": 5} if key else state, folder / "last_best_checkpoint.pt")
    (folder / "last_best_checkpoint").write_text("last_best_checkpoint.pt\n")
    return folder


@pytest.mark.parametrize(("key", "prefix"), [("model", ""), ("model", "module."), ("", "module."), ("", "")])
def test_folder_of_enhancement_is_clearvoice_s_model(
    enhancement: nn.Module, key: str, prefix: str, tmp_path: Path
) -> None:
    folder = save_folder(enhancement.state_dict(), tmp_path, key, prefix)
    loaded = load_checkpoint(folder, family=FAMILY, config={**SE_CONFIG, "group_size": 16})
    assert loaded.model.config == ENHANCEMENT
    assert loaded.imported.assumed == {}
    where = f"{key}.{prefix}".strip(".")
    assert loaded.imported.notes == ((f"names are under {where} in the file",) if where else ())
    features = torch.randn(1, 21, 4, dtype=torch.float64)
    torch.testing.assert_close(loaded.model.double()(features), enhancement(features)[-1], rtol=1e-8, atol=1e-8)


def test_folder_of_separation_is_clearvoice_s_model(separation: nn.Module, tmp_path: Path) -> None:
    folder = save_folder(separation.state_dict(), tmp_path, prefix="module.")
    loaded = load_checkpoint(folder, family=FAMILY, config={**SS_CONFIG, "group_size": 16})
    assert loaded.model.config == SEPARATION
    waveform = torch.randn(2, 100, dtype=torch.float64)
    expected = torch.stack(separation(waveform), dim=1)
    torch.testing.assert_close(loaded.model.double()(waveform), expected, rtol=1e-8, atol=1e-8)


def test_file_of_modelscope_is_read_like_one_of_clearvoice(separation: nn.Module, tmp_path: Path) -> None:
    torch.save(separation.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_checkpoint(tmp_path, family=FAMILY, config={"sampling_rate": 8000, "group_size": 16})
    assert cast("Mossformer2Config", loaded.model.config).frames == WaveformFrames(6, 8000)


@pytest.mark.parametrize("name", ["enhancement", "separation"])
def test_saved_model_is_loaded_again(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = save_folder(request.getfixturevalue(name).state_dict(), tmp_path)
    model = load_checkpoint(folder, family=FAMILY, assume_defaults=True).model
    model.save_pretrained(tmp_path / "ours")
    again = load_pretrained(tmp_path / "ours")
    assert again.config == model.config
    inputs = torch.randn(1, 30, 4) if name == "enhancement" else torch.randn(1, 30)
    torch.testing.assert_close(again(inputs), model(inputs), rtol=0, atol=0)


def test_checkpoint_in_half_keeps_its_frequencies(enhancement: nn.Module, tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in enhancement.state_dict().items()}, tmp_path / "half.pt")
    loaded = load_checkpoint(tmp_path / "half.pt", family=FAMILY, assume_defaults=True)
    assert "rotary_pos_emb.freqs" in " ".join(loaded.imported.notes)
    for name, formula in loaded.model.compute_frequencies().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], formula, rtol=0, atol=0)


def test_what_weights_do_not_tell_is_asked_for_or_assumed(enhancement: nn.Module, separation: nn.Module) -> None:
    assert read(enhancement, {}, assume_defaults=True).assumed == {"group_size": 256}
    assert read(separation, {}, assume_defaults=True).assumed == {"group_size": 256, "sampling_rate": 16000}
    assert read(separation, SS_CONFIG, assume_defaults=True).assumed == {"group_size": 256}
    with pytest.raises(ConfigError, match=r"weights do not tell group_size; give .* such as --set group_size=256, or"):
        read(enhancement, SE_CONFIG)
    with pytest.raises(ConfigError, match=r"weights do not tell group_size, sampling_rate; .* --assume-defaults"):
        read(separation, {"num_spks": 3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_spks": 2}, "num_spks=2, but the weights say 3; correct it or leave it out"),
        ({"encoder_kernel_size": 16}, "encoder_kernel_size=16, but the weights say 6"),
        ({"encoder_embedding_dim": 512}, "encoder_embedding_dim=512, but the weights say 10"),
        ({"mossformer_sequence_dim": 512}, "mossformer_sequence_dim=512, but the weights say 10"),
        ({"num_mossformer_layer": 24}, "num_mossformer_layer=24, but the weights say 2"),
        ({"num_speakers": 3}, "unknown argument 'num_speakers'; clearvoice's are .*num_spks"),
        ({"group_size": 0}, "chunk_size=0 is not usable"),
        ({"sampling_rate": "16k"}, "sample_rate='16k' is not usable"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(separation: nn.Module, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(separation, {**SS_CONFIG, "group_size": 16, **arguments})


def test_a_kernel_of_the_encoder_is_no_argument_of_enhancement(enhancement: nn.Module) -> None:
    with pytest.raises(ConfigError, match="unknown argument 'encoder_kernel_size'"):
        read(enhancement, {"encoder_kernel_size": 16, "group_size": 16})


def test_a_release_is_not_asked_for(enhancement: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"library_version=0.1.2, .* leave --library-version out"):
        read(enhancement, {}, library_version="0.1.2")


def test_blocks_with_different_frequencies_are_refused(enhancement: nn.Module) -> None:
    name = f"{BLOCK}.layers.1.rotary_pos_emb.freqs"
    tensors = {**enhancement.state_dict(), name: torch.ones(3)}
    with pytest.raises(CheckpointError, match=r"layers\.1\.rotary_pos_emb\.freqs differs from that of another block"):
        import_clearvoice(tensors, GivenArguments(assume_defaults=True))


def test_weights_of_another_kind_of_model_are_refused() -> None:
    def check(tensors: Tensors, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            import_clearvoice(tensors, GivenArguments(assume_defaults=True))

    check({}, r"no 2-dimensional 'project\.weight' in the checkpoint, by our name \(found nothing\); give")
    check({"mdl.att_mdl.norm.weight": torch.ones(4)}, "are weights of MossFormer, the model before MossFormer2")
    check({"mossformer.conv1d_encoder.weight": torch.ones(0, 4, 1)}, r"no 2-dimensional 'layers\.0\.to_out\.linear")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mossformer.classifier.weight": torch.ones(2)}, r"1 unexpected \(mossformer.classifier.weight\)"),
        ({f"{BLOCK}.layers.1.to_qk.mdl.1.bias": None}, r"1 missing \(layers.1.to_qk.linear.bias\)"),
        ({f"{BLOCK}.layers.1.to_qk.mdl.2.bias": torch.ones(6)}, r"1 unexpected \(mossformer.*to_qk.mdl.2.bias\)"),
        ({f"{TO_U}.mdl.1.weight": torch.ones(8, 7)}, r"1 misshapen \(layers.1.to_u.linear.weight \(8, 7\) instead of"),
        ({f"{FSMN}.conv1.weight": torch.ones(8, 1, 39, 2)}, r"1 misshapen \(layers.1.fsmn.memory.conv.weight \(8, 1,"),
        (
            {f"{FSMN}.conv.prelu1.weight": torch.ones(8)},
            r"1 unexpected \(layers.1.fsmn.memory.stages.0.prelu.weight\)",
        ),
        ({f"{BLOCK}.fsmn.2.norm2.bias": torch.ones(8)}, r"\d+ missing \(layers.2.*"),
        ({"mossformer.pos_enc.inv_freq": None}, r"1 missing \(abs_pos_emb.inv_freq\)"),
        ({"enc.bias": torch.ones(1)}, r"1 unexpected \(enc.bias\)"),
    ],
)
def test_names_are_matched_strictly(
    enhancement: nn.Module, change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = {name: x for name, x in {**enhancement.state_dict(), **change}.items() if x is not None}
    folder = save_folder(tensors, tmp_path, key="")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, family=FAMILY, assume_defaults=True)


def test_values_that_are_no_numbers_are_refused(enhancement: nn.Module, tmp_path: Path) -> None:
    tensors = dict(enhancement.state_dict())
    tensors["mossformer.prelu.weight"] = torch.tensor([float("nan")])
    with pytest.raises(CheckpointError, match=r"prelu\.weight holds NaN"):
        load_checkpoint(save_folder(tensors, tmp_path), family=FAMILY, assume_defaults=True)


def test_pickles_that_could_run_code_are_refused(enhancement: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": enhancement.state_dict(), "args": RuntimeError}, tmp_path / "checkpoint.pt")
    (tmp_path / "last_best_checkpoint").write_text("checkpoint.pt")
    with pytest.raises(CheckpointError, match="never loaded because they can run code"):
        load_checkpoint(tmp_path, family=FAMILY, assume_defaults=True)
