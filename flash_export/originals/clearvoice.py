"""clearvoice's own MossFormer2: the network of speech enhancement, or the model of speech separation."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import nn

from flash_export.originals.installed import ModelFiles, Original, load_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

DISTRIBUTION = "clearvoice"
# The package's ``__init__`` wants everything from audio files to face detection; torchinfo is imported and not used.
FILES = ModelFiles(
    "clearvoice",
    (
        *("models.mossformer2_se.mossformer2", "models.mossformer2_se.mossformer2_block"),
        *("models.mossformer2_se.mossformer2_se_wrapper",),
        *("models.mossformer2_ss.mossformer2", "models.mossformer2_ss.mossformer2_block"),
    ),
    ("models", "models.mossformer2_se", "models.mossformer2_ss"),
    {"torchinfo": {"summary": None}},
)


@contextlib.contextmanager
def change_defaults(
    model: Any, memory: Any, qk_dim: int = 128, chunk_size: int = 256, fsmn_dim: int = 256
) -> Iterator[None]:
    """Set sizes that no constructor asks for: those of queries, chunks and the memory, whose width comes first.

    Args:
        model: Module of the network.
        memory: Class of the memory.
        qk_dim: Width of queries and keys.
        chunk_size: Frames per chunk.
        fsmn_dim: Width of the memory.
    """
    attention = functools.partial(model.MossFormerM, group_size=chunk_size, query_key_dim=qk_dim)
    defaults = (fsmn_dim, *memory.__init__.__defaults__[1:])
    with (
        mock.patch.object(model, "MossFormerM", attention),
        mock.patch.object(memory.__init__, "__defaults__", defaults),
    ):
        yield


def build(config: Mapping[str, Any], arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Original:
    """Build the network that a checkpoint holds.

    Args:
        config: ``config.json`` of a bundle of family ``mossformer2``, for sizes alone.
        arguments: What the user told; of it only ``group_size`` changes what the network computes.
        tensors: The state dict, by the library's names.

    Raises:
        ValueError: The weights do not fit, or the bundle's model takes a waveform, which the network does not.
    """
    if config.get("spectrum") is not None:
        raise ValueError("the network takes features and the bundle a waveform; export it without --waveform for this")
    (enhancement, memory, wrapper, separation, dilated_memory), stand_ins = FILES.load()
    sizes = {"qk_dim": config["qk_dim"], "fsmn_dim": config["fsmn_dim"]}
    if "group_size" in arguments:
        sizes["chunk_size"] = arguments["group_size"]
    depth, speakers, frames = config["depth"], config["num_speakers"], config["frames"]
    if frames is None:
        with change_defaults(enhancement, memory.Gated_FSMN_Block, **sizes):
            network = enhancement.MossFormer_MaskNet(
                config["in_channels"], config["dim"], config["out_channels"], num_blocks=depth, num_spks=speakers
            )
        module: nn.Module = wrapper.TestNet.__new__(wrapper.TestNet)  # whose constructor has sizes of its own
        nn.Module.__init__(module)
        module.mossformer = network
    else:
        with change_defaults(separation, dilated_memory.Gated_FSMN_Block_Dilated, **sizes):
            module = separation.MossFormer(
                config["in_channels"],
                config["dim"],
                num_blocks=depth,
                kernel_size=frames["kernel_size"],
                num_spks=speakers,
            )
    load_weights(module, tensors, DISTRIBUTION)

    def call(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if frames is None:
            return (module(inputs["features"])[-1],)
        return (torch.stack(module(inputs["waveform"]), dim=1),)

    return Original(module, call, stand_ins)
