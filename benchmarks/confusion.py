"""How often validation is right: planted faults that it must find, healthy models that it must not refuse.

    OMP_WAIT_POLICY=passive python benchmarks/confusion.py [--only TEXT] [--json FILE] [--quick]

Every fault of ``faults.py`` is planted in the bundled models that can have it, and validated at both sides of a chunk's
edge, in batches, masked and not. The healthy ones are models of random dialects and widths, their weights random too
but large enough that every part matters.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from faults import BOTH, FAULTS, plant
from report import make_parser, print_table, write_json

import flash_export
from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.validators.validate import ValidationOptions, validate_bundle

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.models.base import ReferenceModel
    from flash_export.validators.results import ValidationReport

ASSETS = Path(flash_export.__file__).parent / "assets"
CHUNK = 128
FAULT_LENGTHS = (1, CHUNK - 1, CHUNK, CHUNK + 1, 300, 512)
NUM_HEALTHY = 30


@dataclass(frozen=True)
class Verdict:
    """What validation says of one bundle.

    Attributes:
        name: The fault, or the dialect.
        model: The bundled model, or the family.
        passed: What validation says.
        failed_rows: Checks that failed.
        rows: Checks that ran.
        worst: Largest error as a multiple of the accepted one, of the checks that gave a number.
    """

    name: str
    model: str
    passed: bool
    failed_rows: int
    rows: int
    worst: float


def judge(bundle: Bundle, options: ValidationOptions, name: str, model: str) -> Verdict:
    """Validate a bundle."""
    report = validate_bundle(bundle, options)
    return Verdict(
        name,
        model,
        report.passed,
        report.count("failed"),
        report.count("failed") + report.count("passed"),
        find_worst(report),
    )


def find_worst(report: ValidationReport) -> float:
    """Return the largest error as a multiple of what is accepted."""
    ratios = [
        row.max_abs_error / row.tolerance for row in report.rows if row.max_abs_error is not None and row.tolerance
    ]
    return max(ratios, default=0.0)


def judge_faults(folder: Path, only: str, models: tuple[str, ...] = BOTH) -> list[Verdict]:
    """Plant every fault and validate."""
    options = ValidationOptions(seq_lens=FAULT_LENGTHS, backends=("ort-cpu",), latency_budget_s=0.0)
    verdicts = []
    for model in models:
        bundle = export_onnx(ASSETS / f"byte-{model}", folder / model, options=ExportOptions(graphs=("forward",)))
        for index, fault in enumerate(fault for fault in FAULTS if model in fault.models and only in fault.name):
            print(f"{model}: {fault.name} ...", flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as copy:
                planted = plant(fault, bundle, Path(copy) / str(index))
                verdicts.append(judge(planted, options, fault.name, model))
    return verdicts


def judge_healthy(folder: Path, number: int) -> list[Verdict]:
    """Export models of random dialects and validate them."""
    verdicts = []
    for index in range(number):
        model, name = draw_model(index)
        print(f"healthy: {name} ...", flush=True)
        model.save_pretrained(folder / f"checkpoint-{index}")
        graphs = () if index % 3 == 0 else ("forward",)
        bundle = export_onnx(
            folder / f"checkpoint-{index}",
            folder / f"healthy-{index}",
            options=ExportOptions(max_seq_len=1024, graphs=graphs),
        )
        verdicts.append(judge(bundle, ValidationOptions(latency_budget_s=0.0), name, model.config.model_type))
    return verdicts


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
    parser = make_parser(__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="the faults whose name contains this")
    options = parser.parse_args(arguments)
    models, healthy, only = (
        (BOTH[:1], 1, "one weight of the values") if options.quick else (BOTH, NUM_HEALTHY, options.only)
    )
    with tempfile.TemporaryDirectory() as folder:
        faulty = judge_faults(Path(folder), only, models)
        sound = judge_healthy(Path(folder), healthy)
    for title, verdicts in (("Planted faults", faulty), ("Healthy models", sound)):
        print_table(
            title,
            ("name", "model", "verdict", "failed", "of", "worst error / accepted"),
            [
                (one.name, one.model, "passed" if one.passed else "failed", one.failed_rows, one.rows, one.worst)
                for one in verdicts
            ],
        )
    print_table(
        "Confusion",
        ("", "failed", "passed"),
        [
            (name, sum(not one.passed for one in verdicts), sum(one.passed for one in verdicts))
            for name, verdicts in (("faulty", faulty), ("healthy", sound))
        ],
    )
    write_json(options.json, {"faulty": [asdict(one) for one in faulty], "healthy": [asdict(one) for one in sound]})


if __name__ == "__main__":
    main()
