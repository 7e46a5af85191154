"""``flash-export generate``: let a causal model of a bundle write on, and show the text as it comes."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from flash_export.cli.options import IntegerList, output_options, refuse_ignored
from flash_export.errors import InputError
from flash_export.formatting import format_bytes
from flash_export.strict_json import format_json

if TYPE_CHECKING:
    import numpy as np

    from flash_export.cli.output import Output
    from flash_export.generation.prompt_records import Answers


# Parameters that are of no meaning with many prompts, and with one.
_ONE_ALONE, _MANY_ALONE = ("save_state", "load_state"), ("target", "slots", "resume")


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        text: As text, with a replacement character for bytes that are none; None where token ids were asked for.
        tokens: As token ids; a stop token is the last of them.
        prompt_tokens: Length of the prompt.
        position: Length of all the text up to here, that of a loaded state included.
        backend: What ran the model.
    """

    text: str | None
    tokens: tuple[int, ...]
    prompt_tokens: int
    position: int
    backend: str

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json(self)


class TokenWriter:
    """Shows tokens one by one: the text of bytes, or token ids separated by commas."""

    def __init__(self, *, as_text: bool, to_stderr: bool = False) -> None:
        """Start at the beginning of a line."""
        self._to_stderr = to_stderr
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if as_text else None
        self._is_empty = True

    def write(self, row: int, token: int) -> None:
        """Show a token of the one row; a character of several bytes is shown with its last byte."""
        if self._decoder:
            click.echo(self._decoder.decode(bytes([token])), nl=False, err=self._to_stderr)
        else:
            click.echo(token if self._is_empty else f",{token}", nl=False, err=self._to_stderr)
        self._is_empty = False

    def finish(self) -> None:
        """Show what is left of a character, and end the line."""
        if not self._is_empty:
            click.echo(self._decoder.decode(b"", final=True) if self._decoder else "", err=self._to_stderr)


