"""``flash-export tune``: the fastest way to run one model within an accuracy budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, IntegerList, output_options

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.study.tuning_results import Tuning


class Share(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A share: ``0.5%`` or ``0.005``."""

    name = "SHARE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the fraction."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 < share < 1:
            self.fail(f"{value!r} is no share above 0 and below 1; write it like 0.5% or 0.005", param, ctx)
        return share


@click.command("tune", short_help="Find the fastest way to run one model as accurately.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder; resumed.")
@click.option("--budget", type=Share(), default="0.5%", show_default=True, help="What may be lost of the score.")
@click.option("--seq-lens", type=IntegerList(), default="512,2048", show_default=True, help="Lengths that matter.")
@click.option("--batch", type=int, default=1, show_default=True, help="Rows of a run.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="Where it may run; repeatable.  [default: all that this machine has]",
)
@click.option(
    "--threads", type=IntegerList(), help="Threads to try on the CPU.  [default: 1 and as many as there are cores]"
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    help="fp32, fp16, bf16, a scheme of quantize, or int8-bf16; repeatable.  [default: all]",
)
@click.option("--max-seq-len", type=int, help="Longest length of the graphs.  [default: that of onnx]")
@click.option("--plan", type=click.Choice(["quick", "full"]), default="quick", show_default=True, help="See validate.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", help="Data to judge and calibrate with.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Tasks side by side; those that time run alone.",
)
@output_options(*REPORT, verdict=lambda tuning: tuning.best is not None)
def tune_command(
    output: Output,
    checkpoint: Path,
    folder: Path,
    budget: float,
    seq_lens: tuple[int, ...],
    batch: int,
    backends: tuple[str, ...],
    threads: tuple[int, ...] | None,
    variants: tuple[str, ...],
    max_seq_len: int | None,
    plan: str,
    data: Path | None,
    jobs: int,
) -> Tuning:
    """Find the fastest way to run CHECKPOINT, a checkpoint folder or an fp32 bundle, within an accuracy budget.

    Precisions, schemes, backends and numbers of threads are tried: each is exported, validated at every length of
    the plan, judged on held-out data, and timed if it may be used. The fastest is kept in DIR/best. What was done is
    not done again, so that the same command goes on with an interrupted run.

    Exit code 0 if there is a way, 1 if not, 2 for bad input.

    \b
    Examples:
      flash-export tune model/ -o tuned/
      flash-export tune bundle/ -o tuned/ --budget 0.2% --seq-lens 256,1024
      flash-export tune bundle/ -o tuned/ --backend ort-cpu --threads 1,2
      flash-export tune bundle/ -o tuned/ --variant fp32 --variant int8 --json -
    """
    from flash_export.bundle.bundle import MANIFEST_FILE
    from flash_export.files import hash_file, link_folder, replace_folder, write_file
    from flash_export.locks import lock_folder
    from flash_export.printable import encode_text
    from flash_export.report.html import render_html
    from flash_export.study.executors import LocalExecutor
    from flash_export.study.schedule import prepare_folder, run_tasks
    from flash_export.study.tuning import make_config, plan_tuning
    from flash_export.study.tuning_results import collect_tuning, describe_tuning

    config = make_config(
        checkpoint,
        budget=budget,
        seq_lens=seq_lens,
        batch=batch,
        backends=backends,
        threads=threads,
        variants=variants,
        max_seq_len=max_seq_len,
        plan=plan,
        data=data,
    )
    planned = plan_tuning(config)
    prepare_folder(folder, config)
    with lock_folder(folder, timeout_s=0):
        with output.show_progress("Tuning") as progress:
            executor = LocalExecutor(jobs, folder / "logs")
            found = run_tasks(config, planned, folder, folder, executor, progress)
        tuning = collect_tuning(config, found)
        document = describe_tuning(tuning, str(folder))
        write_file(folder / "report.json", tuning.to_json().encode())
        write_file(folder / "report.html", encode_text(render_html(document)))
        if tuning.best is not None:
            chosen, best = folder / "variants" / tuning.best.variant, folder / "best"
            manifests = [one / MANIFEST_FILE for one in (chosen, best)]
            if not best.exists() or hash_file(manifests[0]) != hash_file(manifests[1]):  # it may have engines by now
                with replace_folder(best) as staging:
                    link_folder(chosen, staging, ())
    output.show(document)
    output.echo(f"Report: {folder / 'report.html'}")
    if tuning.best is not None:
        output.suggest_next("validate", folder / "best", "--backend", tuning.best.backend)
    return tuning
