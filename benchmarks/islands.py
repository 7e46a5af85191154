"""What every island of fp32 in a half-precision graph is there for: each taken back by itself, on the bundled models.

    python benchmarks/islands.py [--json FILE] [--quick]

First what is fp32 in every model. Then what ``--islands auto`` keeps in fp32: weights are scaled until a value leaves
the range of fp16, and the model is read without further islands and with those that auto chooses. Numbers are those of
the lowered model in PyTorch, held against the same model in fp32, at every position.
A share of finite logits below 100 % means NaN or infinity.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from flash_export import ExportOptions, FlashModel, GauConfig, GauModel
from flash_export.config import DECODE
from flash_export.data.heldout import load_heldout
from flash_export.data.sources import Data, RandomSource
from flash_export.errors import CheckpointError
from flash_export.exporters.graphs import build_graph_module
from flash_export.exporters.half_ranges import measure_half_ranges
from flash_export.exporters.islands import choose_islands
from flash_export.exporters.lowering import flash, gau, shared_modules
from flash_export.exporters.lowering.flash_state import describe_state
from flash_export.exporters.lowering.precision import FP32, Precision, widen
from flash_export.exporters.lowering.registry import lower_model
from flash_export.models.checkpoint import load_pretrained
from harness.models import ASSETS, BUNDLED
from harness.report import make_parser, print_rows, print_table, write_json
from harness.undone_steps import replace_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from flash_export.data.sources import RecordedSource
    from flash_export.models.base import ReferenceModel
    from harness.undone_steps import Replacements

FP16, BF16 = Precision("fp16"), Precision("bf16")
CAUSAL, MASKED = BUNDLED
LONG, QUICK_LEN, SCALED_LEN = 16384, 300, 2048
DECODE_STEPS, QUICK_DECODE_STEPS = 1500, 20
# What is multiplied, one after the other, and by how much.
SCALED = {"embedding": 1e5, "values": 1e5, "queries and keys": 100.0, "output of a block": 1e4, "head": 1e4}


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
    """What is taken back: names that stand for something else while a model is lowered and run."""

    name: str
    precision: Precision
    models: tuple[str, ...] = BUNDLED
    replaced: Replacements = field(default_factory=dict)


def _sum_over_chunks_in(dtype: torch.dtype) -> Replacements:
    return {(flash, "sum_earlier_chunks"): partial(sum_in_half, dtype=dtype)}


CHANGES = (
    Change("fp16", FP16),
    Change("fp16, norms square in half", FP16, replaced={(shared_modules.LoweredScaleNorm, "forward"): square_in_half}),
    Change("fp16, positions in half", FP16, replaced={(torch, "arange"): count_in_half}),
    Change("fp16, sum over chunks in half", FP16, (CAUSAL,), _sum_over_chunks_in(torch.float16)),
    Change("fp16, keys not divided before the sum", FP16, (MASKED,), {(flash, "FP16_KEY_DIVISOR"): 1.0}),
    Change("bf16", BF16),
    Change("bf16, sum over chunks in half", BF16, (CAUSAL,), _sum_over_chunks_in(torch.bfloat16)),
)
LAPLACE_IN_HALF: Replacements = {
    (gau, "apply_attention_fn"): add_in_half,
    (gau, "widen"): lambda x: x,
    (torch, "erf"): lambda x, erf=torch.erf: erf(x.half()),
}


def read_model(name: str, seq_len: int) -> tuple[ReferenceModel, RecordedSource, Tensor]:
    """Return a bundled model, its held-out text, and the first tokens of that, ``(1, seq)``."""
    model = load_pretrained(ASSETS / name)
    heldout = load_heldout(ASSETS / name, model.config.interface, CheckpointError)
    assert heldout is not None
    return model, heldout.source, torch.from_numpy(heldout.source.take(1, seq_len).arrays["input_ids"])


def take_back(seq_len: int) -> Iterator[Row]:
    """Yield what the bundled models give without each of what is fp32 in every model."""
    for name in BUNDLED:
        model, _, tokens = read_model(name, seq_len)
        expected = run(lower_model(model), tokens)
        for change in (change for change in CHANGES if name in change.models):
            with replace_names(change.replaced):
                actual = run(lower_model(model, change.precision), tokens)
            yield compare(name, change.name, expected, actual)


def take_back_laplace() -> Iterator[Row]:
    """Yield what Laplace in half gives: over a whole sequence, where most keys weigh little."""
    torch.manual_seed(0)
    config = GauConfig(vocab_size=64, dim=64, depth=4, hidden_dim=128, qk_dim=32, attention_fn="laplace")
    model = GauModel(config).requires_grad_(requires_grad=False).eval()
    tokens = torch.randint(0, 64, (1, 1024))
    expected, half = run(lower_model(model), tokens), lower_model(model, FP16)
    yield compare("random gau, laplace", "fp16", expected, run(half, tokens))
    with replace_names(LAPLACE_IN_HALF):
        yield compare("random gau, laplace", "fp16, erf and 1 added in half", expected, run(half, tokens))


def take_back_running_sum(steps: int) -> Iterator[Row]:
    """Yield what decode gives if the sum that it carries is rounded to half after every token."""
    model, _, tokens = read_model(CAUSAL, steps + 1)
    assert isinstance(model, FlashModel)
    expected = run(lower_model(model), tokens)
    decode = build_graph_module(DECODE, lower_model(model, FP16))
    specs = describe_state(model.config, 1, "", FP16)
    for change, rounds in (("fp16", False), ("fp16, carried sum in half", True)):
        state = tuple(torch.zeros([int(n) for n in spec.shape], dtype=getattr(torch, spec.dtype)) for spec in specs)
        found = []
        with torch.inference_mode():
            for token in tokens[0]:
                logits, state = decode(token[None, None], state)
                found.append(logits[0])
                if rounds:
                    state = tuple(x.half().float() if x.dtype == torch.float32 else x for x in state)
        yield compare(f"{CAUSAL}, decode", change, expected, torch.stack(found, dim=1))


def scale_weights(model: Any, part: str, factor: float) -> Any:
    """Return a copy of a model with the weights of a part multiplied."""
    model = copy.deepcopy(model)
    middle = model.layers[len(model.layers) // 2]
    weights = {
        "embedding": model.token_emb.weight,
        "values": middle.to_hidden[0].weight,
        "queries and keys": middle.qk_offset_scale.gamma,
        "output of a block": middle.to_out.weight,
        "head": model.to_logits[1].weight,
    }
    weights[part].data *= factor
    return model


def provoke(seq_len: int) -> Iterator[Row]:
    """Yield what scaled models give without and with the islands that auto chooses."""
    for name in BUNDLED:
        model, text, tokens = read_model(name, seq_len)
        data = Data(RandomSource(model.config.interface), text)
        options = ExportOptions(precision="fp16", max_seq_len=seq_len)
        for part, factor in SCALED.items():
            scaled = scale_weights(model, part, factor)
            expected, choice = run(lower_model(scaled), tokens), choose_islands(scaled, data, options)
            chosen = {"minimal": FP16, f"auto, {len(choice.facts.islands)} islands": choice.precision}
            for label, precision in chosen.items():
                actual = run(lower_model(scaled, precision), tokens)
                yield compare(name, f"{part} x {factor:g}, {label}", expected, actual)


def compare_texts(max_seq_len: int) -> Iterator[tuple[str, str, int, float]]:
    """Yield how many times as large values become on random tokens, which no model was trained on, as on text."""
    for name in BUNDLED:
        model, source, _ = read_model(name, 1)
        drawn = RandomSource(model.config.interface)
        text, random = (measure_half_ranges(model, Data(drawn, recorded), max_seq_len) for recorded in (source, None))
        ratios = {
            value: random.magnitudes[value][-1] / sizes[-1] for value, sizes in text.magnitudes.items() if sizes[-1] > 0
        }
        largest = max(ratios, key=lambda value: ratios[value])
        yield name, largest, text.seq_lens[-1], ratios[largest]


def run(module: Any, tokens: Tensor) -> Tensor:
    """Return the logits."""
    with torch.inference_mode():
        return widen(module(tokens))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = make_parser(__doc__).parse_args(arguments)
    seq_len, steps = (QUICK_LEN, QUICK_DECODE_STEPS) if options.quick else (LONG, DECODE_STEPS)
    taken_back = [*take_back(seq_len), *take_back_running_sum(steps), *take_back_laplace()]
    provoked = list(provoke(min(seq_len, SCALED_LEN)))
    parts = {"what is fp32 in every model, taken back": taken_back, "weights scaled until fp16 overflows": provoked}
    columns = {"model": "model", "change": "change", "tokens": "seq_len", "finite": "finite:.1%"}
    columns |= {"error": "error", "same top token": "top1:.2%"}
    for title, rows in parts.items():
        print_rows(title, rows, columns)
    texts = list(compare_texts(seq_len))
    print_table("largest value on random tokens over that on text", ("model", "value", "tokens", "ratio"), texts)
    write_json(options.json, {title: [asdict(row) for row in rows] for title, rows in parts.items()} | {"texts": texts})


if __name__ == "__main__":
    main()
