"""``flash-export triton``: write a bundle into a model repository of NVIDIA's Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, Choice, output_options, refuse_ignored
from flash_export.config import FORWARD
from flash_export.report.document import Document, Section, number, tabulate, text
from flash_export.serving.options import (
    CPU,
    DEFAULT_MAX_WAITING,
    DEFAULT_TIMEOUT_S,
    DEVICES,
    FORMS,
    GENERATE,
    RAGGED,
    SEQUENCE,
    TritonOptions,
)

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.serving.repository import Repository

# Which forms have a use for an option.
_USED_BY = {
    "max_batch": (FORWARD, RAGGED, SEQUENCE),
    "queue_delay_us": (FORWARD, RAGGED, SEQUENCE),
    "max_waiting": (FORWARD, RAGGED, GENERATE),
    "slots": (SEQUENCE, GENERATE),
    "timeout_s": (SEQUENCE, GENERATE),
}


@click.command("triton", short_help="Write a model repository for Triton.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), required=True, help="Repository; it may have models."
)
@click.option(
    "--form",
    "forms",
    type=Choice(FORMS),
    multiple=True,
    default=(FORWARD,),
    show_default=True,
    help="What to serve: whole inputs; those of any lengths, padded in the server; a text in pieces, whose state the "
    "server keeps; new text. Give it again for a further model.",
)
@click.option("--name", metavar="NAME", help="Name of the model.  [default: that of the bundle's folder]")
@click.option("--version", type=int, help="Number of the version.  [default: the next one]")
@click.option(
    "--keep", type=int, default=2, show_default=True, help="Versions that stay on disk; the newest is served."
)
@click.option("--device", type=Choice(DEVICES), default=CPU, show_default=True, help="Where it runs.")
@click.option(
    "--engine", metavar="NAME", help="Serve this TensorRT engine of the bundle as the forward model, not the graph."
)
@click.option("--instances", type=int, default=1, show_default=True, help="Copies that run at the same time.")
@click.option("--threads", type=int, help="CPU threads of one operator.")
@click.option("--max-batch", type=int, help="Most rows of a run.  [default: as many as the graph takes]")
@click.option(
    "--queue-delay-us",
    type=int,
    default=0,
    show_default=True,
    help="Microseconds that a request waits for others to be batched with.",
)
@click.option(
    "--slots",
    type=int,
    help="Most texts that are written, or kept, at a time.  [default: 16, if the graphs take so many]",
)
@click.option(
    "--max-waiting",
    type=int,
    default=DEFAULT_MAX_WAITING,
    show_default=True,
    help="Most requests that wait; further ones are refused.",
)
@click.option(
    "--timeout-s",
    type=float,
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    help="Seconds without a request after which a sequence is forgotten; the longest that new text may take.",
)
@click.option("--force", is_flag=True, help="Write over that version, and over a config.pbtxt changed by hand.")
@output_options(*REPORT)
def triton_command(
    output: Output,
    bundle: Path,
    target: Path,
    forms: tuple[str, ...],
    name: str | None,
    version: int | None,
    keep: int,
    device: str,
    engine: str | None,
    instances: int,
    threads: int | None,
    max_batch: int | None,
    queue_delay_us: int,
    slots: int | None,
    max_waiting: int,
    timeout_s: float,
    force: bool,
) -> Repository:
    """Write BUNDLE as models of a repository that Triton serves.

    The forms forward and sequence need nothing in the server but its onnxruntime or TensorRT backend; ragged and
    generate run in its Python backend and need flash-export there. A model that is in the repository gets a further
    version: a server that runs answers what it has begun with the one before.

    \b
    Examples:
      flash-export triton BUNDLE -o REPOSITORY
      flash-export triton BUNDLE -o REPOSITORY --form sequence --slots 64
      flash-export triton BUNDLE -o REPOSITORY --form forward --form generate
      flash-export triton BUNDLE -o REPOSITORY --form ragged --queue-delay-us 2000
      flash-export triton BUNDLE -o REPOSITORY --engine fp16 --device gpu
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.serving.repository import write_repository

    for option, used_by in _USED_BY.items():
        if not set(forms) & set(used_by):
            refuse_ignored([option], f"only the forms {', '.join(used_by)} use it")
    if engine is not None and forms == (FORWARD,):
        refuse_ignored(["threads", "device"], "an engine runs on its GPU")
    options = TritonOptions(
        forms=forms,
        name=name,
        version=version,
        keep=keep,
        device=device,
        engine=engine,
        instances=instances,
        threads=threads,
        max_batch=max_batch,
        queue_delay_us=queue_delay_us,
        slots=slots,
        max_waiting=max_waiting,
        timeout_s=timeout_s,
        force=force,
    )
    repository = write_repository(Bundle.open(bundle), target, options)
    output.show(describe_repository(repository, bundle))
    output.suggest_program("tritonserver", f"--model-repository={target.resolve()}")
    return repository


def describe_repository(repository: Repository, bundle: Path) -> Document:
    """Return the report of what was written."""
    return Document(
        subject=f"Models of {bundle} in the repository {repository.path}",
        command="flash-export triton",
        sections=(
            Section(
                "",
                tabulate(
                    repository.models,
                    [
                        (text("model"), lambda one: one.name),
                        (text("form"), lambda one: one.form),
                        (number("version"), lambda one: str(one.version)),
                        (text("kept"), lambda one: ", ".join(map(str, one.kept)) or "none"),
                        (text("backend"), lambda one: one.backend),
                        (number("largest batch"), lambda one: str(one.max_batch_size or "not batched")),
                    ],
                ),
            ),
        ),
    )
