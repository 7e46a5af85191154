"""``flash-export generate``: the text is the model's, states go on, and bad input is one line."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

import click
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.bundle.bundle import Bundle
from flash_export.cli.generate import TokenWriter
from flash_export.cli.main import main
from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = "Grüße, 世界"


def generate(path: Path, *arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["generate", str(path), *arguments], input=stdin)


def write(path: Path, *arguments: str, stdin: bytes | None = None) -> str:
    """Run the command, which must succeed, and return what it shows."""
    result = generate(path, *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Next: flash-export ")
    assert result.stderr.count("\n") == 1
    return result.stdout


def check_refused(result: Result, *fragments: str) -> None:
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr
    assert [fragment for fragment in fragments if fragment not in result.stderr] == [], result.stderr


def export(folder: Path, vocab_size: int, *, causal: bool = True, graphs: tuple[str, ...] = ()) -> Path:
    torch.manual_seed(0)
    model = FlashModel(FlashConfig(vocab_size, 12, 1, 18, chunk_size=8, qk_dim=10, causal=causal))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "checkpoint")
    options = ExportOptions(max_seq_len=512, graphs=graphs)
    return export_onnx(folder / "checkpoint", folder / "bundle", options=options).path


@pytest.fixture(scope="module")
def byte_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("bytes"), 256)


@pytest.fixture(scope="module")
def word_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without state graphs, whose tokens are no bytes."""
    return export(tmp_path_factory.mktemp("words"), 29, graphs=("forward",))


def write_greedily(path: Path, tokens: list[int], count: int) -> list[int]:
    model, text = Bundle.open(path).load_model(), list(tokens)
    for _ in range(count):
        text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    return text[len(tokens) :]


# --- what is written


@pytest.mark.parametrize("backend", ["ort-cpu", "eager"])
def test_text_is_the_model_s(byte_bundle: Path, backend: str) -> None:
    expected = write_greedily(byte_bundle, list(PROMPT.encode()), 30)
    text = write(byte_bundle, "--prompt", PROMPT, "--max-tokens", "30", "--backend", backend)
    assert text == bytes(expected).decode(errors="replace") + "\n"
    tokens = ",".join(map(str, PROMPT.encode()))
    ids = write(byte_bundle, "--tokens", tokens, "--max-tokens", "30", "--backend", backend)
    assert ids == ",".join(map(str, expected)) + "\n"


def test_prompt_comes_from_a_file_or_stdin_too(byte_bundle: Path, tmp_path: Path) -> None:
    expected = write(byte_bundle, "--prompt", PROMPT, "--max-tokens", "9")
    (tmp_path / "prompt.txt").write_bytes(PROMPT.encode())
    assert write(byte_bundle, "--prompt-file", str(tmp_path / "prompt.txt"), "--max-tokens", "9") == expected
    assert write(byte_bundle, "--prompt-file", "-", "--max-tokens", "9", stdin=PROMPT.encode()) == expected