@click.command("generate", short_help="Let a causal model write, token by token.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", metavar="TEXT", help="Text to go on from, for models whose tokens are the 256 bytes.")
@click.option("--prompt-file", type=click.File("rb"), help="File with that text; - for stdin.")
@click.option("--tokens", type=IntegerList(), help="Token ids to go on from, for models of any vocabulary.")
@click.option("--max-tokens", type=int, default=200, show_default=True, help="Most tokens to write.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the most likely token.")
@click.option("--top-k", type=int, default=0, help="Draw from this many most likely tokens.  [default: from all]")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Draw from the likeliest with this share.")
@click.option(
    "--repetition-penalty",
    type=float,
    default=1.0,
    show_default=True,
    help="Above 1, what the text has already becomes less likely.",
)
@click.option(
    "--stop", type=IntegerList(), default=(), help="Token ids that end the text; 10 is a line break in bytes."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same text.")
@click.option(
    "--backend",
    metavar="NAME",
    default="ort-cpu",
    show_default=True,
    help="ort-cpu, ort-cuda, ort-tensorrt, ort-tensorrt-rtx, openvino, trt, or eager: the PyTorch model, which reads "
    "all again for every token.",
)
@click.option("--threads", type=int, help="CPU threads of one operator.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Many prompts at once: a JSON object a line.")
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), help="Where their answers go, as they finish."
)
@click.option(
    "--slots", type=int, help="Most of them that are written at a time.  [default: 16, if the graphs take so many]"
)
@click.option("--resume", is_flag=True, help="Leave what is answered, and answer the rest.")
@click.option("--save-state", type=click.Path(path_type=Path), help="Write the state after the text to this file.")
@click.option("--load-state", type=click.Path(path_type=Path), help="Go on from a state in place of an empty text.")
@output_options(verdict=bool)
@click.pass_context
def generate_command(
    ctx: click.Context,
    output: Output,
    bundle: Path,
    prompt: str | None,
    prompt_file: BinaryIO | None,
    tokens: tuple[int, ...] | None,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    stop: tuple[int, ...],
    seed: int,
    backend: str,
    threads: int | None,
    prompts: Path | None,
    target: Path | None,
    slots: int,
    resume: bool,
    save_state: Path | None,
    load_state: Path | None,
) -> Continuation | Answers:
    """Go on from a prompt with the causal model of BUNDLE, and show the new text as it comes.

    Models whose tokens are the 256 bytes read and write UTF-8; given --tokens, any model writes token ids. A saved
    state stands for all the text before it: load it, and only the new prompt has to be read.

    A file of --prompts has a line such as {"id": "a", "prompt": "def "} for each; "tokens" in place of "prompt", and
    "max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "stop_tokens" and "seed" in place of the
    options here. Answers are lines with the same id; one that cannot be given says
    why, and the exit code is 1.

    \b
    Examples:
      flash-export generate BUNDLE --prompt "def main("
      flash-export generate BUNDLE --prompt-file story.txt --temperature 0.8
      flash-export generate BUNDLE --tokens 17,4,256 --max-tokens 20 --stop 0
      flash-export generate BUNDLE --prompt-file a --max-tokens 0 --save-state S
      flash-export generate BUNDLE --load-state S --prompt "In short: "
      flash-export generate BUNDLE --prompts P.jsonl -o OUT.jsonl --slots 32
    """
    if [prompt, prompt_file, tokens, prompts].count(None) != 3:
        raise click.UsageError("Give one of --prompt, --prompt-file, --tokens and --prompts", ctx)
    if prompts:
        refuse_ignored(_ONE_ALONE, "--prompts keeps no state")
    else:
        refuse_ignored(_MANY_ALONE, "there is one prompt")
    if prompts and not target:
        raise click.UsageError("--prompts needs a file for the answers; give it with -o FILE", ctx)

    from flash_export.bundle.bundle import Bundle
    from flash_export.generation.generate import Generator
    from flash_export.generation.prompt_file import PromptFile
    from flash_export.generation.prompt_records import encode_text
    from flash_export.generation.sampling import SamplingOptions
    from flash_export.generation.state import State

    options = SamplingOptions(temperature, top_k, top_p, repetition_penalty, stop, max_tokens, seed)
    opened = Bundle.open(bundle)
    state = State.load(load_state, opened) if load_state else None
    if prompts and target:
        file = PromptFile(prompts, target, resume=resume)
        with (
            Generator.open(opened, backend, threads=threads) as generator,
            output.show_progress("Generating") as progress,
        ):
            answers = file.answer(generator, options, slots, progress)
        output.echo(_describe_answers(answers, target))
        return answers
    with Generator.open(opened, backend, threads=threads) as generator:
        if tokens is None:
            text = prompt_file.read() if prompt_file else str(prompt).encode("utf-8", "surrogateescape")
            input_ids = encode_text(text, generator.vocab_size)
        else:
            input_ids = _encode_tokens(tokens, generator.vocab_size)
        writer = TokenWriter(as_text=tokens is None, to_stderr=output.stdout_is_taken)
        on_token = None if output.quiet and output.stdout_is_taken else writer.write
        try:
            result = generator.generate([input_ids], options, state, on_token=on_token)
        finally:
            writer.finish()
    if save_state:
        result.state.save(save_state)
        output.suggest_next("generate", bundle, "--load-state", save_state, "--prompt", "TEXT")
    else:
        output.suggest_next("validate", bundle, *(() if backend == "eager" else ("--backend", f"stream:{backend}")))
    written = tuple(map(int, result.tokens[0]))
    return Continuation(
        text=bytes(written).decode("utf-8", "replace") if tokens is None else None,
        tokens=written,
        prompt_tokens=int(input_ids.size),
        position=int(result.state.position[0]),
        backend=backend,
    )


def _describe_answers(answers: Answers, target: Path) -> str:
    lines = [
        f"{answers.answered} answered, {answers.failed} failed, {answers.kept} were there already: {target}",
        f"{answers.tokens:,} tokens in {answers.seconds:.1f} s, prompts included; the longest pause of a running "
        f"sequence was {answers.longest_pause_ms:.0f} ms",
        f"The states of {answers.slots} slots take {format_bytes(answers.state_bytes)}",
    ]
    return "\n".join(lines)


def _encode_tokens(tokens: tuple[int, ...], vocab_size: int) -> np.ndarray:
    import numpy as np

    if odd := [token for token in tokens if not 0 <= token < vocab_size]:
        raise InputError(f"--tokens has {odd[0]}, the model knows 0 to {vocab_size - 1}; use ids of its own tokenizer")
    return np.array(tokens, np.int64)
