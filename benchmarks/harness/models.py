"""The models that are measured: flash-pytorch's module, ways to run the same weights elsewhere, the bundled models."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import nn

import flash_export
from flash_export import ExportOptions, export_onnx
from flash_export.exporters.tracing import quiet_exporter

if TYPE_CHECKING:
    import argparse

ASSETS = Path(flash_export.__file__).parent / "assets"
BUNDLED = ("byte-causal", "byte-masked")
LEGACY_OPSET = 17
# What flash-pytorch and its port may differ by, as a fraction of the output's scale.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class PeerConfig:
    """Constructor arguments of ``FLASHTransformer``, under its own names; the defaults are those of the comparison."""

    dim: int = 512
    num_tokens: int = 1000
    depth: int = 4
    group_size: int = 256
    query_key_dim: int = 128
    expansion_factor: float = 2.0
    causal: bool = False

    @property
    def hidden_dim(self) -> int:
        """Width of values and gates."""
        return int(self.dim * self.expansion_factor)

    @property
    def attention(self) -> str:
        """``causal`` or ``non-causal``."""
        return "causal" if self.causal else "non-causal"

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{self.attention}, d={self.dim}, {self.depth} layers"

    @property
    def import_options(self) -> dict[str, Any]:
        """What flash-export has to be told beside the weights."""
        config = {"group_size": self.group_size, "causal": self.causal}
        return {"family": "flash", "config": config, "assume_defaults": True}


TINY = PeerConfig(dim=32, num_tokens=50, depth=1, group_size=16, query_key_dim=16)


def select_configs(options: argparse.Namespace) -> list[PeerConfig]:
    """Return the models that the command line asks for, the non-causal one first."""
    base = TINY if options.quick else PeerConfig()
    return [replace(base, causal=causal) for causal in (False, True) if options.causal in (None, causal)]


def build_original(config: PeerConfig) -> nn.Module:
    """Build flash-pytorch's module with random weights whose attention is not negligible."""
    from flash_pytorch import FLASHTransformer  # here, so that a benchmark without it can use the rest

    torch.manual_seed(0)
    model = FLASHTransformer(**asdict(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.normal_(1.0, 0.1)  # its own initial value, 0.02, would hide a wrong attention
    return model.requires_grad_(requires_grad=False)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained values, those that are shared counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_original(config: PeerConfig, folder: Path) -> Path:
    """Write the weights of flash-pytorch's module, and return their path."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(build_original(config).state_dict(), folder / "model.pt")
    return folder / "model.pt"


def export_ours(config: PeerConfig, folder: Path, *, options: ExportOptions | None = None) -> Path:
    """Export the same weights with flash-export, through its importer, and return the graph's path."""
    weights = save_original(config, folder)
    return export_onnx(weights, folder / "bundle", options=options, **config.import_options).get_graph_path()


def export_legacy(config: PeerConfig, path: Path) -> Path:
    """Export the original module with torch's TorchScript exporter.

    Traced at a length that is no multiple of the group: traced at a multiple, the graph would hold no padding and
    fail at every other length. The price is a whole group of padding at the multiples.
    """
    # A new model: rotary_embedding_torch caches the angles of the lengths that it has seen. Sequential hides its
    # keyword-only mask, which the TorchScript exporter would pass by position.
    model = nn.Sequential(build_original(config)).eval()
    tokens = torch.ones(1, 2 * config.group_size + config.group_size // 2, dtype=torch.int64)
    axes = {0: "batch", 1: "seq"}
    with quiet_exporter():
        torch.onnx.export(
            model,
            (tokens,),
            str(path),
            dynamo=False,
            opset_version=LEGACY_OPSET,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_axes={"input_ids": axes, "logits": axes},
        )
    return path


def slim_graph(path: Path, output: Path) -> Path:
    """Simplify a graph with onnxslim."""
    import onnxslim

    with quiet_exporter():
        slimmed: Any = onnxslim.slim(onnx.load(path))
    onnx.save(slimmed, output)
    return output
