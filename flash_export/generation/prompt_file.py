"""Answering a file of prompts through the batcher: answers are written as they finish.

What was answered is in the file of answers, so that an interrupted run is taken up again.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flash_export.errors import BundleError, FlashExportError, InputError, describe_reason
from flash_export.files import write_file
from flash_export.generation.batcher import Batcher
from flash_export.generation.prompt_records import Answer, Answers, PromptLine, read_answers, read_prompt_lines
from flash_export.reading import parse_json
from flash_export.strict_json import format_json_line
from flash_export.typed_json import build

if TYPE_CHECKING:
    from io import BufferedWriter
    from pathlib import Path

    from flash_export.generation.batcher import Event
    from flash_export.generation.generate import Generator
    from flash_export.generation.sampling import SamplingOptions
    from flash_export.progress import ProgressCallback


class PromptFile:
    """A file of prompts and the file of its answers."""

    def __init__(self, source: Path, target: Path, *, resume: bool = False) -> None:
        """Read the prompts, and what was answered already; nothing is written yet.

        Raises:
            InputError: There are no prompts, they are to be written over, there are answers that are not to be gone on
                with, or they are none.
        """
        self.target, self._lines = target, read_prompt_lines(source)
        self._found: tuple[Answer, ...] = ()
        if target.exists():
            if os.path.samefile(source, target):
                raise InputError(f"{target} holds the prompts; give another file for the answers")
            if target.is_dir():
                raise InputError(f"{target} is a folder; give a file for the answers")
            if not resume:
                raise InputError(f"{target} exists; go on with it by --resume, or give another file")
            self._found = read_answers(target)

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
        kept = [answer for answer in self._found if answer.error is None]  # what failed is tried again
        write_file(self.target, "".join(map(format_json_line, kept)).encode())
        try:
            with self.target.open("ab") as stream:
                run = _Run(batcher, generator.vocab_size, options, stream, {answer.id for answer in kept})
                return run.answer(self._lines, progress)
        except OSError as error:
            raise BundleError(
                f"{self.target} cannot be written ({describe_reason(error)}); go on with --resume"
            ) from error


@dataclass(eq=False)
class _Open:
    """A prompt that is being answered: what was written, and when the last of it came."""

    line: PromptLine
    prompt_tokens: int
    written: list[int] = field(default_factory=list)
    last_s: float | None = None


class _Run:
    """The answers of one run."""

    def __init__(
        self, batcher: Batcher, vocab_size: int, options: SamplingOptions, stream: BufferedWriter, kept: set[str]
    ) -> None:
        self._batcher, self._vocab_size, self._options = batcher, vocab_size, options
        self._stream, self._kept = stream, kept
        self._open: dict[str, _Open] = {}
        self._pause_s = 0.0
        self._answered = self._failed = self._tokens = 0

    def answer(self, lines: dict[int, bytes], progress: ProgressCallback | None) -> Answers:
        """Answer all lines, given by their numbers."""
        start, asked = time.monotonic(), set[str]()
        for number, content in lines.items():
            self._ask(number, content, asked)
        while not self._batcher.is_idle:
            if progress:
                progress(len(lines) - len(self._open), len(lines), f"{self._tokens:,} tokens")
            for event in self._batcher.step():
                self._note(event)
        if progress:
            progress(len(lines), len(lines), "done")
        return Answers(
            self._answered,
            self._failed,
            len(asked & self._kept),
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
            self._write(Answer.refuse(name, str(error)))
        except ValueError as error:
            self._write(Answer.refuse(name, f"{error}; mend the line, and run it again with --resume"))
        else:
            self._open[name] = _Open(line, request.prompt.size)

    def _note(self, event: Event) -> None:
        """Keep a token, or write an answer that is complete."""
        if event.token is None:
            self._finish(event, self._open.pop(event.id))
            return
        one, now = self._open[event.id], time.monotonic()
        if one.last_s is not None:
            self._pause_s = max(self._pause_s, now - one.last_s)
        one.written.append(event.token)
        one.last_s = now
        self._tokens += 1

    def _finish(self, event: Event, one: _Open) -> None:
        text = None if one.line.prompt is None else bytes(one.written).decode("utf-8", "replace")
        tokens = None if one.line.tokens is None else tuple(one.written)
        assert event.end is not None  # it has a token or an end
        self._write(Answer(event.id, text, tokens, one.prompt_tokens, event.end, event.error))

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
