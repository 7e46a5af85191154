"""Commands as a user types them, run in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from flash_export.cli.main import main


def invoke(*arguments: object) -> Result:
    """Run a command line, whatever it answers."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def check(*arguments: object) -> Result:
    """Run a command line that succeeds."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result
