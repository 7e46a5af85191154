"""Checkpoints of MossFormer2 as clearvoice saves them, and ModelScope's ``MossFormer2``, which has the same names.

Sizes follow from the shapes. Neither weights nor clearvoice's configs tell the chunk size, a default of its classes;
nor do weights tell the sample rate of a waveform. Both are asked for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.layers.fsmn import DILATED, PLAIN
from flash_export.models.family import Family
from flash_export.models.importers.arguments import ImportedModel
from flash_export.models.mossformer2 import Mossformer2Config, WaveformFrames, build_mossformer2
from flash_export.names import list_names
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from flash_export.models.importers.arguments import GivenArguments

    Tensors = Mapping[str, Tensor]

ENHANCEMENT, SEPARATION = "mossformer.", "mask_net."  # what the names of the mask network begin with
ANCHORS = (*(f"{root}mdl.intra_mdl.norm.weight" for root in (ENHANCEMENT, SEPARATION)), "final_norms.0.weight")
# Our names by those of the library.
AROUND_NAMES = {
    r"norm\.(weight|bias)": r"norm.\1",
    r"conv1d_encoder\.weight": "project.weight",
    r"pos_enc\.(scale|inv_freq)": r"abs_pos_emb.\1",
    r"mdl\.intra_mdl\.norm\.(weight|bias)": r"final_norms.0.\1",
    r"mdl\.intra_norm\.(weight|bias)": r"final_norms.1.\1",
    r"prelu\.weight": "prelu.weight",
    r"conv1d_out\.(weight|bias)": r"to_speakers.\1",
    r"output\.0\.(weight|bias)": r"to_output.\1",
    r"output_gate\.0\.(weight|bias)": r"to_gate.\1",
    r"conv1_decoder\.weight": "to_mask.weight",
}
ATTENTION_NAMES = {
    r"(to_hidden|to_qk|to_out)\.mdl\.0\.g": r"\1.norm.g",
    r"(to_hidden|to_qk|to_out)\.mdl\.1\.(weight|bias)": r"\1.linear.\2",
    r"(to_hidden|to_qk|to_out)\.mdl\.3\.sequential\.1\.conv\.weight": r"\1.conv.weight",
    r"qk_offset_scale\.(gamma|beta)": r"qk_offset_scale.\1",
}
MEMORY_NAMES = {
    r"conv1\.0\.(weight|bias)": r"reduce.0.\1",
    r"conv1\.1\.weight": "reduce.1.weight",
    r"norm1\.(weight|bias)": r"reduce.2.\1",
    r"gated_fsmn\.(to_[uv])\.mdl\.0\.(weight|bias)": r"\1.norm.\2",
    r"gated_fsmn\.(to_[uv])\.mdl\.1\.(weight|bias)": r"\1.linear.\2",
    r"gated_fsmn\.(to_[uv])\.mdl\.3\.sequential\.1\.conv\.weight": r"\1.conv.weight",
    r"gated_fsmn\.fsmn\.(linear|project)\.(weight|bias)": r"fsmn.\1.\2",
    r"gated_fsmn\.fsmn\.conv1\.weight": "fsmn.memory.conv.weight",
    r"gated_fsmn\.fsmn\.conv\.(conv|norm|prelu)1\.(weight|bias)": r"fsmn.memory.stages.0.\1.\2",
    r"gated_fsmn\.fsmn\.conv\.(conv|norm|prelu)2\.(weight|bias)": r"fsmn.memory.stages.1.\1.\2",
    r"norm2\.(weight|bias)": r"expand.0.\1",
    r"conv2\.(weight|bias)": r"expand.1.\1",
}
BLOCK_KEY = re.compile(r"mdl\.intra_mdl\.mossformerM\.(layers|fsmn)\.(\d{1,9})\.(.+)")
OLDER_KEY = "mdl.att_mdl."
CODER_NAMES = {"enc.conv1d.weight": "encoder.weight", "dec.weight": "decoder.weight"}
FREQUENCIES = "rotary_pos_emb.freqs"
LAYER_KEY = re.compile(r"layers\.(\d{1,9})\.")
# What is asked for, by what separates waveforms or not, with clearvoice's values.
CHUNK_DEFAULTS = {"group_size": 256}
RATE_DEFAULTS = {"sampling_rate": 16000}
# What clearvoice's configs repeat.
SIZE_ARGUMENTS = {
    "num_spks": "num_speakers",
    "encoder_embedding_dim": "in_channels",
    "mossformer_sequence_dim": "dim",
    "num_mossformer_layer": "depth",
}
# They do not change what the network computes: how it is run, and what is done before and after it.
IGNORED = (
    *("mode", "use_cuda", "num_gpu", "network", "checkpoint_dir", "input_path", "output_dir"),
    *("one_time_decode_length", "decode_window", "win_type", "win_len", "win_inc", "fft_len", "num_mels"),
)


def import_clearvoice(tensors: Tensors, arguments: GivenArguments) -> ImportedModel:
    """Translate the state dict of a model of speech enhancement or separation.

    Args:
        tensors: The state dict: ``mossformer.*`` of enhancement; ``enc.*``, ``mask_net.*`` and ``dec.*`` of separation.
        arguments: ``group_size``, of separation ``sampling_rate`` too; and what else stands in clearvoice's configs,
            which then has to agree with the weights.

    Raises:
        ConfigError: An argument is missing, unknown, unusable, or contradicts the weights; or a release is named.
        CheckpointError: The tensors that tell the sizes are missing, blocks have different frequencies, or the weights
            are those of MossFormer, the model before.
    """
    if arguments.library_version is not None:
        raise ConfigError(
            f"library_version={arguments.library_version}, but clearvoice's weights are read without a release; "
            "leave --library-version out"
        )
    if any(OLDER_KEY in name for name in tensors):
        raise CheckpointError(
            f"{OLDER_KEY}* are weights of MossFormer, the model before MossFormer2, whose blocks have no memory; it is "
            "not supported"
        )
    own = {name: _drop_kernel_axis(name, tensor) for name, tensor in _rename(tensors).items()}
    fields = _read_sizes(own)
    kernel_size = _get_shape(own, "encoder.weight", 3)[2] if "encoder.weight" in own else None
    defaults = CHUNK_DEFAULTS if kernel_size is None else {**CHUNK_DEFAULTS, **RATE_DEFAULTS}
    _check_arguments(arguments.values, {**fields, "kernel_size": kernel_size})
    missing = [name for name in defaults if name not in arguments.values]
    if missing and not arguments.assume_defaults:
        raise ConfigError(
            f"weights do not tell {', '.join(missing)}; give what the model was built with, such as --set "
            f"{missing[0]}={defaults[missing[0]]}, or take clearvoice's values with --assume-defaults"
        )
    given = {name: arguments.values.get(name, default) for name, default in defaults.items()}
    frames = None if kernel_size is None else WaveformFrames(kernel_size, given["sampling_rate"])
    config = Mossformer2Config(**fields, chunk_size=given["group_size"], frames=frames)
    return ImportedModel(config, own, {name: defaults[name] for name in missing})


def _rename(tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors by our names; whoever matches them with the model refuses those that keep theirs."""
    root = SEPARATION if any(name.startswith(SEPARATION) for name in tensors) else ENHANCEMENT
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = _translate(name.removeprefix(root)) if name.startswith(root) else CODER_NAMES.get(name)
        if ours == FREQUENCIES and not torch.equal(renamed.get(FREQUENCIES, tensor), tensor):
            raise CheckpointError(
                f"{name} differs from that of another block; MossFormer2 turns all blocks by the same frequencies, so "
                "these are not the weights of such a model"
            )
        renamed[ours or name] = tensor
    return renamed


