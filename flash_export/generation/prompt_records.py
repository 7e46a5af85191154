"""The lines of a file of prompts and of a file of answers, one JSON object each.

A prompt has ``id`` and ``prompt`` (text, for models of bytes) or ``tokens``, and may have the fields of
:class:`SamplingOptions`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.errors import InputError, describe_reason
from flash_export.generation.batcher import End, Request
from flash_export.reading import parse_json, read_bytes
from flash_export.strict_json import format_json
from flash_export.typed_json import build

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.generation.sampling import SamplingOptions

BYTE_VOCAB_SIZE = 256
MAX_FILE_BYTES = 1 << 30
_BEGINNING = b'{"id": "'  # of an answer, as it is written


@dataclass(frozen=True)
class PromptLine:
    """A line of a file of prompts.

    Attributes:
        id: What the answer is called.
        prompt: Text to go on from.
        tokens: Token ids to go on from, in place of text.
        max_tokens: As those that follow, see :class:`SamplingOptions`; None: what the command line says.
        temperature: See there.
        top_k: See there.
        top_p: See there.
        repetition_penalty: See there.
        stop_tokens: See there.
        seed: See there.
    """

    id: str
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    stop_tokens: tuple[int, ...] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check that there is one thing to go on from."""
        if (self.prompt is None) == (self.tokens is None):
            raise ValueError("it has prompt and tokens, or neither, wanted one of them")

    def make_request(self, defaults: SamplingOptions, vocab_size: int) -> Request:
        """Return what is to be written.

        Raises:
            InputError: The text cannot be read by a model of this vocabulary.
            ConfigError: An option is out of range.
        """
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(defaults)}
        chosen = dataclasses.replace(defaults, **{name: value for name, value in options.items() if value is not None})
        if self.prompt is None:
            return Request(self.id, np.array(self.tokens, np.int64), chosen)
        return Request(self.id, encode_text(self.prompt.encode("utf-8", "surrogateescape"), vocab_size), chosen)


@dataclass(frozen=True)
class Answer:
    """A line of a file of answers.

    Attributes:
        id: Of the prompt; of a line that has none, its number.
        text: What was written, with a replacement character for bytes that are no text; None where the prompt was
            tokens.
        tokens: The same as token ids, where the prompt was tokens.
        prompt_tokens: Length of the prompt.
        end: Why it ended: ``stop`` after a stop token, ``length`` after as many tokens as were wanted, ``failed``.
        error: What failed.
    """

    id: str
    text: str | None
    tokens: tuple[int, ...] | None
    prompt_tokens: int
    end: End
    error: str | None

    @classmethod
    def refuse(cls, name: str, error: str) -> Answer:
        """Return the answer to a line that nothing was written for."""
        return cls(name, None, None, 0, "failed", error)


@dataclass(frozen=True)
class Answers:
    """What became of a file of prompts; true if every line has an answer without an error.

    Attributes:
        answered: Prompts that were answered in this run.
        failed: Lines that ended in an error.
        kept: Answers that were there already.
        tokens: Tokens that were written in this run.
        seconds: Time that it took, prompts included.
        longest_pause_ms: The longest time that a running sequence waited for its next token.
        state_bytes: Size of the states of all slots.
        slots: Most sequences that were written at a time.
    """

    answered: int
    failed: int
    kept: int
    tokens: int
    seconds: float
    longest_pause_ms: float
    state_bytes: int
    slots: int

    def __bool__(self) -> bool:
        """Tell whether every line has an answer."""
        return self.failed == 0

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json(self)


def encode_text(text: bytes, vocab_size: int) -> np.ndarray:
    """Return the tokens of a text, int64, for a model whose tokens are the 256 bytes.

    Raises:
        InputError: Its tokens are others.
    """
    if vocab_size != BYTE_VOCAB_SIZE:
        raise InputError(
            f"the model has {vocab_size} tokens, not the 256 bytes, and a bundle holds no tokenizer; "
            "encode the text with the model's own and give tokens"
        )
    return np.frombuffer(text, np.uint8).astype(np.int64)


def read_prompt_lines(path: Path) -> dict[int, bytes]:
    """Return the lines of a file of prompts that hold something, by their numbers.

    Raises:
        InputError: It cannot be read, or has none.
    """
    cure = "give a file with a JSON object a line"
    content = read_bytes(path, InputError, cure, max_bytes=MAX_FILE_BYTES)
    lines = {number: line for number, line in enumerate(content.split(b"\n"), 1) if line.strip()}
    if not lines:
        raise InputError(f"{path} has no prompts; {cure}")
    return lines


def read_answers(path: Path) -> tuple[Answer, ...]:
    """Return the whole answers in a file; a killed run may have left the beginning of one more.

    Raises:
        InputError: The file holds something else.
    """
    cure = "give another file for the answers"
    content = read_bytes(path, InputError, cure, max_bytes=MAX_FILE_BYTES)
    whole, rest = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
    if rest[: len(_BEGINNING)] != _BEGINNING[: len(rest)]:
        raise InputError(f"{path} holds no answers (its last line is none); {cure}")
    try:
        return tuple(build(parse_json(line), Answer) for line in whole.decode().split("\n") if line.strip())
    except ValueError as error:
        raise InputError(f"{path} holds no answers ({describe_reason(error)}); {cure}") from error
