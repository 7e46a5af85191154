"""The ``flash-export`` command: a group whose commands parse, call the library, print and set the exit code.

Exit codes: 0 all good; 1 a validation said no; 2 bad input or usage; 70 a fault of ours; 130 interrupted by Ctrl-C, 143
and 129 by SIGTERM and SIGHUP.
"""

from __future__ import annotations

import os
import traceback
from importlib import metadata
from typing import Any, NoReturn

import click

from flash_export.cli.bisect import bisect_command
from flash_export.cli.build_engine import trt_command
from flash_export.cli.compare import compare_command
from flash_export.cli.demo import demo_command
from flash_export.cli.doctor import doctor_command
from flash_export.cli.engine_report import engine_report_command
from flash_export.cli.export_onnx import onnx_command
from flash_export.cli.families import families_command
from flash_export.cli.generate import generate_command
from flash_export.cli.inspect_path import inspect_command
from flash_export.cli.interrupt import ARGUMENTS, describe_interrupt
from flash_export.cli.profile_ranges import profile_ranges_command
from flash_export.cli.quantize import quantize_command
from flash_export.cli.recordings import enhance_command, separate_command
from flash_export.cli.show_report import report_command
from flash_export.cli.standalone import standalone_command
from flash_export.cli.study import study_command
from flash_export.cli.triton import triton_command
from flash_export.cli.tune import tune_command
from flash_export.cli.validate import validate_command
from flash_export.errors import (
    MAX_MESSAGE_CHARACTERS,
    ConfigError,
    FlashExportError,
    describe_reason,
    make_visible,
    shorten,
)
from flash_export.suggest import suggest
from flash_export.terminal import prepare_streams
from flash_export.termination import get_exit_code, raise_terminations
from flash_export.version import __version__

EXIT_BAD_INPUT = 2
EXIT_INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
# The project URLs, by their well-known labels (https://packaging.python.org/specifications/well-known-project-urls).
_REPORT_LABELS = ("issues", "bugtracker", "tracker", "source", "repository", "homepage")


# The commands in the order of work.
SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Start here": (doctor_command, demo_command),
    "Export": (families_command, onnx_command, inspect_command),
    "Check": (validate_command, report_command, bisect_command),
    "Make it smaller": (profile_ranges_command, quantize_command, compare_command),
    "Choose": (tune_command, study_command),
    "Run it": (trt_command, engine_report_command, generate_command, enhance_command, separate_command),
    "Serve it": (standalone_command, triton_command),
}


class CommandGroup(click.Group):
    """A group that lists its commands by section, and turns errors into one line on stderr and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of work."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list of commands for each section, all with the same indent."""
        width = max(map(len, self.commands))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{command.name:<{width}}", command.get_short_help_str()) for command in commands])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the command line, so that an interrupt can name the one to go on with."""
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of a mistyped one say which was probably meant."""
        name = args[0]
        if not name.startswith("-") and name not in self.commands:
            raise click.UsageError(f"No such command {name!r}{suggest(name, self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the group's own arguments, once whatever is printed can be printed."""
        prepare_streams()
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
            click.echo(describe_interrupt(ctx), err=True)
            raise click.exceptions.Exit(get_exit_code(interrupt)) from None
        except Exception as error:
            if ctx.params.get("show_traceback"):
                click.echo(traceback.format_exc(), err=True, nl=False)
            message, exit_code = _explain(error)
            click.echo(f"Error: {message}", err=True)
            raise click.exceptions.Exit(exit_code) from None


def _explain(error: Exception) -> tuple[str, int]:
    """Return an error in one line, and the exit code: what the input or the machine causes is no fault of ours."""
    if isinstance(error, FlashExportError):
        return str(error), EXIT_BAD_INPUT
    if isinstance(error, OSError) and error.filename is not None:
        path = make_visible(str(error.filename))
        return f"{path}: {error.strerror}; correct the path, or who may use it", EXIT_BAD_INPUT
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; 'flash-export doctor' tells what to install", EXIT_BAD_INPUT
    if isinstance(error, MemoryError):
        return f"memory is full ({describe_reason(error)}); try shorter sequences or smaller batches", EXIT_BAD_INPUT
    return (
        f"internal error, {type(error).__name__}: {make_visible(describe_reason(error))}; this is a fault of "
        f"flash-export, please report it{_find_report_address()} with what 'flash-export --traceback' shows"
    ), EXIT_INTERNAL_ERROR


def _find_report_address() -> str:
    """Return `` at ADDRESS``, as the package's metadata has it; nothing if it has none."""
    try:
        entries = metadata.metadata("flash-export").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    urls = dict(entry.split(", ", 1) for entry in entries)
    known = {"".join(filter(str.isalnum, label.lower())): url for label, url in urls.items()}
    return next((f" at {known[label]}" for label in _REPORT_LABELS if label in known), "")


def _report_usage_error(error: click.UsageError) -> NoReturn:
    """Print click's message in one line with where to read on, in place of its four lines."""
    if error.ctx is None or isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        raise error
    message = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error, click.NoSuchOption):
        message = f"No such option {error.option_name!r}{suggest(error.option_name, error.possibilities or ())}"
    message = shorten(make_visible(message), MAX_MESSAGE_CHARACTERS)
    click.echo(f"Error: {message}; see '{error.ctx.command_path} --help'", err=True)
    raise click.exceptions.Exit(error.exit_code) from None


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flash-export")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show the Python traceback of an error.")
def main(show_traceback: bool) -> None:
    """Take trained FLASH models from PyTorch to ONNX to TensorRT, and prove that they are still the same model.

    \b
    Examples:
      flash-export demo
      flash-export onnx CHECKPOINT -o BUNDLE
      flash-export validate BUNDLE
      flash-export trt BUNDLE

    Exit codes: 0 all good; 1 the verdict is no; 2 bad input or usage; 70 a fault of
    flash-export; 130 interrupted.
    """
    # Idle threads of PyTorch would spin on the cores that the runtime it is compared with needs. OpenMP reads this
    # when it is loaded, so it is set before anything imports PyTorch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # onnxruntime 1.32 reports its use to its makers, and leaves a file with an id among the temporary files for it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    _check_current_folder()


def _check_current_folder() -> None:
    """Refuse to run in a folder that was removed: no relative path means anything there, and libraries do not load."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError("the current folder was removed; change to one that is there, and run it again") from error


for _commands in SECTIONS.values():
    for _command in _commands:
        main.add_command(_command)
