"""The ``flash-export`` command: a group whose commands parse, call the library, print and set the exit code.

Exit codes: 0 all good; 1 a validation said no; 2 bad input or usage; 130 interrupted by Ctrl-C, 143 and 129 by SIGTERM
and SIGHUP.
"""

from __future__ import annotations

import os
import traceback
from typing import Any, NoReturn

import click

from flash_export import __version__
from flash_export.cli.bisect import bisect_command
from flash_export.cli.build_engine import trt_command
from flash_export.cli.compare import compare_command
from flash_export.cli.demo import demo_command
from flash_export.cli.doctor import doctor_command
from flash_export.cli.export_onnx import onnx_command
from flash_export.cli.generate import generate_command
from flash_export.cli.inspect_path import inspect_command
from flash_export.cli.profile_ranges import profile_ranges_command
from flash_export.cli.quantize import quantize_command
from flash_export.cli.show_report import report_command
from flash_export.cli.validate import validate_command
from flash_export.errors import FlashExportError
from flash_export.termination import get_exit_code, raise_terminations

EXIT_BAD_INPUT = 2


class ErrorReportingGroup(click.Group):
    """A group that turns errors into one line on stderr and an exit code."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the group's own arguments."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            _report_usage_error(error)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; show a traceback only if ``--traceback`` was given."""
        try:
            with raise_terminations():
                return super().invoke(ctx)
        except click.UsageError as error:
            _report_usage_error(error)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise  # click answers them: a closed pipe, as of '| head', is no error
        except (KeyboardInterrupt, click.Abort) as interrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(get_exit_code(interrupt)) from None
        except Exception as error:
            if ctx.params.get("show_traceback"):
                click.echo(traceback.format_exc(), err=True, nl=False)
            message = " ".join(str(error).split())
            if isinstance(error, OSError) and error.filename is not None:
                message = f"{error.filename}: {error.strerror}; correct the path, or who may use it"
            elif isinstance(error, ModuleNotFoundError):
                message = f"{error.name} is not installed; 'flash-export doctor' tells what to install"
            elif not isinstance(error, FlashExportError):
                message = (
                    f"internal error, {type(error).__name__}: {message}; see it whole with 'flash-export --traceback'"
                )
            click.echo(f"Error: {message}", err=True)
            raise click.exceptions.Exit(EXIT_BAD_INPUT) from None


def _report_usage_error(error: click.UsageError) -> NoReturn:
    """Print click's message in one line with where to read on, in place of its four lines."""
    if error.ctx is None or isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        raise error
    message = " ".join(error.format_message().split()).rstrip(".")
    click.echo(f"Error: {message}; see '{error.ctx.command_path} --help'", err=True)
    raise click.exceptions.Exit(error.exit_code) from None


@click.group(cls=ErrorReportingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flash-export")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show the Python traceback of an error.")
def main(show_traceback: bool) -> None:
    """Take trained FLASH models from PyTorch to ONNX to TensorRT, and prove that they are still the same model.

    \b
    Examples:
      flash-export demo
      flash-export onnx CHECKPOINT -o BUNDLE
      flash-export trt BUNDLE
      flash-export validate BUNDLE
      flash-export compare BUNDLE BUNDLE
      flash-export bisect BUNDLE
      flash-export generate BUNDLE --prompt TEXT
    """
    # Idle threads of PyTorch would spin on the cores that the runtime it is compared with needs. OpenMP reads this
    # when it is loaded, so it is set before anything imports PyTorch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # onnxruntime 1.32 reports its use to its makers, and leaves a file with an id among the temporary files for it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


for _command in (
    onnx_command,
    quantize_command,
    trt_command,
    validate_command,
    report_command,
    compare_command,
    bisect_command,
    profile_ranges_command,
    generate_command,
    inspect_command,
    doctor_command,
    demo_command,
):
    main.add_command(_command)