def test_bytes_that_are_no_text_can_be_a_prompt(byte_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.bin").write_bytes(bytes([0xFF, 0x00, 0xC3]))
    text = write(byte_bundle, "--prompt-file", str(tmp_path / "prompt.bin"), "--max-tokens", "9")
    assert text == bytes(write_greedily(byte_bundle, [0xFF, 0x00, 0xC3], 9)).decode(errors="replace") + "\n"


def test_other_vocabularies_take_and_show_ids(word_bundle: Path) -> None:
    ids = write(word_bundle, "--tokens", "3,28,0", "--max-tokens", "6", "--backend", "eager")
    assert ids == ",".join(map(str, write_greedily(word_bundle, [3, 28, 0], 6))) + "\n"


def test_sampling_options_reach_the_sampler(byte_bundle: Path) -> None:
    drawn = ("--tokens", "1,2", "--max-tokens", "12", "--temperature", "1.5")
    assert write(byte_bundle, *drawn, "--seed", "4") == write(byte_bundle, *drawn, "--seed", "4")
    assert write(byte_bundle, *drawn, "--seed", "4") != write(byte_bundle, *drawn, "--seed", "5")
    greedy = write(byte_bundle, "--tokens", "1,2", "--max-tokens", "12")
    assert write(byte_bundle, *drawn, "--top-k", "1") == greedy
    assert write(byte_bundle, *drawn, "--top-p", "1e-9") == greedy
    penalised = write(byte_bundle, *drawn, "--top-k", "1", "--repetition-penalty", "1e9").split(",")
    assert len(set(penalised)) == 12


def test_stop_token_ends_the_text(byte_bundle: Path) -> None:
    expected = write_greedily(byte_bundle, [1, 2], 12)
    end = expected.index(expected[7]) + 1
    ids = write(byte_bundle, "--tokens", "1,2", "--max-tokens", "12", "--stop", f"{expected[7]}")
    assert ids == ",".join(map(str, expected[:end])) + "\n"


def test_saved_state_goes_on_as_if_the_text_were_read_again(byte_bundle: Path, tmp_path: Path) -> None:
    state = str(tmp_path / "a.state")
    assert write(byte_bundle, "--prompt", "The system prompt. ", "--max-tokens", "0", "--save-state", state) == ""
    expected = write(byte_bundle, "--prompt", "The system prompt. And a question?", "--max-tokens", "20")
    loaded = ("--load-state", state, "--prompt", "And a question?", "--max-tokens", "20")
    assert write(byte_bundle, *loaded, "--save-state", state) == expected
    written = write_greedily(byte_bundle, list(b"The system prompt. And a question?"), 20)
    third = write_greedily(byte_bundle, [*b"The system prompt. And a question?", *written, 65], 8)
    assert write(byte_bundle, "--load-state", state, "--tokens", "65", "--max-tokens", "8") == (
        ",".join(map(str, third)) + "\n"
    )


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_writer_shows_what_decoding_all_at_once_gives(content: bytes) -> None:
    @click.command()
    def show() -> None:
        writer = TokenWriter(as_text=True)
        for token in content:
            writer.write(0, token)
        writer.finish()

    expected = codecs.decode(content, "utf-8", "replace") + ("\n" if content else "")
    assert CliRunner().invoke(show).stdout_bytes == expected.encode()


# --- what is refused


def test_exactly_one_prompt_is_wanted(byte_bundle: Path) -> None:
    message = "Give one of --prompt, --prompt-file, --tokens and --prompts; see 'main generate --help'"
    check_refused(generate(byte_bundle), message)
    check_refused(generate(byte_bundle, "--prompt", "a", "--tokens", "1"), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", ""), "prompt 0 has no tokens; give at least one"),
        (("--tokens", "3,256"), "--tokens has 256, the model knows 0 to 255"),
        (("--tokens", "-1"), "--tokens has -1"),
        (("--tokens", "9" * 30), f"--tokens has {'9' * 30}"),
        (("--tokens", "a"), "'a' is not a list of whole numbers"),
        (("--prompt-file", "nowhere.txt"), "nowhere.txt"),
        (("--prompt", "a", "--temperature", "-1"), "temperature=-1.0 is not usable"),
        (("--prompt", "a", "--top-p", "0"), "top_p=0.0 is not usable"),
        (("--prompt", "a", "--max-tokens", "-1"), "max_tokens=-1 is not usable"),
        (("--prompt", "a", "--stop", "256"), "stop_tokens=(256,) are not usable; token ids are 0 to 255"),
        (
            ("--prompt", "a", "--backend", "tpu"),
            "unknown backend 'tpu'; use one of ort-cpu, ort-cuda, ort-tensorrt, ort-tensorrt-rtx, openvino, trt",
        ),
        (("--prompt", "a", "--backend", "trt"), "has no engine of prefill, extend, decode"),
        (
            ("--prompt", "a", "--load-state", "nowhere.state"),
            "nowhere.state cannot be read (No such file or directory)",
        ),
    ],
)
def test_bad_input_is_one_line(byte_bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    check_refused(generate(byte_bundle, *arguments), message)


def test_text_for_a_model_of_no_bytes_is_refused(word_bundle: Path) -> None:
    result = generate(word_bundle, "--prompt", "a", "--backend", "eager")
    check_refused(result, "the model has 29 tokens, not the 256 bytes", "give tokens")


def test_bundles_that_cannot_generate_say_why(word_bundle: Path, small_bundle: Bundle, tmp_path: Path) -> None:
    check_refused(
        generate(word_bundle, "--tokens", "1"), "has no graph prefill, extend, decode, but forward; export it"
    )
    check_refused(generate(small_bundle.path, "--tokens", "1"), "a model that is not causal")
    check_refused(generate(tmp_path, "--tokens", "1"), "is not a bundle")


def test_state_of_another_model_is_refused(byte_bundle: Path, word_bundle: Path, tmp_path: Path) -> None:
    state = str(tmp_path / "a.state")
    write(word_bundle, "--tokens", "1", "--max-tokens", "1", "--backend", "eager", "--save-state", state)
    check_refused(generate(byte_bundle, "--prompt", "a", "--load-state", state), "the state belongs to another model")


def test_state_of_another_backend_is_refused(byte_bundle: Path, tmp_path: Path) -> None:
    state = str(tmp_path / "a.state")
    write(byte_bundle, "--tokens", "1", "--max-tokens", "1", "--backend", "eager", "--save-state", state)
    check_refused(generate(byte_bundle, "--prompt", "a", "--load-state", state), "make it with the same backend")


def test_state_that_cannot_be_written_is_one_line(byte_bundle: Path, tmp_path: Path) -> None:
    result = generate(byte_bundle, "--prompt", "a", "--max-tokens", "0", "--save-state", str(tmp_path))
    check_refused(result, "cannot write")
