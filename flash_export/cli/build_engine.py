"""``flash-export trt``: build a TensorRT engine from a bundle."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.config import AUTO_FLAVOUR, FLAVOURS, BuildOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.bundle import Bundle
    from flash_export.exporters.engine_progress import BuildProgress, ProgressCallback
    from flash_export.manifest import EngineManifest


@click.command("trt")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--flavour",
    type=click.Choice((AUTO_FLAVOUR, *FLAVOURS)),
    default=AUTO_FLAVOUR,
    show_default=True,
    help="tensorrt builds for the GPU at hand; tensorrt-rtx builds for RTX GPUs, on any machine. "
    "auto: tensorrt where it is installed and there is a GPU, else tensorrt-rtx.",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="MIN:OPT:MAX",
    help="Shapes to accept and to tune for, as BATCHxSEQ, such as 1x1:1x512:4x4096. Give it several times for several "
    "profiles.  [default: every length of the graph, batches up to 8, tuned for one sequence of 512]",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="MAJOR.MINOR",
    help="GPU to build for, tensorrt-rtx only, such as 8.9; repeatable.  [default: all that it offers from 8.0 on]",
)
@click.option("--graph", default="forward", show_default=True, help="Graph of the bundle to build.")
@click.option("--name", help="Name of the engine.  [default: the name of the graph]")
@click.option("--workspace-mib", type=click.IntRange(min=1), help="Most scratch memory a layer may use.")
@click.option("--tf32", is_flag=True, help="Let fp32 products round to TensorFloat-32: faster, three digits less.")
@click.option("--force", is_flag=True, help="Replace the engine of that name.")
def trt_command(
    bundle: Path,
    flavour: str,
    profiles: tuple[str, ...],
    compute_capabilities: tuple[str, ...],
    graph: str,
    name: str | None,
    workspace_mib: int | None,
    tf32: bool,
    force: bool,
) -> None:
    """Build a TensorRT engine from BUNDLE, the folder that 'flash-export onnx' wrote, and store it there.

    \b
    Examples:
      flash-export trt BUNDLE
      flash-export trt BUNDLE --profile 1x1:1x512:4x4096
      flash-export trt BUNDLE --compute-capability 8.9 --compute-capability 12.0 --name ada-blackwell
      flash-export trt BUNDLE --flavour tensorrt --profile 1x1:1x256:1x1024 --profile 8x1:8x256:8x1024 --force
    """
    from flash_export.bundle import Bundle
    from flash_export.exporters.engine import build_engine

    options = BuildOptions(
        graph=graph,
        name=name,
        flavour=flavour,
        profiles=profiles,
        compute_capabilities=compute_capabilities,
        workspace_bytes=workspace_mib and workspace_mib << 20,
        tf32=tf32,
        overwrite=force,
    )
    opened = Bundle.open(bundle)
    with _show_warnings(), _show_progress() as progress:
        engine = build_engine(opened, options=options, progress=progress)
    _print_summary(opened, engine)


@contextmanager
def _show_warnings() -> Iterator[None]:
    """Print what TensorRT warns of on stderr while the block runs."""
    from flash_export.exporters.engine_log import logger

    class Echo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            click.echo(f"Warning: TensorRT: {record.getMessage()}", err=True)

    handler = Echo(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _show_progress() -> Iterator[ProgressCallback]:
    """Show a bar of the whole build and one of the innermost phase on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def report(progress: BuildProgress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bars.add_task(progress.phase)
            done = progress.parent is not None and progress.step == progress.num_steps
            bars.update(tasks[progress.phase], completed=progress.step, total=progress.num_steps, visible=not done)

        yield report


def _print_summary(bundle: Bundle, engine: EngineManifest) -> None:
    from flash_export.bundle import ENGINE_FOLDER

    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in engine.layer_dtypes.items())
    depth = bundle.read_config().get("depth")
    blocks = f", {engine.num_layers / depth:.0f} a block with what is around the {depth}" if depth else ""
    rows = {
        "engine": bundle.path / ENGINE_FOLDER / f"{engine.name}.engine",
        "flavour": f"{engine.flavour} {engine.version}",
        "targets": ", ".join(engine.targets),
        "profiles": "; ".join(_format_profile(engine, index) for index in range(len(engine.profiles))),
        "layers": f"{engine.num_layers}{blocks} ({dtypes})",
        "size": f"{engine.size_bytes / 2**20:.1f} MiB",
        "built in": f"{engine.build_seconds:.1f} s",
    }
    for label, value in rows.items():
        click.echo(f"{label:<9} {value}")


def _format_profile(engine: EngineManifest, index: int) -> str:
    """Return a profile as it would be written on the command line; the first input has every axis."""
    spec = engine.inputs[0]
    shapes = engine.profiles[index][spec.name]
    dynamic = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]
    return ":".join("x".join(str(shape[axis]) for axis in dynamic) for shape in (shapes.min, shapes.opt, shapes.max))
