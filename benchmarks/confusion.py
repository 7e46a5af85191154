"""How often validation is right: planted faults that it must find, healthy models that it must not refuse.

    OMP_WAIT_POLICY=passive python benchmarks/confusion.py [--only TEXT] [--json FILE] [--quick]

Every fault of ``harness/faults.py`` is planted in the bundled models that can have it, and validated at both sides of a
chunk's edge, in batches, masked and not. The healthy ones are models of random dialects and widths, their weights
random too but large enough that every part matters.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flash_export import Bundle, ExportOptions, ValidationOptions, export_onnx, validate_bundle
from flash_export.config import FORWARD
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from harness.faults import plant_faults
from harness.report import make_parser, print_rows, print_table, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.models.base import ReferenceModel

CHUNK = 128
FAULT_LENGTHS = (1, CHUNK - 1, CHUNK, CHUNK + 1, 300, 512)
NUM_HEALTHY = 30


@dataclass(frozen=True)
class Verdict:
    """What validation says of one bundle."""

    name: str  # the fault, or the dialect
    model: str  # the bundled model, or the family
    passed: bool
    failed_rows: int  # checks that failed
    rows: int  # checks that ran
    worst: float  # largest error as a multiple of the accepted one, of the checks that gave a number

    @property
    def word(self) -> str:
        """What the table calls it."""
        return "passed" if self.passed else "failed"


def judge_bundle(name: str, model: str, bundle: Bundle, **options: Any) -> Verdict:
    """Validate a bundle."""
    report = validate_bundle(bundle, ValidationOptions(latency_budget_s=0.0, **options))
    failed, passed = report.count("failed"), report.count("passed")
    errors = [(row.max_abs_error or 0.0) / row.tolerance for row in report.rows if row.tolerance]
    return Verdict(name, model, report.passed, failed, failed + passed, max(errors, default=0.0))


def judge_healthy(folder: Path, number: int) -> Iterator[Verdict]:
    """Export models of random dialects and validate them."""
    for index in range(number):
        model, name = draw_model(index)
        print(f"healthy: {name} ...", flush=True)
        checkpoint = folder / f"checkpoint-{index}"
        model.save_pretrained(checkpoint)
        options = ExportOptions(max_seq_len=1024, graphs=() if index % 3 == 0 else (FORWARD,))
        bundle = export_onnx(checkpoint, folder / f"healthy-{index}", options=options)
        yield judge_bundle(name, model.config.model_type, bundle)


def draw_model(index: int) -> tuple[ReferenceModel, str]:
    """Draw a model; the first ones go through the dialects, the sizes are random."""
    rng = np.random.default_rng(index)
    dialects = list(itertools.product((False, True), ("relu2", "laplace"), ("scalenorm", "layernorm"), (False, True)))
    causal, attention_fn, norm_type, shift_tokens = dialects[index % len(dialects)]
    sizes: dict[str, Any] = {
        "vocab_size": int(rng.integers(3, 600)),
        "dim": 2 * int(rng.integers(8, 100)),
        "depth": int(rng.integers(1, 5)),
        "hidden_dim": int(rng.integers(16, 300)),
        "qk_dim": int(rng.integers(2, 130)),
        "causal": causal,
        "attention_fn": attention_fn,
        "norm_type": norm_type,
        "mask_divisor": "padded" if rng.random() < 0.2 else "valid",
    }
    torch.manual_seed(index)
    model: ReferenceModel
    if index % 5 == 4:
        model = GauModel(GauConfig(**sizes))
        name = f"gau, {attention_fn}, {norm_type}"
    else:
        chunk = int(rng.choice([16, 48, 64, 100, 128, 256]))
        total = bool(rng.random() < 0.7)
        model = FlashModel(FlashConfig(**sizes, chunk_size=chunk, shift_tokens=shift_tokens, sum_over_chunks=total))
        name = f"flash, {attention_fn}, {norm_type}, chunk {chunk}{', shift' if shift_tokens else ''}"
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.shape[0] > 4:
            parameter.data *= 1.5
        else:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(requires_grad=False).eval(), f"{name}{', causal' if causal else ''}"


def main(arguments: list[str] | None = None) -> None:
    """Judge, print, write."""
    options = make_parser(__doc__, only="faults").parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        faulty = [
            judge_bundle(fault.name, model, bundle, seq_lens=FAULT_LENGTHS, backends=("ort-cpu",))
            for model, fault, bundle in plant_faults(options, folder)
        ]
        healthy = list(judge_healthy(folder, 1 if options.quick else NUM_HEALTHY))
    columns = {"name": "name", "model": "model", "verdict": "word", "failed": "failed_rows", "of": "rows"}
    columns |= {"worst error / accepted": "worst"}
    print_rows("Planted faults", faulty, columns)
    print_rows("Healthy models", healthy, columns)
    groups = {"faulty": faulty, "healthy": healthy}
    counts = {name: Counter(one.word for one in group) for name, group in groups.items()}
    rows = [(name, count["failed"], count["passed"]) for name, count in counts.items()]
    print_table("Confusion", ("", "failed", "passed"), rows)
    write_json(options.json, {name: [asdict(one) for one in group] for name, group in groups.items()})


if __name__ == "__main__":
    main()
