"""``flash-export demo``: the whole pipeline on a bundled trained checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

MODELS = ("byte-causal", "byte-masked")
DEMO_MAX_SEQ_LEN = 4096


@click.command("demo")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder."
)
@click.option("--model", type=click.Choice(MODELS), default=MODELS[0], show_default=True, help="Bundled checkpoint.")
@click.option("--max-seq-len", type=int, default=DEMO_MAX_SEQ_LEN, show_default=True, help="Longest sequence.")
@click.pass_context
def demo_command(ctx: click.Context, output: Path, model: str, max_seq_len: int) -> None:
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
    bundle = output / model

    def run(command: click.Command, *arguments: str) -> None:
        click.secho(f"\n$ flash-export {command.name} {' '.join(arguments)}", bold=True)
        with command.make_context(command.name, list(arguments), parent=ctx) as child:
            command.invoke(child)

    run(onnx_command, str(checkpoint), "-o", str(bundle), "--max-seq-len", str(max_seq_len), "--force")
    try:
        run(trt_command, str(bundle), "--force")
    except BackendUnavailableError as error:
        click.echo(f"No engine: {error}", err=True)
    run(validate_command, str(bundle))
