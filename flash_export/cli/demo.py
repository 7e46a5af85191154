"""``flash-export demo``: the whole pipeline on a bundled trained checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flash_export.cli.options import Choice, output_options
from flash_export.cli.output import format_command
from flash_export.strict_json import format_json

if TYPE_CHECKING:  # with numpy and more, which help does not need
    from flash_export.bundle.manifest import EngineManifest
    from flash_export.cli.output import Output
    from flash_export.validators.results import ValidationReport

MODELS = ("byte-causal", "byte-masked")
DEMO_MAX_SEQ_LEN = 4096


@dataclass(frozen=True)
class Demonstration:
    """What the pipeline made; true if the validation passed.

    Attributes:
        bundle: The folder.
        engine: The engine; None where none can be built.
        no_engine: Why there is no engine; empty if there is one.
        report: The validation.
    """

    bundle: Path
    engine: EngineManifest | None
    no_engine: str
    report: ValidationReport

    def __bool__(self) -> bool:
        return bool(self.report)

    def to_json(self) -> str:
        """Return strict JSON."""
        values = {"bundle": self.bundle, "engine": self.engine, "no_engine": self.no_engine}
        return format_json({"passed": bool(self), **values, "report": self.report.to_dict()})


@click.command("demo", short_help="Export, build and validate a bundled trained model.")
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder."
)
@click.option("--model", type=Choice(MODELS), default=MODELS[0], show_default=True, help="Bundled checkpoint.")
@click.option("--max-seq-len", type=int, default=DEMO_MAX_SEQ_LEN, show_default=True, help="Longest sequence.")
@output_options(verdict=bool)
@click.pass_context
def demo_command(ctx: click.Context, output: Output, folder: Path, model: str, max_seq_len: int) -> Demonstration:
    """Export a bundled trained model, build an engine, and validate both: the whole pipeline.

    The steps are those of 'flash-export onnx', 'trt' and 'validate', and each is shown as the command to type.

    \b
    Examples:
      flash-export demo
      flash-export demo --model byte-masked -o /tmp/demo
    """
    from flash_export.cli.build_engine import trt_command
    from flash_export.cli.export_onnx import onnx_command
    from flash_export.cli.validate import validate_command
    from flash_export.errors import BackendUnavailableError

    checkpoint = Path(__file__).resolve().parent.parent / "assets" / model
    bundle = folder / model

    def run(command: click.Command, *arguments: str | Path) -> Any:
        output.echo(f"\n$ {format_command(str(command.name), *arguments)}")
        with command.make_context(command.name, list(map(str, arguments)), parent=ctx) as child:
            return command.invoke(child)

    run(onnx_command, checkpoint, "-o", bundle, "--max-seq-len", str(max_seq_len), "--force")
    engine, no_engine = None, ""
    try:
        engine = run(trt_command, bundle, "--force")
    except BackendUnavailableError as error:
        no_engine = str(error)
        output.echo(f"No engine: {no_engine}")
    report = run(validate_command, bundle)
    output.suggest_next("onnx", "CHECKPOINT", "-o", "BUNDLE")
    return Demonstration(bundle, engine, no_engine, report)
