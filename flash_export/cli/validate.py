"""``flash-export validate``: compare a bundle's graph and engines with the eager model."""

from __future__ import annotations

from pathlib import Path

import click

from flash_export.cli.options import STDOUT, IntegerList, show_progress

EXIT_VALIDATION_FAILED = 1


@click.command("validate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--seq-lens", type=IntegerList(), help="Check these lengths instead of the default plan.")
@click.option("--max-seq-len", type=int, help="Longest length of the default plan.  [default: the graph's own maximum]")
@click.option("--batch", "batches", type=IntegerList(), multiple=True, help="Batch sizes; repeatable.  [default: 1,3]")
@click.option(
    "--backend",
    "backends",
    metavar="NAME",
    multiple=True,
    help="ort-cpu, ort-cuda, trt (every engine) or trt:NAME; repeatable.  [default: all that there are]",
)
@click.option("--atol", type=float, help="Accepted absolute error of a logit.  [default: 0]")
@click.option("--rtol", type=float, help="Accepted error relative to the largest logit.  [default: 1e-4 for fp32]")
@click.option("--threads", type=int, help="CPU threads of one operator, for both models.")
@click.option(
    "--report",
    "report_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report.json and report.html.  [default: BUNDLE/reports]",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the report's JSON here too; - for stdout.")
def validate_command(
    bundle: Path,
    seq_lens: tuple[int, ...] | None,
    max_seq_len: int | None,
    batches: tuple[tuple[int, ...], ...],
    backends: tuple[str, ...],
    atol: float | None,
    rtol: float | None,
    threads: int | None,
    report_dir: Path | None,
    json_file: str | None,
) -> None:
    """Compare outputs and latency of an exported BUNDLE with the eager PyTorch model, over many lengths.

    Exit code 0 if at least one check passed and none failed, 1 if not, 2 for bad input.

    \b
    Examples:
      flash-export validate BUNDLE
      flash-export validate BUNDLE --seq-lens 1,17,300 --batch 1,8
      flash-export validate BUNDLE --backend trt --rtol 1e-3
      flash-export validate BUNDLE --json - | jq .passed
    """
    from rich.console import Console

    from flash_export.bundle import REPORT_FOLDER, Bundle
    from flash_export.validators.report.files import write_report
    from flash_export.validators.report.terminal import print_report
    from flash_export.validators.validate import ValidationOptions, validate_bundle

    options = ValidationOptions(
        seq_lens=seq_lens,
        max_seq_len=max_seq_len,
        batches=tuple(size for group in batches for size in group) or None,
        backends=backends,
        atol=atol,
        rtol=rtol,
        threads=threads,
    )
    stderr = Console(stderr=True)
    with show_progress(stderr, "Validating") as progress:
        report = validate_bundle(Bundle.open(bundle), options, progress)
    folder = report_dir or bundle / REPORT_FOLDER
    json_path = None if json_file in (None, STDOUT) else Path(str(json_file))
    html_path = write_report(report, folder, json_path)
    if json_file == STDOUT:
        click.echo(report.to_json(), nl=False)
    human = stderr if json_file == STDOUT else Console()
    print_report(report, human)
    human.print(f"Report: {html_path}", highlight=False, soft_wrap=True)
    if not report:
        raise click.exceptions.Exit(EXIT_VALIDATION_FAILED)
