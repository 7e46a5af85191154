"""What to say of a name that is not known: which ones are, and which of them was probably meant."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MIN_PART = 3  # letters that a part of a name has to have, to stand for it


def suggest(name: object, known: Iterable[str]) -> str:
    """Return a remark with the known name that a mistyped one is nearest to; empty if none is near.

    Case does not count, nor do the dashes of an option. A name that begins with the word is meant before one that looks
    like it.

    >>> suggest("FP-16", ("fp32", "fp16", "bf16"))
    ' (did you mean fp16?)'
    >>> suggest("rtx", ("auto", "tensorrt", "tensorrt-rtx"))
    ' (did you mean tensorrt-rtx?)'
    >>> suggest("stop", ("top_p", "stop_tokens"))
    ' (did you mean stop_tokens?)'
    >>> suggest("trt", ("ort-cpu", "eager"))
    ''
    """
    by_word = {choice.lower().lstrip("-"): choice for choice in known}
    word = str(name).lower().lstrip("-")
    is_part = len(word) >= MIN_PART
    matches = [known_word for known_word in by_word if is_part and known_word.startswith(word)]
    matches = matches or get_close_matches(word, by_word, n=1)
    matches = matches or [known_word for known_word in by_word if is_part and word in known_word]
    return f" (did you mean {by_word[matches[0]]}?)" if matches else ""


def list_known(name: object, known: Iterable[str]) -> str:
    """List the known names, and the one that was probably meant.

    >>> list_known("quik", ("quick", "full"))
    'quick, full (did you mean quick?)'
    """
    names = tuple(known)
    return ", ".join(names) + suggest(name, names)


def describe_unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Return the message for a name that is not known: what was got, and what to use.

    >>> describe_unknown("scheme", "int3", ("int8", "int4", "fp8"))
    "unknown scheme 'int3'; use one of int8, int4, fp8 (did you mean int8?)"
    """
    return f"unknown {kind} {name!r}; use one of {list_known(name, known)}"
