"""What a study takes from outside: texts and checkpoints are what it says they are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from flash_export.cli.main import main
from flash_export.study.comparing import plan_study
from flash_export.study.config import ModelEntry, StudyConfig, Training
from flash_export.study.objective import measure_bits_per_byte
from flash_export.study.request import Request
from flash_export.study.schedule import prepare_folder
from flash_export.study.systems import SYSTEMS, Size, build_config, describe_difference
from flash_export.study.tasks import Task
from flash_export.study.training import build_model

if TYPE_CHECKING:
    from pathlib import Path

SIZE = Size(dim=16, depth=1, num_heads=2, qk_dim=8, chunk_size=16, max_positions=64)
CONFIG = StudyConfig(
    models=(ModelEntry("flash", checkpoint="given"),),
    size=SIZE,
    training=Training(tokens=64, batch_tokens=64, lengths={"32": 1.0}, text="text.txt", heldout_bytes=4096),
    max_seq_len=64,
    quality_lens=(32,),
    latency_lens=(32,),
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a text, as the config names it."""
    (tmp_path / "text.txt").write_text("".join(f"line {index} of a text\n" for index in range(20_000)))
    return tmp_path


def save(system: str, folder: Path) -> Any:
    causal = not SYSTEMS[system].is_bidirectional_only
    model = build_model(build_config(system, SIZE, vocab_size=256, causal=causal), 0).eval()
    model.save_pretrained(folder)
    return model


def run(source: Path, task: Task) -> dict[str, Any]:
    return Request(CONFIG, str(source / "study"), str(source), task).run()


def list_keys(config: StudyConfig, source: Path) -> dict[str, str]:
    return {planned.task.kind: planned.key for planned in plan_study(config, source)}


def test_exported_model_is_scored_on_the_text_that_the_study_holds_out(source: Path) -> None:
    model = save("flash", source / "given")  # it has no held-out text of its own
    assert run(source, Task("export", "flash-causal-0"))["value"]["tokens_seen"] is None
    found = run(source, Task("score", "flash-causal-0", "ort-cpu"))["value"]
    end = (source / "text.txt").read_bytes()
    heldout = np.frombuffer(end[int(0.97 * len(end)) :][:4096], dtype=np.uint8)
    bits = measure_bits_per_byte(model, heldout, "causal", 32)
    assert found["bits_per_byte"]["32"] == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "holds a list"),
        ('{"plan": 3}', "plan is a whole number, wanted"),
        ('{"tokens_seen": "many"}', "tokens_seen is text, wanted a whole number"),
    ],
)
def test_training_record_that_is_none_is_refused(source: Path, text: str, message: str) -> None:
    save("flash", source / "given")
    (source / "given" / "training.json").write_text(text)
    error = run(source, Task("export", "flash-causal-0"))["error"]
    assert message in error
    assert error.endswith("train again, or remove it")


def test_checkpoint_of_another_system_is_refused(source: Path) -> None:
    save("flash-local", source / "given")
    error = run(source, Task("export", "flash-causal-0"))["error"]
    assert error.endswith("given is no causal flash: branches is 'local', wanted 'both'; correct models")
    assert not (source / "study").exists()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_told_from_all_others(name: str) -> None:
    causal = not SYSTEMS[name].is_bidirectional_only
    config = build_config(name, SIZE, vocab_size=256, causal=causal)
    same = [other for other in SYSTEMS if describe_difference(config, other, causal=causal) is None]
    assert same == [name]
    if causal:
        assert describe_difference(config, name, causal=False) == "causal is True, wanted False"


def test_another_text_of_the_same_name_is_another_study(source: Path) -> None:
    save("flash", source / "given")
    trained = replace(CONFIG, models=(ModelEntry("flash"),))
    before, given = list_keys(trained, source), list_keys(CONFIG, source)
    assert list_keys(trained, source) == before
    text = source / "text.txt"
    text.write_text(text.read_text().replace("line 7 ", "line seven "))
    assert not set(list_keys(trained, source).values()) & set(before.values())
    assert {kind for kind, key in list_keys(CONFIG, source).items() if key != given[kind]} == {"score"}


def test_config_of_a_study_survives_json() -> None:
    from dataclasses import asdict

    from flash_export.typed_json import build

    assert build(json.loads(json.dumps(asdict(CONFIG))), StudyConfig) == CONFIG


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"models": [{"system": "flsh"}]}, "unknown system 'flsh'"),
        ({"models": [{"system": "linformer"}]}, "system linformer has no causal form"),
        ({"models": [{"system": "flash", "checkpoint": "nowhere"}]}, "nowhere"),
        ({"training": {"text": "none.txt"}}, "none.txt"),
        ({"models": [{"system": "transformer"}], "size": {"dim": 100, "num_heads": 3}}, "dim=100 cannot be shared"),
        ({"modles": []}, "unknown field 'modles'"),
        ({"backends": ["orc-cpu"]}, "unknown backend 'orc-cpu'"),
    ],
)
def test_study_that_cannot_be_is_one_line_and_leaves_nothing(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "study.json").write_text(json.dumps(config))
    result = CliRunner().invoke(main, ["study", str(tmp_path / "study.json"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


@pytest.mark.parametrize("command", ["study", "tune"])
def test_folder_of_something_else_is_left_alone(command: str, source: Path) -> None:
    save("flash", source / "given")
    (source / "study.json").write_text("{}")
    arguments = {"study": source / "study.json", "tune": source / "given"}
    for target, message in ((source / "given", "holds other files"), (source / "text.txt", "is a file")):
        before = sorted(path.name for path in source.rglob("*"))
        result = CliRunner().invoke(main, [command, str(arguments[command]), "-o", str(target)])
        assert result.exit_code == 2
        assert message in result.stderr
        assert sorted(path.name for path in source.rglob("*")) == before


def test_folder_of_the_same_kind_is_gone_on_with(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "new", CONFIG)
    (tmp_path / "new" / "results").mkdir()
    prepare_folder(tmp_path / "new", CONFIG)
    assert json.loads((tmp_path / "new" / "study.json").read_text())["max_seq_len"] == 64
