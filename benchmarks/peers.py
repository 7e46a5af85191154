"""The models that are compared: flash-pytorch's module, and the ways to run the same weights elsewhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from flash_pytorch import FLASHTransformer
from torch import nn

from flash_export.exporters.export import export_onnx
from flash_export.exporters.tracing import quiet_exporter

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from flash_export.config import ExportOptions

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


TINY = PeerConfig(dim=32, num_tokens=50, depth=1, group_size=16, query_key_dim=16)


def choose_configs(*, quick: bool) -> tuple[PeerConfig, PeerConfig]:
    """Return the non-causal and the causal model."""
    base = TINY if quick else PeerConfig()
    return base, replace(base, causal=True)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Let the user choose one of the two models."""
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--causal", dest="causal", action="store_true", default=None, help="the causal model alone")
    kind.add_argument("--non-causal", dest="causal", action="store_false", help="the non-causal model alone")


def select_configs(options: argparse.Namespace) -> list[PeerConfig]:
    """Return the models that the command line asks for."""
    configs = choose_configs(quick=options.quick)
    return [config for config in configs if options.causal in (None, config.causal)]


def name_attention(config: PeerConfig) -> str:
    """Return ``causal`` or ``non-causal``."""
    return "causal" if config.causal else "non-causal"


def build_original(config: PeerConfig) -> nn.Module:
    """Build flash-pytorch's module with random weights whose attention is not negligible."""
    torch.manual_seed(0)
    model = FLASHTransformer(**asdict(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.normal_(1.0, 0.1)  # its own initial value, 0.02, would hide a wrong attention
    return model.requires_grad_(requires_grad=False)


class TokensOnly(nn.Module):
    """A model without its keyword-only mask, which the TorchScript exporter would pass by position."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model."""
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the model's logits."""
        return self.model(input_ids)


def export_ours(config: PeerConfig, folder: Path, *, options: ExportOptions | None = None) -> Path:
    """Export the same weights with flash-export, through its importer, and return the graph's path."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.pt"
    torch.save(build_original(config).state_dict(), weights)
    arguments = {"group_size": config.group_size, "causal": config.causal}
    bundle = export_onnx(
        weights, folder / "bundle", options=options, family="flash", config=arguments, assume_defaults=True
    )
    return bundle.get_graph_path("forward")


def export_legacy(config: PeerConfig, path: Path) -> Path:
    """Export the original module with torch's TorchScript exporter.

    Traced at a length that is no multiple of the group: traced at a multiple, the graph would hold no padding and
    fail at every other length. The price is a whole group of padding at the multiples.
    """
    # A new model: rotary_embedding_torch caches the angles of the lengths that it has seen.
    model = TokensOnly(build_original(config)).eval()
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


def bind_eager(model: Callable[..., Any], tokens: np.ndarray) -> Callable[[], object]:
    """Return a function that runs a PyTorch model."""
    inputs = torch.from_numpy(tokens)

    def run() -> object:
        with torch.inference_mode():
            return model(inputs)

    return run


def compute_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference as a fraction of the largest expected magnitude."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
