"""``flash-export trt``: build a TensorRT engine from a bundle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flash_export.cli.engine_document import Engines, describe_check, describe_engine
from flash_export.cli.options import REPORT, Choice, output_options, refuse_ignored
from flash_export.config import (
    AUTO_FLAVOUR,
    DEFAULT_PROFILE_BATCH,
    FLAVOURS,
    FORWARD,
    MAX_PROFILES,
    BuildOptions,
)
from flash_export.errors import BundleError
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import EngineManifest
    from flash_export.cli.output import Output

AUTO_PROFILES = "auto"
BUILD_ONE = "build one with 'flash-export trt BUNDLE'"


class ProfileCount(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of profiles, or ``auto``, which is None."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number."""
        if value in (None, AUTO_PROFILES):
            return None
        if not re.fullmatch("[0-9]{1,9}", str(value)) or not 1 <= int(value) <= MAX_PROFILES:
            self.fail(f"{value!r} is neither a number from 1 to {MAX_PROFILES} nor {AUTO_PROFILES}", param, ctx)
        return int(value)


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
@click.option(
    "--length-histogram",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="How often each length is asked for, from which profiles are cut: JSON or CSV of lengths and counts.",
)
@click.option(
    "--length-range", metavar="MIN:MAX", help="Cut profiles from a range of lengths that are all asked for as often."
)
@click.option(
    "--profiles",
    "num_profiles",
    type=ProfileCount(),
    default=AUTO_PROFILES,
    metavar="N|auto",
    show_default=True,
    help="How many profiles to cut these lengths into. auto: for tensorrt as many as are worth it, for tensorrt-rtx "
    "one, because it makes kernels for the lengths that it meets.",
)
@click.option(
    "--change-cost",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="LENGTH",
    help="What a change of profile between two requests costs, as the length of a request that takes as long.  "
    "[default: 0]",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=DEFAULT_PROFILE_BATCH,
    show_default=True,
    help="Largest batch of profiles that are not written out.",
)
@click.option("--workspace-mib", type=click.IntRange(min=1), help="Most scratch memory a layer may use.")
@click.option("--tf32", is_flag=True, help="Let fp32 products round to TensorFloat-32: faster, three digits less.")
@click.option("--force", is_flag=True, help="Replace the engine of that name.")
@click.option("--no-cache", is_flag=True, help="Build even what was built before, and keep nothing for the next build.")
@click.option(
    "--check",
    is_flag=True,
    help="Build nothing: tell of each engine, or of the one that --name gives, whether it may be loaded here.",
)
@output_options(*REPORT, verdict=bool)
def trt_command(
    output: Output,
    bundle: Path,
    flavour: str,
    profiles: tuple[str, ...],
    compute_capabilities: tuple[str, ...],
    graph: str,
    name: str | None,
    length_histogram: Path | None,
    length_range: str | None,
    num_profiles: int | None,
    change_cost: float,
    max_batch: int,
    workspace_mib: int | None,
    tf32: bool,
    force: bool,
    no_cache: bool,
    check: bool,
) -> Engines:
    """Build a TensorRT engine from BUNDLE, the folder that 'flash-export onnx' wrote, and store it there.

    An engine that was built before, of the same graph, by the same TensorRT, with the same options, is taken from the
    user's cache folder. FLASH_EXPORT_CACHE names another folder, FLASH_EXPORT_CACHE_GIB its largest size (10).

    \b
    Examples:
      flash-export trt BUNDLE
      flash-export trt BUNDLE --profile 1x1:1x512:4x4096
      flash-export trt BUNDLE --profile 1x1:1x64:1x512 --profile 8x1:8x64:8x512
      flash-export trt BUNDLE --length-histogram lengths.csv --profiles auto
      flash-export trt BUNDLE --length-range 1:4096 --profiles 3
      flash-export trt BUNDLE --compute-capability 8.9 --name ada
      flash-export trt BUNDLE --flavour tensorrt --force
      flash-export trt BUNDLE --check
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.exporters.engine import build_engine
    from flash_export.runtime.engine_check import check_engine

    opened = Bundle.open(bundle)
    if check:
        _refuse_others_than("--check", "--name")
        engines = {one.name: one for one in opened.list_engines()}
        if not engines or name not in (None, *engines):
            named, has = f" {name!r}" if name else "", f"it has {list_known(name or '', engines)}" if engines else None
            raise BundleError(f"{bundle} has no engine{named}; {has or BUILD_ONE}")
        chosen = engines.values() if name is None else (engines[name],)
        result = Engines(tuple(check_engine(opened, one) for one in chosen))
        output.show(describe_check(opened, result))
        return result
    options = BuildOptions(
        graph=graph,
        name=name,
        flavour=flavour,
        profiles=profiles,
        compute_capabilities=compute_capabilities,
        workspace_bytes=workspace_mib and workspace_mib << 20,
        tf32=tf32,
        overwrite=force,
        length_histogram=length_histogram,
        length_range=length_range,
        num_profiles=num_profiles,
        change_cost=change_cost,
        max_batch=max_batch,
        cache=not no_cache,
    )
    with output.show_progress("Building") as progress:
        build = build_engine(opened, options=options, progress=progress)
    output.show(describe_engine(opened, build))
    output.suggest_next(*_choose_next(opened, build.engine))
    return Engines((check_engine(opened, build.engine),), build.is_from_cache, build.use)


def _refuse_others_than(option: str, *companions: str) -> None:
    """Refuse the options of a build beside one that builds nothing, as they would be ignored.

    Raises:
        ConfigError: One was given.
    """
    kept = {"--json", "--quiet", "--verbose", "--log-file", *(f"--{name}" for name in REPORT), option, *companions}
    params = click.get_current_context().command.params
    others = [str(one.name) for one in params if isinstance(one, click.Option) and not kept & set(one.opts)]
    refuse_ignored(others, f"{option} builds nothing")


def _choose_next(bundle: Bundle, engine: EngineManifest) -> tuple[str | Path, ...]:
    """Return what comes next: to validate the engine, or, with a state, to build the other graphs and to generate."""
    if engine.graph == FORWARD:
        return ("validate", bundle.path, "--backend", f"trt:{engine.name}")
    from flash_export.generation.state_graphs import list_state_graphs

    built = {other.graph for other in bundle.list_engines()}
    if missing := [graph for graph in list_state_graphs(bundle) if graph not in built]:
        return ("trt", bundle.path, "--graph", missing[0])
    return ("generate", bundle.path, "--backend", "trt", "--prompt", "TEXT")
