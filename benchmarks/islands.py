"""What every island of fp32 in a half-precision graph is there for: each taken back by itself, on the bundled models.

    python benchmarks/islands.py [--json FILE] [--quick]

First what is fp32 in every model. Then what ``--islands auto`` keeps in fp32: weights are scaled until a value leaves
the range of fp16, and the model is read without further islands and with those that auto chooses. Numbers are those of
the lowered model in PyTorch, held against the same model in fp32, at every position.
A share of finite logits below 100 % means NaN or infinity.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from report import make_parser, print_table, write_json

import flash_export
from flash_export.config import ExportOptions
from flash_export.data.heldout import load_heldout
from flash_export.data.sources import Data, RandomSource
from flash_export.errors import CheckpointError
from flash_export.exporters.graphs import build_graph_module
from flash_export.exporters.half_ranges import measure_half_ranges
from flash_export.exporters.islands import choose_islands
from flash_export.exporters.lowering import flash, pieces
from flash_export.exporters.lowering.precision import FP32, Precision, widen
from flash_export.exporters.lowering.registry import lower_model
from flash_export.models.checkpoint import load_pretrained
from flash_export.models.flash import FlashModel
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from flash_export.data.heldout import Heldout
    from flash_export.interface import TensorSpec
    from flash_export.models.base import ReferenceModel

ASSETS = Path(flash_export.__file__).parent / "assets"
FP16, BF16 = Precision("fp16"), Precision("bf16")
LONG = 16384
DECODE_STEPS = 1500


@dataclass(frozen=True)
class Row:
    """What a model in half precision gives, against the same in fp32."""

    model: str
    change: str
    seq_len: int
    finite: float  # share of the logits
    error: float | None  # largest, as a fraction of the largest logit; None unless all are finite
    top1: float  # share of the positions


def compare(model: str, change: str, expected: Tensor, actual: Tensor) -> Row:
    """Compare logits ``(batch, seq, vocab)``."""
    finite = actual.isfinite()
    error = float((actual - expected).abs().max() / expected.abs().max()) if finite.all() else None
    top1 = float((actual.argmax(-1) == expected.argmax(-1)).float().mean())
    return Row(model, change, expected.shape[1], float(finite.float().mean()), error, top1)


def square_in_half(self: Any, x: Tensor) -> Tensor:
    """Normalise with squares and their sum in half."""
    squares = (x * x).float().sum(dim=-1, keepdim=True).to(x.dtype)
    return x / squares.sqrt().clamp(min=torch.tensor(self.floor, dtype=x.dtype))


def sum_in_half(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over earlier chunks, rounded to half after each."""
    total, sums = torch.zeros_like(x[:, 0], dtype=dtype), []
    for index in range(x.shape[1]):
        sums.append(total.float())
        total = total + x[:, index].to(dtype)
    return torch.stack(sums, dim=1)


def count_in_half(*args: Any, arange: Callable[..., Tensor] = torch.arange, **kwargs: Any) -> Tensor:
    """Return ``torch.arange``, positions being rounded to half."""
    numbers = arange(*args, **kwargs)
    return numbers.half().float() if numbers.is_floating_point() else numbers


def add_in_half(scores: Tensor, attention_fn: str, precision: Precision = FP32) -> Tensor:
    """Apply Laplace in half."""
    return precision.narrow(torch.erf(scores) + 1, "weights")


@dataclass(frozen=True)
class Change:
    """What is taken back: an attribute of a module or class that is replaced while a model is lowered and run."""

    name: str
    precision: Precision
    models: tuple[str, ...] = ("byte-causal", "byte-masked")
    replaced: tuple[Any, str, Any] | None = None


CHANGES = (
    Change("fp16", FP16),
    Change("fp16, norms square in half", FP16, replaced=(pieces.LoweredScaleNorm, "forward", square_in_half)),
    Change("fp16, positions in half", FP16, replaced=(torch, "arange", count_in_half)),
    Change(
        "fp16, sum over chunks in half",
        FP16,
        ("byte-causal",),
        (flash, "sum_earlier_chunks", partial(sum_in_half, dtype=torch.float16)),
    ),
    Change("fp16, keys not divided before the sum", FP16, ("byte-masked",), (flash, "FP16_KEY_DIVISOR", 1.0)),
    Change("bf16", BF16),
    Change(
        "bf16, sum over chunks in half",
        BF16,
        ("byte-causal",),
        (flash, "sum_earlier_chunks", partial(sum_in_half, dtype=torch.bfloat16)),
    ),
)


def read_model(name: str) -> tuple[ReferenceModel, Heldout]:
    """Return a bundled model and its held-out text."""
    model = load_pretrained(ASSETS / name)
    heldout = load_heldout(ASSETS / name, model.config.interface, CheckpointError)
    assert heldout is not None
    return model, heldout


def take_back(seq_len: int) -> list[Row]:
    """Return what the bundled models give without each of what is fp32 in every model."""
    rows = []
    for name in ("byte-causal", "byte-masked"):
        model, heldout = read_model(name)
        tokens = torch.from_numpy(heldout.source.take(1, seq_len).arrays["input_ids"])
        expected = run(lower_model(model), tokens)
        for change in (change for change in CHANGES if name in change.models):
            with mock.patch.object(*change.replaced) if change.replaced else nullcontext():
                rows.append(compare(name, change.name, expected, run(lower_model(model, change.precision), tokens)))
    return rows


