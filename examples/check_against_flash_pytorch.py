"""Compare an exported graph with flash-pytorch's own modules, using nothing of flash-export.

    python examples/check_against_flash_pytorch.py model.pt bundle/model.onnx --family flash --set causal=true
    python examples/check_against_flash_pytorch.py model.pt bundle/model.onnx --family gau --config arguments.json
    python examples/check_against_flash_pytorch.py old.pt bundle/model.onnx --library OLD --library-version 0.1.0

Weights and options are those of ``flash-export onnx``; what is left out has the default of the library's constructor.
For weights of an older release, give the folder it is in: pip install --no-deps --target OLD flash-pytorch==0.1.0.
A graph that takes a mask is compared with one too: each row with what the library gives for it alone or, with
``--set mask_divisor=padded``, the whole batch with the library's own masked answer.

Needs torch, flash-pytorch, onnxruntime and, for such files, safetensors. Exit code 1 if any length differs by more than
``--tolerance`` of the output's scale.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

ANCHOR = "token_emb.weight"
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INSERTED_NAMES = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
PLAIN_NAMES = {
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "transformer",
    "weights",
    "params",
}
FIELDS = {
    "chunk_size": "group_size",
    "sum_over_chunks": "reduce_group_non_causal_attn",
}  # of flash-export's config.json
UNMASKED_RELEASES = ("0.1.0", "0.1.1")  # their mask fails


class GauStack(nn.Module):
    """GAU layers between the embedding and the head that FLASHTransformer has."""

    def __init__(
        self, library: Any, *, dim: int, num_tokens: int, depth: int, norm_type: str, **arguments: Any
    ) -> None:
        """Create the model of a release of the library."""
        super().__init__()
        norm_class = library.ScaleNorm if norm_type == "scalenorm" else nn.LayerNorm
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.abs_pos_emb = library.ScaledSinuEmbedding(dim)
        layers = (library.GAU(dim=dim, norm_klass=norm_class, **arguments) for _ in range(depth))
        self.layers = nn.ModuleList(layers)
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_tokens))

    def forward(self, input_ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return the logits."""
        x = self.token_emb(input_ids)
        x = self.abs_pos_emb(x) + x
        for layer in self.layers:
            x = layer(x, mask=mask)
        logits: Tensor = self.to_logits(x)
        return logits


