"""``flash-export trt``: build a TensorRT engine from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, Choice, output_options
from flash_export.config import AUTO_FLAVOUR, DECODE, FLAVOURS, FORWARD, PREFILL, BuildOptions
from flash_export.formatting import format_bytes
from flash_export.report.document import Document, Pairs, Section

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import EngineManifest
    from flash_export.cli.output import Output


@click.command("trt", short_help="Build a TensorRT engine from a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--flavour",
    type=Choice((AUTO_FLAVOUR, *FLAVOURS)),
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
@click.option("--graph", default=FORWARD, show_default=True, help="Graph of the bundle to build.")
@click.option("--name", help="Name of the engine.  [default: the name of the graph]")
@click.option("--workspace-mib", type=click.IntRange(min=1), help="Most scratch memory a layer may use.")
@click.option("--tf32", is_flag=True, help="Let fp32 products round to TensorFloat-32: faster, three digits less.")
@click.option("--force", is_flag=True, help="Replace the engine of that name.")
@output_options(*REPORT)
def trt_command(
    output: Output,
    bundle: Path,
    flavour: str,
    profiles: tuple[str, ...],
    compute_capabilities: tuple[str, ...],
    graph: str,
    name: str | None,
    workspace_mib: int | None,
    tf32: bool,
    force: bool,
) -> EngineManifest:
    """Build a TensorRT engine from BUNDLE, the folder that 'flash-export onnx' wrote, and store it there.

    \b
    Examples:
      flash-export trt BUNDLE
      flash-export trt BUNDLE --profile 1x1:1x512:4x4096
      flash-export trt BUNDLE --profile 1x1:1x64:1x512 --profile 8x1:8x64:8x512
      flash-export trt BUNDLE --compute-capability 8.9 --name ada
      flash-export trt BUNDLE --flavour tensorrt --force
    """
    from flash_export.bundle.bundle import Bundle
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
    with output.show_progress("Building") as progress:
        engine = build_engine(opened, options=options, progress=progress)
    output.show(describe_engine(opened, engine))
    output.suggest_next(*_choose_next(opened, engine))
    return engine


def describe_engine(bundle: Bundle, engine: EngineManifest) -> Document:
    """Return the report of a build."""
    from flash_export.bundle.bundle import ENGINE_FOLDER

    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in engine.layer_dtypes.items())
    depth = bundle.manifest.model.num_blocks if bundle.manifest.model else None
    blocks = (
        f", {engine.num_layers / depth:.0f} per block with what is around the {depth}" if depth and depth > 1 else ""
    )
    pairs = {
        "flavour": f"{engine.flavour} {engine.version}",
        "targets": ", ".join(engine.targets),
        "profiles": "; ".join(_format_profile(engine, index) for index in range(len(engine.profiles))),
        "layers": f"{engine.num_layers}{blocks} ({dtypes})",
        "size": format_bytes(engine.size_bytes),
        "built in": f"{engine.build_seconds:.1f} s",
    }
    path = bundle.path / ENGINE_FOLDER / f"{engine.name}.engine"
    return Document(f"engine {path}", "flash-export trt", sections=(Section("", Pairs(tuple(pairs.items()))),))


def _choose_next(bundle: Bundle, engine: EngineManifest) -> tuple[str | Path, ...]:
    """Return what comes next: to validate the engine, or, with a state, to build the other graph and to generate."""
    if engine.graph == FORWARD:
        return ("validate", bundle.path, "--backend", f"trt:{engine.name}")
    built = {other.graph for other in bundle.list_engines()}
    if missing := [graph for graph in (PREFILL, DECODE) if graph not in built]:
        return ("trt", bundle.path, "--graph", missing[0])
    return ("generate", bundle.path, "--backend", "trt", "--prompt", "TEXT")


def _format_profile(engine: EngineManifest, index: int) -> str:
    """Return a profile as it would be written on the command line; the first input has every axis."""
    spec = engine.inputs[0]
    shapes = engine.profiles[index][spec.name]
    dynamic = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]
    if not dynamic:
        return "none: every size is fixed"
    return ":".join("x".join(str(shape[axis]) for axis in dynamic) for shape in (shapes.min, shapes.opt, shapes.max))
