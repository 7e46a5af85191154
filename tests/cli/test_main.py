"""The command group: help, errors, exit codes, and how little is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from email.message import Message
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flash_export import __version__
from flash_export.cli.main import main
from flash_export.errors import BundleError

SNAPSHOTS = Path(__file__).parent / "snapshots"
SCRIPT = Path(sys.executable).parent / "flash-export"
COMMANDS = [  # in the order of work
    "doctor",
    "demo",
    "families",
    "onnx",
    "inspect",
    "validate",
    "report",
    "bisect",
    "profile-ranges",
    "quantize",
    "compare",
    "tune",
    "study",
    "trt",
    "engine-report",
    "generate",
    "enhance",
    "separate",
    "standalone",
    "triton",
]
HEAVY_MODULES = ["torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "tensorrt", "tensorrt_rtx", "numpy"]
UPDATE = "UPDATE_SNAPSHOTS"


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)


def list_heavy_modules(code: str) -> list[str]:
    """Run code in a fresh Python and return which heavy modules it imported."""
    code += f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY_MODULES} if name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names: list[str] = json.loads(result.stdout.splitlines()[-1])
    return names


def show_help(name: str) -> str:
    arguments = [] if name == "flash-export" else [name]
    result = CliRunner().invoke(main, [*arguments, "--help"], prog_name="flash-export", terminal_width=80)
    assert result.exit_code == 0
    return result.stdout


def test_commands_stand_in_the_order_of_work() -> None:
    assert list(main.commands) == COMMANDS
    lines = show_help("flash-export").splitlines()
    rows = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert [row[0] for row in rows if row[0] in COMMANDS] == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_short_help_is_a_whole_sentence_in_one_line(name: str) -> None:
    short_help = main.commands[name].short_help
    assert short_help is not None
    assert short_help.endswith(".")
    assert [line for line in show_help("flash-export").splitlines() if line.endswith(f" {short_help}")]


@pytest.mark.parametrize("name", ["flash-export", *COMMANDS])
def test_help_fits_80_columns(name: str) -> None:
    assert [line for line in show_help(name).splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_shared_options(name: str) -> None:
    options = {option for parameter in main.commands[name].params for option in parameter.opts}
    assert {"--json", "-q", "--quiet", "-v", "--verbose"} <= options


@pytest.mark.parametrize("name", ["flash-export", *COMMANDS])
def test_help_is_the_snapshot(name: str) -> None:
    """Update the snapshots with ``UPDATE_SNAPSHOTS=1 pytest tests/cli/test_main.py``, and read their diff."""
    text = show_help(name)
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get(UPDATE):
        SNAPSHOTS.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"no snapshot of {name}; write it with {UPDATE}=1"
    assert text == path.read_text(encoding="utf-8"), f"the help changed; if it should, set {UPDATE}=1"


def test_every_snapshot_belongs_to_a_command() -> None:
    assert sorted(path.stem for path in SNAPSHOTS.iterdir()) == sorted(["flash-export", *COMMANDS])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_says_what_it_does_and_shows_examples(name: str) -> None:
    command = main.commands[name]
    with click.Context(command, info_name=name) as context:
        text = command.get_help(context)
    assert "Examples:" in text
    assert f"flash-export {name}" in text.partition("Examples:")[2]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert list_heavy_modules("import flash_export") == []
    assert list_heavy_modules("import numpy") == ["numpy"], "this test cannot see heavy modules"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["onnx", "--help"],
        ["quantize", "--help"],
        ["report", "--help"],
        ["validate", "--help"],
        ["nope"],
    ],
)
def test_help_and_usage_errors_import_nothing_heavy(arguments: list[str]) -> None:
    code = f"from flash_export.cli.main import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    assert list_heavy_modules(code) == []


def test_installed_script() -> None:
    version = run_script("--version")
    assert (version.returncode, version.stdout) == (0, f"flash-export, version {__version__}\n")
    assert run_script("-h").stdout == run_script("--help").stdout
    bare = run_script()
    assert bare.returncode == 2
    assert "Usage: flash-export" in bare.stdout + bare.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus"], "No such option '--bogus'; see 'flash-export --help'"),
        (["nonsense"], "No such command 'nonsense'; see 'flash-export --help'"),
        (["inspekt", "x"], "No such command 'inspekt' (did you mean inspect?); see 'flash-export --help'"),
        (["validate", "--pln"], "No such option '--pln' (did you mean --plan?); see 'flash-export validate --help'"),
        (
            ["doctor", "-q", "-v"],
            "--quiet and --verbose contradict each other; give one of them; see 'flash-",
        ),
        (
            ["quantize", "x", "-o", "y", "--scheme", "INT-8"],
            "Invalid value for '--scheme': 'INT-8' is none of int8-token, int8, int4, fp8 (did you mean int8?); see ",
        ),
        (["onnx"], "Missing argument 'CHECKPOINT'; see 'flash-export onnx --help'"),
        (["onnx", "x"], "Missing option '-o' / '--output'; see 'flash-export onnx --help'"),
        (["inspect", "--bogus", "x"], "No such option '--bogus'; see 'flash-export inspect --help'"),
        (["inspect", "x", "y"], "Got unexpected extra argument (y); see 'flash-export inspect --help'"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments, prog_name="flash-export")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"Error: {message}")


def test_usage_error_of_the_installed_script() -> None:
    result = run_script("inspect")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "Error: Missing argument 'PATH'; see 'flash-export inspect --help'\n"


REPORT_IT = "this is a fault of flash-export, please report it"


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (BundleError("got x, wanted y; do z"), 2, "got x, wanted y; do z"),
        (ModuleNotFoundError("no torch", name="torch"), 2, "torch is not installed; 'flash-export doctor' tells what"),
        (
            PermissionError(13, "Permission denied", "a/b\n\x1b[2J"),
            2,
            r"a/b\n\x1b[2J: Permission denied; correct the path, or who may use it",
        ),
        (MemoryError("8 EiB"), 2, "memory is full (8 EiB); try shorter sequences or smaller batches"),
        (RuntimeError("boom\nsecond line"), 70, f"internal error, RuntimeError: boom second line; {REPORT_IT}"),
        (OSError(5, "Input/output error"), 70, f"internal error, OSError: Input/output error; {REPORT_IT}"),
        (KeyError("\x07" * 5000), 70, "internal error, KeyError: '"),
    ],
)
def test_errors_are_one_line_of_a_screen(
    monkeypatch: pytest.MonkeyPatch, error: Exception, exit_code: int, message: str
) -> None:
    monkeypatch.setattr(main.commands["doctor"], "callback", fail_with(error))
    result = CliRunner().invoke(main, ["doctor"])
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.startswith(f"Error: {message}")
    assert result.stderr.count("\n") == 1
    assert result.stderr.removesuffix("\n").isprintable()
    assert len(result.stderr) < 80 * 24


def test_an_internal_error_says_where_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = Message()
    entries["Project-URL"] = "Homepage, https://example.org"
    entries["Project-URL"] = "Bug Tracker, https://example.org/bugs, all of them"
    monkeypatch.setattr(metadata, "metadata", lambda _: entries)
    monkeypatch.setattr(main.commands["doctor"], "callback", fail_with(RuntimeError("boom")))
    result = CliRunner().invoke(main, ["doctor"])
    assert "please report it at https://example.org/bugs, all of them with what 'flash-export --traceback' shows" in (
        result.stderr
    )


@pytest.mark.parametrize(("error", "exit_code"), [(BundleError("wrong"), 2), (RuntimeError("boom"), 70)])
def test_traceback_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch, error: Exception, exit_code: int) -> None:
    monkeypatch.setattr(main.commands["doctor"], "callback", fail_with(error))
    result = CliRunner().invoke(main, ["--traceback", "doctor"])
    assert result.exit_code == exit_code
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert f"{type(error).__name__}: {error}\n" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupt_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    monkeypatch.setattr(main.commands["doctor"], "callback", fail_with(error))
    result = CliRunner().invoke(main, ["doctor"])
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "Interrupted.\n")


def test_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """As in ``flash-export inspect ... | head -0``; more is printed than a pipe's buffer holds."""
    code = (
        "import click\n"
        "from flash_export.cli.main import main\n"
        "main.commands['doctor'].callback = lambda **_: click.echo('x' * 1_000_000)\n"
        "main(['doctor'])\n"
    )
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        os.close(reading)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1


def fail_with(error: BaseException) -> object:
    def fail(**_: object) -> None:
        raise error

    return fail
