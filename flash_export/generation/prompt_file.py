"""Answering a file of prompts, one JSON object a line, through the batcher: answers are written as they finish.

A line has ``id`` and ``prompt`` (text, for models of bytes) or ``tokens``, and may have the fields of
:class:`SamplingOptions`. What was answered is in the file of answers, so that an interrupted run is taken up again.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.errors import BundleError, FlashExportError, InputError, describe_reason
from flash_export.files import write_file
from flash_export.generation.batcher import Batcher, Request
from flash_export.reading import parse_json, read_bytes
from flash_export.strict_json import format_json, format_json_line
from flash_export.typed_json import build

if TYPE_CHECKING:
    from io import BufferedWriter
    from pathlib import Path

    from flash_export.generation.batcher import Event
    from flash_export.generation.generate import Generator
    from flash_export.generation.sampling import SamplingOptions
    from flash_export.progress import ProgressCallback

BYTE_VOCAB_SIZE = 256
MAX_FILE_BYTES = 1 << 30
_MEND = "mend the line, and run it again with --resume"


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
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    prompt_tokens: int = 0
    end: str = "failed"
    error: str | None = None


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


class PromptFile:
    """A file of prompts and the file of its answers."""

    def __init__(self, source: Path, target: Path, *, resume: bool = False) -> None:
        """Read the prompts, and what was answered already.

        Raises:
            InputError: The prompts cannot be read, there are answers and they are not to be gone on with, or they are
                none.
        """
        self.source, self.target = source, target
        content = read_bytes(source, InputError, "give a file with a JSON object a line", max_bytes=MAX_FILE_BYTES)
        self._lines = {number: line for number, line in enumerate(content.split(b"\n"), 1) if line.strip()}
        self._kept: dict[str, Answer] = {}
        if target.exists():
            if not resume:
                raise InputError(f"{target} exists; go on with it by --resume, or give another file")
            self._kept = _read_answers(target)

    def answer(
        self,
        generator: Generator,
        options: SamplingOptions,
        slots: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> Answers:
        """Answer what was not answered yet, and add each answer to the file as it finishes.

        Args:
            generator: An open generator of a causal model.
            options: What a line does not say.
            slots: Most sequences that are written at a time; None: see :class:`Batcher`.
            progress: Called with the number of lines that are through.

        Raises:
            BundleError: The model cannot keep many states, or the answers cannot be written.
            ConfigError: ``slots`` is out of range.
        """
        batcher = Batcher(generator, slots)
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with self.target.open("ab") as stream:
                return _Run(batcher, generator.vocab_size, options, stream, self._kept, progress).answer(self._lines)
        except OSError as error:
            raise BundleError(
                f"{self.target} cannot be written ({describe_reason(error)}); go on with --resume"
            ) from error


class _Run:
    """The answers of one run."""

    def __init__(
        self,
        batcher: Batcher,
        vocab_size: int,
        options: SamplingOptions,
        stream: BufferedWriter,
        kept: dict[str, Answer],
        progress: ProgressCallback | None,
    ) -> None:
        self._batcher, self._vocab_size, self._options = batcher, vocab_size, options
        self._stream, self._kept, self._progress = stream, kept, progress
        self._lines: dict[str, PromptLine] = {}
        self._sizes: dict[str, int] = {}
        self._written: dict[str, list[int]] = {}
        self._last: dict[str, float] = {}
        self._pause_s = 0.0
        self._answered = self._failed = self._tokens = 0

    def answer(self, lines: dict[int, bytes]) -> Answers:
        """Answer all lines, given by their numbers."""
        start, asked = time.monotonic(), set[str]()
        for number, content in lines.items():
            self._ask(number, content, asked)
        done = len(lines) - len(self._written)
        total = len(lines)
        while not self._batcher.is_idle:
            if self._progress:
                self._progress(done, total, f"{self._tokens:,} tokens")
            for event in self._batcher.step():
                done += self._note(event)
        if self._progress:
            self._progress(total, total, "done")
        return Answers(
            self._answered,
            self._failed,
            len(asked & self._kept.keys()),
            self._tokens,
            round(time.monotonic() - start, 3),
            round(1e3 * self._pause_s, 1),
            self._batcher.num_bytes,
            self._batcher.num_slots,
        )

    def _ask(self, number: int, content: bytes, asked: set[str]) -> None:
        """Submit a line, or say what is wrong with it."""
        name = f"line {number}"
        try:
            values = parse_json(content.decode("utf-8-sig"))
            if isinstance(values, dict) and isinstance(values.get("id"), str) and values["id"] not in asked:
                name = values["id"]
            line = build(values, PromptLine)
            _check_new(line, asked)
            asked.add(name)
            if name in self._kept:
                return
            request = line.make_request(self._options, self._vocab_size)
            self._batcher.submit(request)
        except FlashExportError as error:
            self._write(Answer(name, error=str(error)))
        except ValueError as error:
            self._write(Answer(name, error=f"{error}; {_MEND}"))
        else:
            self._lines[name], self._sizes[name], self._written[name] = line, request.prompt.size, []

    def _note(self, event: Event) -> bool:
        """Keep a token, or write an answer that is complete; tell whether it was."""
        now = time.monotonic()
        if event.token is not None:
            self._written[event.id].append(event.token)
            self._tokens += 1
            self._pause_s = max(self._pause_s, now - self._last.get(event.id, now))
            self._last[event.id] = now
            return False
        line, written = self._lines[event.id], self._written.pop(event.id)
        text = None if line.prompt is None else bytes(written).decode("utf-8", "replace")
        tokens = None if line.tokens is None else tuple(written)
        self._write(Answer(event.id, text, tokens, self._sizes[event.id], event.end or "", event.error))
        return True

    def _write(self, answer: Answer) -> None:
        self._stream.write(format_json_line(answer).encode())
        self._stream.flush()
        if answer.error is None:
            self._answered += 1
        else:
            self._failed += 1


def _check_new(line: PromptLine, asked: set[str]) -> None:
    if line.id in asked:
        raise ValueError(f"the id {line.id!r} is that of an earlier line")


def _read_answers(path: Path) -> dict[str, Answer]:
    """Return the answers in a file by id, and take out those that failed, and a line that a killed run left half.

    Raises:
        InputError: The file holds something else.
    """
    cure = "give another file for the answers"
    content = read_bytes(path, InputError, cure, max_bytes=MAX_FILE_BYTES)
    whole = content[: content.rfind(b"\n") + 1]
    try:
        answers = [build(parse_json(line), Answer) for line in whole.decode().split("\n") if line.strip()]
    except ValueError as error:
        raise InputError(f"{path} holds no answers ({describe_reason(error)}); {cure}") from error
    kept = [answer for answer in answers if answer.error is None]
    if len(kept) < len(answers) or len(whole) < len(content):
        write_file(path, "".join(map(format_json_line, kept)).encode())
    return {answer.id: answer for answer in kept}
