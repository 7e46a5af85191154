"""Options that several commands share, and those that every command has."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from flash_export.cli.output import STDOUT, Output, Result, write_text
from flash_export.errors import ConfigError
from flash_export.reading import parse_json, read_json_object
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

EXIT_VERDICT_NO = 1


class IntegerList(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Whole numbers separated by commas: ``1,17,300``."""

    name = "N,N,..."

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers; write it like 1,17,300", param, ctx)


class Choice(click.Choice):  # type: ignore[type-arg,unused-ignore]
    """One of several names; a mistyped one is answered with the one that was probably meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name."""
        if value not in self.choices:
            self.fail(f"{value!r} is none of {list_known(value, self.choices)}", param, ctx)
        return value


FORMATS = {
    "html": "Write the report as one HTML file.",
    "markdown": "Write the report as Markdown; - for stdout.",
    "junit": "Write the checks as JUnit XML, for CI systems.",
}
REPORT = ("html", "markdown")  # of every report
CHECKS = (*REPORT, "junit")  # of one that has checks


def refuse_ignored(names: Iterable[str], reason: str) -> None:
    """Refuse options that were given on the command line and would be ignored.

    Args:
        names: Parameters of the command that is run.
        reason: Why they would be, as the first half of the sentence.

    Raises:
        ConfigError: One was given.
    """
    ctx, refused = click.get_current_context(), set(names)
    given = [
        max(one.opts, key=len)
        for one in ctx.command.params
        if one.name in refused and ctx.get_parameter_source(one.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise ConfigError(f"{reason}, so that {', '.join(given)} would be ignored; leave it out")


def output_options(
    *formats: str, verdict: Callable[[Any], bool] | None = None
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a command the options that all have; its function takes an ``output`` and returns a result.

    Args:
        formats: What the report of the command can be written in, an option each.
        verdict: Whether a result is a yes; on a no, the exit code is 1. None: every result is one.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @click.option("--json", "json_file", metavar="FILE", help="Write the result as JSON; - for stdout.")
        @click.option("-q", "--quiet", is_flag=True, help="Show errors alone.")
        @click.option("-v", "--verbose", is_flag=True, help="Show versions, times, and why something was skipped.")
        @click.option("--log-file", metavar="FILE", help="Add the whole log to a file, as --verbose shows it.")
        @click.pass_context
        def run(
            ctx: click.Context,
            /,
            json_file: str | None,
            quiet: bool,
            verbose: bool,
            log_file: str | None,
            **values: Any,
        ) -> Result:
            files = {name: values.pop(f"{name}_file") for name in formats}
            outer = ctx.find_object(Output)
            if outer is not None:  # a step of a longer command, which answers for it
                return function(output=replace(outer, is_step=True), **values)
            if quiet and verbose:
                raise click.UsageError("--quiet and --verbose contradict each other; give one of them", ctx)
            takers = [name for name, target in {"json": json_file, **files}.items() if target == STDOUT]
            if len(takers) > 1:
                listed = " and ".join(f"--{name}" for name in takers)
                raise click.UsageError(f"{listed} both go to stdout; give one of them a file", ctx)
            ctx.obj = Output(quiet, verbose, stdout_is_taken=bool(takers), files=files, log_file=log_file)
            with ctx.obj.show_log():
                result = function(output=ctx.obj, **values)
                if json_file is not None:
                    write_text(json_file, result.to_json())
            if verdict is not None and not verdict(result):
                ctx.exit(EXIT_VERDICT_NO)
            return result

        command = functools.update_wrapper(run, function)
        for name in reversed(formats):
            command = click.option(f"--{name}", f"{name}_file", metavar="FILE", help=FORMATS[name])(command)
        return command

    return decorate


def parse_config(config_file: str | None, assignments: tuple[str, ...]) -> dict[str, Any] | None:
    """Merge ``--config FILE`` and ``--set NAME=VALUE``; None if neither was given.

    Values of ``--set`` are JSON (``true``, ``256``, ``1.5``), or else plain text.

    Raises:
        ConfigError: The file is no JSON object, or an assignment has no ``=``.
    """
    if config_file is None and not assignments:
        return None
    values = {}
    if config_file is not None:
        values = read_json_object(Path(config_file), ConfigError, "give --config a file with a JSON object")
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {assignment!r} has no name and value; write --set causal=true")
        try:
            values[name.strip()] = parse_json(text)
        except ValueError:
            values[name.strip()] = text
    return values
