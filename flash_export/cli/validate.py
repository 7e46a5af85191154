"""``flash-export validate``: compare a bundle's graph and engines with the eager model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.interrupt import RESUMABLE
from flash_export.cli.options import CHECKS, Choice, IntegerList, output_options
from flash_export.config import ORIGINAL, REFERENCE

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.cli.output import Output
    from flash_export.validators.results import ValidationReport

JOURNAL_FILE = ".validation.jsonl"


@click.command("validate", short_help="Prove that graph and engines are the model, at every length.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--plan",
    default="quick",
    metavar="PLAN",
    help="quick: lengths to 1024; full: to the graph's maximum, and every remainder of the chunk; or a JSON file.  "
    "[default: quick]",
)
@click.option("--seq-lens", type=IntegerList(), help="Check these lengths alone.")
@click.option("--max-seq-len", type=int, help="Longest length of the plan.  [default: the plan's own]")
@click.option("--batch", "batches", type=IntegerList(), multiple=True, help="Batch sizes; repeatable.  [default: 1,3]")
@click.option(
    "--backend",
    "backends",
    metavar="NAME",
    multiple=True,
    help="ort-cpu, ort-cuda, ort-tensorrt, ort-tensorrt-rtx, openvino, trt-network (what TensorRT's parser made of the "
    "graph, without a GPU), trt (every engine) or trt:NAME; stream:NAME reads texts in pieces; repeatable.  [default: "
    "ort-cpu, ort-cuda, and where an engine was built, trt-network and trt]",
)
@click.option(
    "--onnx",
    "onnx_files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Hold another exporter's graph of this model to the same standard; repeatable.",
)
@click.option(
    "--check",
    "checks",
    metavar="NAME",
    multiple=True,
    help="Do this check alone, by the name that a report gives it, such as 3x300-masked or padding; repeatable.",
)
@click.option(
    "--against",
    type=Choice((REFERENCE, ORIGINAL)),
    default=REFERENCE,
    show_default=True,
    help="Our plain PyTorch model, or that of the library which the weights come from, run by itself and not timed.",
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), metavar="PATH", help="What the bundle was made of, for original."
)
@click.option(
    "--original-python",
    type=click.Path(path_type=Path),
    metavar="PYTHON",
    help="Interpreter that has that library.  [default: this one]",
)
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", help="Data to read in place of held-out data.")
@click.option("--atol", type=float, help="Accept this absolute error, in place of the error budget.")
@click.option("--rtol", type=float, help="Accept this error relative to the largest output, in place of the budget.")
@click.option("--threads", type=int, help="CPU threads of one operator, for all models.")
@click.option("--compile", "compiled", is_flag=True, help="Time the eager model under torch.compile too.")
@click.option("--no-latency", is_flag=True, help="Leave timing and memory out.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted validation of the same options.")
@click.option(
    "--report",
    "report_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report.json and report.html.  [default: BUNDLE/reports; none with --check]",
)
@click.option(
    "--save-failures",
    "failures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep inputs, expected and found outputs of what fails, a folder each, for 'flash-export bisect --inputs'.",
)
@output_options(*CHECKS, verdict=bool)
@click.pass_context
def validate_command(
    ctx: click.Context,
    output: Output,
    bundle: Path,
    plan: str,
    seq_lens: tuple[int, ...] | None,
    max_seq_len: int | None,
    batches: tuple[tuple[int, ...], ...],
    backends: tuple[str, ...],
    onnx_files: tuple[Path, ...],
    against: str,
    checkpoint: Path | None,
    original_python: Path | None,
    data: Path | None,
    atol: float | None,
    rtol: float | None,
    threads: int | None,
    compiled: bool,
    no_latency: bool,
    resume: bool,
    report_dir: Path | None,
    checks: tuple[str, ...],
    failures: Path | None,
) -> ValidationReport:
    """Compare outputs and latency of an exported BUNDLE with the eager PyTorch model, over many lengths.

    Outputs are compared with the model in float64. What counts is how much further from it a backend is than the eager
    model in the same precision, unless --atol or --rtol say otherwise.

    Exit code 0 if at least one check passed and none failed, 1 if not, 2 for bad input.

    \b
    Examples:
      flash-export validate BUNDLE
      flash-export validate BUNDLE --plan full
      flash-export validate BUNDLE --seq-lens 1,17,300 --batch 1,8
      flash-export validate BUNDLE --backend trt --rtol 1e-3
      flash-export validate BUNDLE --check 3x300-masked --save-failures failures
      flash-export validate BUNDLE --onnx other/model.onnx
      flash-export validate BUNDLE --against original --checkpoint model.pt
      flash-export validate BUNDLE --json - | jq .passed
      flash-export validate BUNDLE --markdown - >> $GITHUB_STEP_SUMMARY
    """
    from flash_export.bundle.bundle import REPORT_FOLDER, Bundle
    from flash_export.validators.report.files import HTML_FILE, write_report
    from flash_export.validators.report.validation import describe_validation
    from flash_export.validators.validate import validate_bundle
    from flash_export.validators.validation_options import ValidationOptions

    options = ValidationOptions(
        plan=plan,
        seq_lens=seq_lens,
        max_seq_len=max_seq_len,
        batches=tuple(size for group in batches for size in group) or None,
        backends=backends,
        onnx_files=onnx_files,
        data=data,
        atol=atol,
        rtol=rtol,
        threads=threads,
        latency_budget_s=0.0 if no_latency else None,
        compiled=compiled,
        checks=checks,
        failures=failures,
        against=against,
        checkpoint=checkpoint,
        original_python=original_python,
    )
    # What repeats a check does not replace the report that it is from.
    folder = report_dir or (None if checks else bundle / REPORT_FOLDER)
    journal = None if folder is None else folder / JOURNAL_FILE
    opened = Bundle.open(bundle)
    ctx.meta[RESUMABLE] = journal
    with output.show_progress("Validating") as progress:
        report = validate_bundle(opened, options, progress, journal_path=journal, resume=resume)
    if folder is not None:
        with opened.lock():  # no one puts another bundle in the place of the one that the report is about
            write_report(report, folder)
    output.show(describe_validation(report))
    if journal is not None:
        journal.unlink(missing_ok=True)
        output.echo(f"Report: {journal.with_name(HTML_FILE)}")
    output.suggest_next(*_choose_next(opened, report))
    return report


def _choose_next(bundle: Bundle, report: ValidationReport) -> tuple[str | Path, ...]:
    if not report:  # where nothing ran, there is nothing to look for
        return ("bisect", bundle.path) if report.count("failed") else ("doctor",)
    if not bundle.list_engines():
        return ("trt", bundle.path)
    if bundle.get_graph().precision == "fp32":
        return ("quantize", bundle.path, "-o", f"{bundle.path}-int8")
    return ("inspect", bundle.path)