def _translate(name: str) -> str | None:
    """Return our name of a tensor of the mask network; None: there is no such tensor."""
    block = BLOCK_KEY.fullmatch(name)
    if block is None:
        return _expand(name, AROUND_NAMES)
    part, index, rest = block.groups()
    if part == "layers" and rest == FREQUENCIES:
        return FREQUENCIES  # every block repeats what all share
    ours = _expand(rest, ATTENTION_NAMES if part == "layers" else MEMORY_NAMES)
    return None if ours is None else f"layers.{int(index)}.{ours}"


def _expand(name: str, names: Mapping[str, str]) -> str | None:
    matches = (match.expand(ours) for theirs, ours in names.items() if (match := re.fullmatch(theirs, name)))
    return next(matches, None)


def _drop_kernel_axis(name: str, tensor: Tensor) -> Tensor:
    """Return a product that is stored as a convolution of one frame, or a convolution over time as one over a plane."""
    rank = len("oik") if name.endswith("conv.weight") or name in CODER_NAMES.values() else len("oi")
    return tensor.squeeze(-1) if tensor.ndim == rank + 1 and tensor.shape[-1] == 1 else tensor


def _get_shape(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != rank:
        found = list_names(sorted(tensors)) or "nothing"
        raise CheckpointError(
            f"no {rank}-dimensional {name!r} in the checkpoint, by our name (found {found}); give the state dict of "
            "clearvoice's MossFormer2_SE_48K or MossFormer2_SS_16K"
        )
    return tuple(tensors[name].shape)


def _read_sizes(tensors: Tensors) -> dict[str, Any]:
    """Return the config fields that shapes and names tell."""
    dim, in_channels = _get_shape(tensors, "project.weight", 2)
    fsmn = DILATED if "layers.0.fsmn.memory.stages.0.conv.weight" in tensors else PLAIN
    memory = "stages.0.conv" if fsmn == DILATED else "conv"
    return {
        "in_channels": in_channels,
        "dim": dim,
        "depth": 1 + max((int(match[1]) for name in tensors if (match := LAYER_KEY.match(name))), default=-1),
        "hidden_dim": _get_shape(tensors, "layers.0.to_out.linear.weight", 2)[1],
        "out_channels": _get_shape(tensors, "to_mask.weight", 2)[0],
        "qk_dim": _get_shape(tensors, "layers.0.qk_offset_scale.gamma", 2)[1],
        "conv_size": _get_shape(tensors, "layers.0.to_out.conv.weight", 3)[2],
        "fsmn": fsmn,
        "fsmn_dim": _get_shape(tensors, "layers.0.reduce.0.weight", 2)[0],
        "memory_size": _get_shape(tensors, f"layers.0.fsmn.memory.{memory}.weight", 3)[2],
        "num_speakers": _get_shape(tensors, "to_speakers.weight", 2)[0] // max(dim, 1),
    }


def _check_arguments(arguments: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Compare arguments with what the weights tell, and refuse those that nobody knows."""
    sizes = SIZE_ARGUMENTS if told["kernel_size"] is None else {**SIZE_ARGUMENTS, "encoder_kernel_size": "kernel_size"}
    for name, value in arguments.items():
        if name in sizes:
            if value != told[sizes[name]]:
                raise ConfigError(
                    f"{name}={value!r}, but the weights say {told[sizes[name]]!r}; correct it or leave it out"
                )
        elif name not in (*CHUNK_DEFAULTS, *RATE_DEFAULTS, *IGNORED):
            accepted = list_known(name, (*CHUNK_DEFAULTS, *RATE_DEFAULTS, *sizes))
            raise ConfigError(f"unknown argument {name!r}; clearvoice's are {accepted}")


MOSSFORMER2 = Family(
    Mossformer2Config,
    build_mossformer2,
    "clearvoice",
    import_clearvoice,
    {"group_size": "chunk_size", "sampling_rate": "frames"},
    ANCHORS,
)