def take_back_laplace() -> list[Row]:
    """Return what Laplace in half gives: over a whole sequence, where most keys weigh little."""
    torch.manual_seed(0)
    config = GauConfig(vocab_size=64, dim=64, depth=4, hidden_dim=128, qk_dim=32, attention_fn="laplace")
    model = GauModel(config).requires_grad_(requires_grad=False).eval()
    tokens = torch.randint(0, 64, (1, 1024))
    expected = run(lower_model(model), tokens)
    rows = [compare("random gau, laplace", "fp16", expected, run(lower_model(model, FP16), tokens))]
    with mock.patch("flash_export.exporters.lowering.gau.apply_attention_fn", add_in_half):
        scores = mock.patch("flash_export.exporters.lowering.gau.widen", lambda x: x)
        half = lower_model(model, FP16)
        with scores, mock.patch("torch.erf", lambda x, erf=torch.erf: erf(x.half())):
            actual = run(half, tokens)
    return [*rows, compare("random gau, laplace", "fp16, erf and 1 added in half", expected, actual)]


def take_back_running_sum(steps: int) -> list[Row]:
    """Return what decode gives if the sum that it carries is rounded to half after every token."""
    model, heldout = read_model("byte-causal")
    tokens = torch.from_numpy(heldout.source.take(1, steps + 1).arrays["input_ids"][0])
    expected = run(lower_model(model), tokens[None])
    decode = build_graph_module("decode", lower_model(model, FP16))
    rows = []
    for change, rounds in (("fp16", False), ("fp16, carried sum in half", True)):
        state, found = make_state(model), []
        with torch.inference_mode():
            for token in tokens:
                logits, state = decode(token[None, None], state)
                found.append(logits[0])
                if rounds:
                    state = tuple(x.half().float() if x.dtype == torch.float32 else x for x in state)
        rows.append(compare("byte-causal, decode", change, expected, torch.stack(found, dim=1)))
    return rows


def make_state(model: ReferenceModel) -> tuple[Tensor, ...]:
    """Return the state of a text that has not begun."""
    from flash_export.exporters.lowering.flash_state import describe_state

    assert isinstance(model, FlashModel)
    specs: tuple[TensorSpec, ...] = describe_state(model.config, 1, "", FP16)
    return tuple(torch.zeros([int(size) for size in spec.shape], dtype=getattr(torch, spec.dtype)) for spec in specs)


def scale_weights(model: Any, part: str, factor: float) -> None:
    """Multiply the weights of a part."""
    middle = model.layers[len(model.layers) // 2]
    weights = {
        "embedding": model.token_emb.weight,
        "values": middle.to_hidden[0].weight,
        "queries and keys": middle.qk_offset_scale.gamma,
        "output of a block": middle.to_out.weight,
        "head": model.to_logits[1].weight,
    }
    weights[part].data *= factor


SCALED = (
    ("embedding", 1e5),
    ("values", 1e5),
    ("queries and keys", 100.0),
    ("output of a block", 1e4),
    ("head", 1e4),
)


def provoke(seq_len: int) -> list[Row]:
    """Return what scaled models give without and with the islands that auto chooses."""
    rows = []
    for name in ("byte-causal", "byte-masked"):
        model, heldout = read_model(name)
        tokens = torch.from_numpy(heldout.source.take(1, seq_len).arrays["input_ids"])
        for part, factor in SCALED:
            scaled = copy.deepcopy(model)
            scale_weights(scaled, part, factor)
            expected = run(lower_model(scaled), tokens)
            data = Data(RandomSource(scaled.config.interface), heldout.source)
            choice = choose_islands(scaled, data, ExportOptions(precision="fp16", max_seq_len=seq_len))
            for precision, label in (
                (FP16, "minimal"),
                (choice.precision, f"auto, {len(choice.facts.islands)} islands"),
            ):
                actual = run(lower_model(scaled, precision), tokens)
                rows.append(compare(name, f"{part} x {factor:g}, {label}", expected, actual))
    return rows


def compare_texts(max_seq_len: int) -> list[tuple[str, str, int, float]]:
    """Return how many times as large values become on random tokens, which no model was trained on, as on text."""
    rows = []
    for name in ("byte-causal", "byte-masked"):
        model, heldout = read_model(name)
        drawn = RandomSource(model.config.interface)
        text, random = (
            measure_half_ranges(model, Data(drawn, recorded), max_seq_len) for recorded in (heldout.source, None)
        )
        ratios = {
            value: random.magnitudes[value][-1] / sizes[-1] for value, sizes in text.magnitudes.items() if sizes[-1] > 0
        }
        largest = max(ratios, key=lambda value: ratios[value])
        rows.append((name, largest, text.seq_lens[-1], ratios[largest]))
    return rows


def run(module: Any, tokens: Tensor) -> Tensor:
    """Return the logits."""
    with torch.inference_mode():
        return widen(module(tokens))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = make_parser(__doc__).parse_args(argv)
    seq_len, steps = (300, 20) if arguments.quick else (LONG, DECODE_STEPS)
    parts = {
        "what is fp32 in every model, taken back": [
            *take_back(seq_len),
            *take_back_running_sum(steps),
            *take_back_laplace(),
        ],
        "weights scaled until fp16 overflows": provoke(min(seq_len, 2048)),
    }
    for title, rows in parts.items():
        print_table(
            title,
            ("model", "change", "tokens", "finite %", "error", "same top token %"),
            [
                (row.model, row.change, row.seq_len, 100 * row.finite, row.error, f"{100 * row.top1:.2f}")
                for row in rows
            ],
        )
    texts = compare_texts(seq_len)
    print_table("largest value on random tokens over that on text", ("model", "value", "tokens", "ratio"), texts)
    write_json(
        arguments.json, {title: [asdict(row) for row in rows] for title, rows in parts.items()} | {"texts": texts}
    )


if __name__ == "__main__":
    main()
