"""Many calls of a server at a time, from clients of its own protocol."""

from __future__ import annotations

import importlib.util
import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tritonclient.grpc as triton

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

EXAMPLES = Path(__file__).parents[2] / "examples"
REPLY_TIMEOUT_S = 120.0


@dataclass
class Answer:
    """What came back: tokens, how many each reply had, and what went wrong."""

    tokens: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    end: int = 0
    error: str | None = None


def import_example(name: str) -> Any:
    """Import a script of ``examples``."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_input(name: str, values: np.ndarray) -> Any:
    tensor = triton.InferInput(name, list(values.shape), triton.np_to_triton_dtype(values.dtype))
    tensor.set_data_from_numpy(values)
    return tensor


def infer_all(url: str, model: str, requests: Sequence[Mapping[str, np.ndarray]], clients: int) -> list[Any]:
    """Send requests from so many threads; return results, or the errors in their place."""

    def infer(inputs: Mapping[str, np.ndarray]) -> Any:
        try:
            return client.infer(model, [make_input(name, values) for name, values in inputs.items()])
        except triton.InferenceServerException as error:
            return error

    with triton.InferenceServerClient(url) as client, ThreadPoolExecutor(clients) as pool:
        return list(pool.map(infer, requests))


def generate_all(
    url: str, model: str, prompts: Sequence[np.ndarray], parameters: Sequence[Mapping[str, Any]]
) -> list[Answer]:
    """Send all prompts at once over one stream, and wait for all answers."""
    replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
    answers = [Answer() for _ in prompts]
    with triton.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: replies.put((result, error)))
        try:
            for index, (prompt, values) in enumerate(zip(prompts, parameters, strict=True)):
                inputs = [make_input("input_ids", prompt)]
                client.async_stream_infer(model, inputs, request_id=str(index), parameters=dict(values))
            while not all(one.end or one.error for one in answers):
                _note(answers, *replies.get(timeout=REPLY_TIMEOUT_S))
        finally:
            client.stop_stream(cancel_requests=True)
    return answers


def _note(answers: Sequence[Answer], result: Any, error: Any) -> None:
    if error is not None:  # it does not say whose; tests send one that is wrong at a time
        next(one for one in answers if not (one.end or one.error)).error = error.message()
        return
    answer = answers[int(result.get_response().id)]
    tokens = result.as_numpy("tokens").tolist()
    answer.tokens += tokens
    answer.sizes.append(len(tokens))
    (answer.end,) = result.as_numpy("end").tolist()
