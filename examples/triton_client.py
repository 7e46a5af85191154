"""Writes text with a model that Triton serves, in either form that 'flash-export triton' gives a causal model.

    python examples/triton_client.py byte-causal-generate --prompt 'def '
    python examples/triton_client.py byte-causal-sequence --prompt 'def '

The form ``generate`` takes the prompt and streams the new tokens. The form ``sequence`` keeps the state alone: this
client cuts the prompt into pieces, and chooses the tokens, here the most likely ones. Tokens are bytes in both, as in
the bundled model; a model of another vocabulary needs its tokenizer in their place.
"""

from __future__ import annotations

import argparse
import queue
import random
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as triton

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTH_PARAMETER = "flash_export.chunk_size"  # the most tokens of a piece
REPLY_TIMEOUT_S = 60.0


def make_input(name: str, values: np.ndarray) -> Any:
    """Return an int64 input of a request."""
    tensor = triton.InferInput(name, list(values.shape), "INT64")
    tensor.set_data_from_numpy(values)
    return tensor


def stream_tokens(client: Any, model: str, prompt: np.ndarray, **parameters: float | str) -> Iterator[int]:
    """Yield the tokens that a model of the form ``generate`` writes, as they come.

    Args:
        client: Connected to the server, and used for nothing else meanwhile.
        model: Name of the model.
        prompt: Token ids, int64.
        parameters: Fields of flash_export's SamplingOptions, and ``tokens_per_reply``; stop tokens as text, ``10,13``.
    """
    replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: replies.put((result, error)))
    try:
        client.async_stream_infer(model, [make_input("input_ids", prompt)], parameters=parameters)
        end = 0
        while not end:
            result, error = replies.get(timeout=REPLY_TIMEOUT_S)
            if error is not None:
                raise error
            yield from result.as_numpy("tokens").tolist()
            (end,) = result.as_numpy("end")
    finally:
        client.stop_stream(cancel_requests=True)  # without it, a stream that failed waits for ever


class Sequence:
    """A text whose state the server keeps; a model of the form ``sequence``."""

    def __init__(self, client: Any, model: str) -> None:
        """Begin a text, under an id that nobody else is likely to have."""
        self._client, self._model = client, model
        self._id, self._has_begun = random.SystemRandom().getrandbits(63) + 1, False
        config = client.get_model_config(model).config
        self._piece_len = int(config.parameters[LENGTH_PARAMETER].string_value)

    def read(self, tokens: np.ndarray, *, is_last: bool = False) -> np.ndarray:
        """Read tokens on, and return the logits of the one that follows.

        Args:
            tokens: Token ids, int64, at least one.
            is_last: Whether the server may forget the text.
        """
        pieces = np.split(tokens, range(self._piece_len, tokens.size, self._piece_len))
        for index, piece in enumerate(pieces):
            result = self._client.infer(
                self._model,
                [make_input("input_ids", piece[None]), make_input("lengths", np.array([[piece.size]]))],
                sequence_id=self._id,
                sequence_start=not self._has_begun,
                sequence_end=is_last and index == len(pieces) - 1,
            )
            self._has_begun = True
        logits: np.ndarray = result.as_numpy("logits")[0, -1]
        return logits

    def write(self, prompt: np.ndarray, max_tokens: int) -> Iterator[int]:
        """Read a prompt and yield the most likely tokens."""
        logits = self.read(prompt)
        for index in range(max_tokens):
            token = int(logits.argmax())
            yield token
            logits = self.read(np.array([token]), is_last=index == max_tokens - 1)


def main() -> None:
    """Write the text as it comes."""
    parser = argparse.ArgumentParser(description="Write text with a model that Triton serves.")
    parser.add_argument("model", help="of the form generate or sequence")
    parser.add_argument("--url", default="localhost:8001", help="where the server takes gRPC")
    parser.add_argument("--prompt", default="def ")
    parser.add_argument("--max-tokens", type=int, default=200)
    arguments = parser.parse_args()
    prompt = np.frombuffer(arguments.prompt.encode(), np.uint8).astype(np.int64)
    with triton.InferenceServerClient(arguments.url) as client:
        if client.get_model_config(arguments.model).config.model_transaction_policy.decoupled:
            tokens = stream_tokens(client, arguments.model, prompt, max_tokens=arguments.max_tokens)
        else:
            tokens = Sequence(client, arguments.model).write(prompt, arguments.max_tokens)
        for token in tokens:
            sys.stdout.buffer.write(bytes([token]))
            sys.stdout.buffer.flush()
    sys.stdout.buffer.write(b"\n")


if __name__ == "__main__":
    main()