def read_file(path: Path) -> Any:
    """Read one file, the parts that an index names, or the weights in a folder."""
    if path.is_dir():
        return read_file(next(path / name for name in FOLDER_FILES if (path / name).is_file()))
    if path.name.endswith(".index.json"):
        parts = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        return {name: tensor for part in parts for name, tensor in read_file(path.parent / part).items()}
    if path.suffix == ".safetensors":
        return importlib.import_module("safetensors.torch").load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def name_tensors(values: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dictionaries by their dotted names."""
    if isinstance(values, Tensor):
        yield ".".join(part for part in name.split(".") if part not in INSERTED_NAMES), values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from name_tensors(value, f"{name}.{key}" if name else str(key))


def find_weights(values: Any, wanted: str | None) -> dict[str, Tensor]:
    """Return the state dict in a file: the only one, the one under ``wanted``, or the one under plain names."""
    tensors = dict(name_tensors(values))
    keys = [name[: -len(ANCHOR)] for name in tensors if f".{name}".endswith(f".{ANCHOR}")]
    found = [key for key in keys if wanted is None or f"{key}.".startswith(f"{wanted}.")]
    if len(found) > 1:
        found = [key for key in found if PLAIN_NAMES.issuperset(key.split(".")[:-1]) or key == f"{wanted}."]
    if len(found) != 1:
        sys.exit(f"found weights under {keys or 'no key'}; choose with --weights-key")
    (prefix,) = found
    inner = [key for key in keys if len(key) > len(prefix)]
    return {
        name[len(prefix) :]: tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.startswith(tuple(inner))
    }


def read_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the user says of the model, by the library's names."""
    arguments = json.loads(options.config.read_text()) if options.config else {}
    for assignment in options.assignments:
        name, _, text = assignment.partition("=")
        try:
            arguments[name] = json.loads(text)
        except ValueError:
            arguments[name] = text
    config = options.weights / "config.json"
    if options.weights.is_dir() and config.is_file():  # a folder of flash-export
        fields = {**json.loads(config.read_text()), **arguments}
        options.family = fields.pop("model_type")
        fields["laplace_attn_fn"] = fields.pop("attention_fn", "relu2") != "relu2"
        arguments = {FIELDS.get(name, name): value for name, value in fields.items()}
        known = ("group_size", "causal", "shift_tokens", "laplace_attn_fn", "mask_divisor", FIELDS["sum_over_chunks"])
        arguments = {name: value for name, value in arguments.items() if name in known}
    return arguments


def complete_arguments(arguments: dict[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Add what the shapes tell."""
    num_tokens, dim = weights[ANCHOR].shape
    hidden_dim = len(weights["layers.0.to_hidden.0.weight"]) // 2
    depth = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    told = {"num_tokens": num_tokens, "dim": dim, "depth": depth}
    told["query_key_dim"] = len(weights["layers.0.to_qk.0.weight"])
    norm_type = "scalenorm" if "layers.0.norm.g" in weights else "layernorm"
    return {**told, "expansion_factor": (hidden_dim + 0.5) / dim, "norm_type": norm_type, **arguments}


def build_model(library: Any, family: str, arguments: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """Build the library's model with the weights, strictly; frequencies that were rounded with them stay its own."""
    if family == "flash":
        model: nn.Module = library.FLASHTransformer(**arguments)
    else:
        model = GauStack(library, **arguments)
    weights = dict(weights)
    shared = weights.pop("rotary_pos_emb.freqs", None)  # flash-export has one table for all layers
    for name, own in model.state_dict().items():
        if shared is not None and name.endswith("rotary_pos_emb.freqs"):
            weights[name] = shared
        if name.endswith(("freqs", "inv_freq")) and name in weights:
            rounded = [own.to(dtype).float() for dtype in (torch.float16, torch.bfloat16)]
            if any(torch.equal(weights[name].float(), values) for values in rounded):
                weights[name] = own
    model.load_state_dict(weights)
    return model.eval()


def list_lengths(group_size: int, longest: int) -> list[int]:
    """Return the lengths of flash-export's default plan: edges of groups, a prime, powers of two."""
    edges = (1, 2, group_size - 1, group_size, group_size + 1, 2 * group_size, 389, 4 * group_size + 3)
    powers = (2**exponent for exponent in range(longest.bit_length()))
    return sorted({length for length in (*edges, *powers) if 1 <= length <= longest})


def compute_error(actual: np.ndarray, expected: Tensor) -> float:
    """Return the largest difference as a fraction of the largest expected magnitude."""
    return float(np.abs(actual - expected.numpy()).max() / np.abs(expected.numpy()).max())


def compare_length(
    model: nn.Module, session: Any, input_ids: np.ndarray, mask_divisor: str | None
) -> Iterator[tuple[str, float]]:
    """Yield the error without a mask, and with one where graph and library take it."""
    names = {value.name for value in session.get_inputs()}

    def run(mask: np.ndarray) -> np.ndarray:
        feeds = {"input_ids": input_ids, "attention_mask": mask}
        logits: np.ndarray = session.run(["logits"], {name: feeds[name] for name in names})[0]
        return logits

    ids = torch.from_numpy(input_ids)
    yield "", compute_error(run(np.ones_like(input_ids)), model(ids))
    if "attention_mask" not in names or mask_divisor is None:
        return
    batch, seq_len = input_ids.shape
    lengths = [max(1, seq_len - row * seq_len // (batch + 1)) for row in range(1, batch + 1)]
    mask = np.arange(seq_len) < np.array(lengths)[:, None]
    actual = run(mask.astype(np.int64))
    if mask_divisor == "padded":
        yield ", masked", compute_error(actual, model(ids, mask=torch.from_numpy(mask)))
    else:
        alone = [model(ids[row : row + 1, :length])[0] for row, length in enumerate(lengths)]
        errors = [compute_error(actual[row, : lengths[row]], expected) for row, expected in enumerate(alone)]
        yield ", masked, each row alone", max(errors)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("graph", type=Path)
    parser.add_argument("--family", choices=("flash", "gau"), default="flash")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="assignments", metavar="NAME=VALUE")
    parser.add_argument("--weights-key")
    parser.add_argument("--library-version", help="the release that has to be in use")
    parser.add_argument("--library", type=Path, help="folder that flash-pytorch is installed in, if not here")
    parser.add_argument(
        "--assume-defaults", action="store_true", help="accepted; the constructor's defaults always hold"
    )
    parser.add_argument("--max-seq-len", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    return parser.parse_args()


def main() -> int:
    """Run the comparison and print one line per length."""
    options = parse_options()
    if options.library:
        sys.path.insert(0, str(options.library))
    library = importlib.import_module("flash_pytorch.flash_pytorch")
    version = importlib.metadata.version("flash-pytorch")
    if options.library_version not in (None, version):
        sys.exit(f"this is flash-pytorch {version}; give --library the folder of {options.library_version}")
    arguments = read_arguments(options)
    mask_divisor: str | None = arguments.pop("mask_divisor", "valid")
    if mask_divisor == "padded" and version in UNMASKED_RELEASES:
        mask_divisor = None
    weights = find_weights(read_file(options.weights), options.weights_key)
    arguments = complete_arguments(arguments, weights)
    model = build_model(library, options.family, arguments, weights)
    session = onnxruntime.InferenceSession(options.graph, providers=["CPUExecutionProvider"])
    declared = session.get_inputs()[0].shape[0]
    batch = declared if isinstance(declared, int) else options.batch
    random = np.random.default_rng(0)
    worst = 0.0
    print(f"flash-pytorch {version}, {options.family}")
    for seq_len in list_lengths(arguments.get("group_size", 256), options.max_seq_len):
        input_ids = random.integers(0, arguments["num_tokens"], (batch, seq_len))
        with torch.inference_mode():
            for label, error in compare_length(model, session, input_ids, mask_divisor):
                worst = max(worst, error) if error == error else float("inf")
                print(f"length {seq_len:>6}  error {error:.2e} of the output's scale{label}")
    verdict = "same" if worst <= options.tolerance else "DIFFERENT"
    print(f"largest error {worst:.2e}, tolerance {options.tolerance:.0e}: {verdict}")
    return int(not worst <= options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
