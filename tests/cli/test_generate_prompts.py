"""``flash-export generate --prompts``: many prompts from a file; a bad line is an answer, and a killed run goes on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from flash_export.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from flash_export.bundle.bundle import Bundle

pytest.importorskip("onnxruntime")

LINES = [
    '{"id": "tokens", "tokens": [100, 101, 102, 32], "temperature": 0.8, "seed": 3}',
    '{"id": "short", "tokens": [5], "max_tokens": 2}',
    '{"id": "penalised", "tokens": [5, 6], "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2, "temperature": 1}',
    '{"id": "nothing", "tokens": [7], "max_tokens": 0}',
]
BAD = [
    ('{"id": "tokens", "tokens": [1]}', "line 5", "the id 'tokens' is that of an earlier line"),
    ('{"id": "both", "prompt": "x", "tokens": [1]}', "both", "it has prompt and tokens, or neither"),
    ("no JSON", "line 7", "Expecting value"),
    ('{"id": "odd", "tokens": [1, 999]}', "odd", "token ids are 0 to 256 here"),
    ('{"id": "cold", "tokens": [1], "temperature": -1}', "cold", "temperature=-1 is not usable"),
    ('{"tokens": [1]}', "line 10", "id is missing"),
    ('{"id": "words", "prompt": "x"}', "words", "not the 256 bytes"),
    ('{"id": "none", "tokens": []}', "none", "has no tokens"),
    ("[1, 2]", "line 13", "it is a list, wanted an object"),
    ('{"id": "wrong", "tokens": [1], "stop": [3]}', "wrong", "unknown field 'stop' (did you mean stop_tokens?)"),
    ('{"id": "half", "tokens": [1.5]}', "half", "tokens[0] is a number, wanted a whole number"),
]


def generate(bundle: Bundle, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["generate", str(bundle.path), *map(str, arguments)])


def read(path: Path) -> dict[str, dict[str, Any]]:
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({answer["id"] for answer in answers}) == len(answers)
    return {answer["id"]: answer for answer in answers}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(LINES) + "\n\n")
    return path


def test_answers_are_those_of_one_prompt_alone(causal_byte_bundle: Bundle, prompts: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    result = generate(
        causal_byte_bundle, "--prompts", prompts, "-o", target, "--max-tokens", 9, "--slots", 2, "--threads", 1
    )
    assert result.exit_code == 0, result.output
    assert "4 answered, 0 failed, 0 were there already" in result.output
    answers = read(target)
    assert answers.keys() == {"tokens", "short", "penalised", "nothing"}
    assert (answers["short"]["prompt_tokens"], answers["short"]["end"]) == (1, "length")
    for line in map(json.loads, LINES):
        options = {name: value for name, value in line.items() if name not in ("id", "tokens")}
        arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)]
        default = [] if "max_tokens" in options else ["--max-tokens", 9]
        tokens = ",".join(map(str, line["tokens"]))
        alone = generate(
            causal_byte_bundle, "--tokens", tokens, *default, *arguments, "--threads", 1, "--json", "-", "-q"
        )
        assert answers[line["id"]]["tokens"] == json.loads(alone.stdout)["tokens"]


def test_bad_lines_are_answers_and_are_tried_again(causal_byte_bundle: Bundle, prompts: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    prompts.write_text("\n".join([*LINES, *(line for line, *_ in BAD)]))
    options = ("--prompts", prompts, "-o", target, "--max-tokens", 4, "--slots", 3, "--threads", 1)
    result = generate(causal_byte_bundle, *options)
    assert result.exit_code == 1
    assert f"4 answered, {len(BAD)} failed" in result.output
    answers = read(target)
    for _, name, message in BAD:
        assert answers[name]["end"] == "failed"
        assert message in answers[name]["error"]
    good = {name: answer for name, answer in answers.items() if answer["error"] is None}
    prompts.write_text("\n".join([*LINES, '{"id": "odd", "tokens": [1, 99]}']))
    assert "exists; go on with it by --resume" in generate(causal_byte_bundle, *options).output
    again = generate(causal_byte_bundle, *options, "--resume")
    assert again.exit_code == 0, again.output
    assert "1 answered, 0 failed, 4 were there already" in again.output
    assert read(target) == {**good, "odd": read(target)["odd"]}


def test_a_line_that_is_no_utf8_ends_alone(causal_byte_bundle: Bundle, prompts: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    prompts.write_bytes(b'\n \n{"id": "\xff", "tokens": [1]}\n' + LINES[1].encode())
    assert generate(causal_byte_bundle, "--prompts", prompts, "-o", target, "--slots", 2).exit_code == 1
    answers = read(target)
    assert answers.keys() == {"line 3", "short"}
    assert "'utf-8' codec can't decode" in answers["line 3"]["error"]


def test_a_line_that_was_left_half_is_answered_again(causal_byte_bundle: Bundle, prompts: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    options = ("--prompts", prompts, "-o", target, "--max-tokens", 4, "--slots", 3, "--threads", 1)
    assert generate(causal_byte_bundle, *options).exit_code == 0
    whole = read(target)
    target.write_bytes(target.read_bytes()[:-20])
    assert generate(causal_byte_bundle, *options, "--resume").exit_code == 0
    assert read(target) == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompts", "{prompts}"), "needs a file for the answers; give it with -o FILE"),
        (
            ("--prompts", "{prompts}", "-o", "{out}", "--save-state", "S"),
            "--prompts keeps no state, so that --save-state would be ignored",
        ),
        (("--tokens", "1", "--resume"), "there is one prompt, so that --resume would be ignored"),
        (("--tokens", "1", "--slots", "3"), "there is one prompt, so that --slots would be ignored"),
        (("--prompts", "{prompts}", "-o", "{out}", "--slots", "0"), "slots=0 is not usable"),
        (("--prompts", "{out}", "-o", "{out}"), "cannot be read"),
        (("--prompts", "{prompts}", "-o", "{prompts}", "--resume"), "holds the prompts; give another file"),
        (("--prompts", "{prompts}", "-o", "{folder}", "--resume"), "is a folder; give a file"),
        (("--prompts", "{empty}", "-o", "{out}"), "has no prompts; give a file with a JSON object a line"),
        (("--prompts", "{prompts}", "-o", "{others}", "--resume"), "holds no answers (text is missing)"),
        (("--prompts", "{prompts}", "-o", "{note}", "--resume"), "holds no answers (its last line is none)"),
    ],
)
def test_what_cannot_be_is_one_line(
    causal_byte_bundle: Bundle, prompts: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    contents = {"empty": "\n \n", "others": '{"id": "a", "tokens": [1]}\n', "note": "no line, and not ours"}
    places = {name: tmp_path / name for name in contents}
    for name, content in contents.items():
        places[name].write_text(content)
    places |= {"prompts": prompts, "out": tmp_path / "answers.jsonl", "folder": tmp_path}
    result = generate(causal_byte_bundle, *(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.output
    assert prompts.read_text() == "\n".join(LINES) + "\n\n"
    assert {name: places[name].read_text() for name in contents} == contents
    assert not places["out"].exists()
