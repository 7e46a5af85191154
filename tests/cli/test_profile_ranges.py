from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from flash_export.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle


def invoke(bundle: Bundle, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["profile-ranges", str(bundle.path), "--threads", "1", *arguments])


def test_table_and_json_file(small_bundle: Bundle, tmp_path: Path) -> None:
    result = invoke(small_bundle, "--lengths", "40,80,160", "--json", str(tmp_path / "ranges.json"))

    assert result.exit_code == 0, result.output
    assert "Measured on random tokens, 40 to 160 tokens;" in result.stdout
    assert "and 8 more\n" in result.stdout
    values = json.loads((tmp_path / "ranges.json").read_text())
    assert values["seq_lens"] == [40, 80, 160]
    assert len(values["rows"]) == 2 * 13 + 2


def test_json_on_stdout_stands_alone_and_all_are_shown(small_bundle: Bundle) -> None:
    result = invoke(small_bundle, "--lengths", "16", "--json", "-", "--all")

    assert json.loads(result.stdout)["data"] == "random tokens"
    assert "Measured on" in result.stderr
    assert "with more room" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lengths", "513"), "seq_len=513 exceeds the graph's maximum 512"),
        (("--lengths", "one"), "write it like 1,17,300"),
        (("--windows", "0"), "windows=0 is not usable"),
        (("--seconds", "-1"), "seconds=-1.0 is not usable"),
    ],
)
def test_bad_option_exits_2_with_one_line(small_bundle: Bundle, arguments: tuple[str, ...], message: str) -> None:
    result = invoke(small_bundle, *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
