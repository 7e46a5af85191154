"""A real Triton server, with its Python backend, answers as the bundle does."""

from __future__ import annotations

import itertools
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions
from flash_export.runtime.backends import BACKENDS
from flash_export.serving.options import TritonOptions
from flash_export.serving.repository import write_repository
from tests.serving.calls import generate_all, import_example, infer_all, make_input
from tests.serving.server import run_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flash_export.bundle.bundle import Bundle
    from tests.serving.calls import Answer
    from tests.serving.server import Server

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]
STOP, LENGTH = 1, 2
GONE = 100
WAIT_S = 60.0


@pytest.fixture(scope="module")
def server(
    causal_byte_bundle: Bundle, masked_byte_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    forms = TritonOptions(forms=("ragged", "generate"), name="causal", threads=1, queue_delay_us=20_000)
    write_repository(causal_byte_bundle, repository, forms)
    write_repository(masked_byte_bundle, repository, TritonOptions(forms=("ragged",), name="masked", threads=1))
    busy = TritonOptions(forms=("generate",), name="busy", threads=1, slots=1, max_waiting=2, timeout_s=2.0)
    write_repository(causal_byte_bundle, repository, busy)
    options = ("--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=10")
    with run_server(repository, tmp_path_factory.mktemp("server"), *options) as running:
        yield running


@pytest.mark.parametrize("name", ["causal", "masked"])
def test_ragged_requests_are_answered_as_alone(request: pytest.FixtureRequest, server: Server, name: str) -> None:
    bundle: Bundle = request.getfixturevalue(f"{name}_byte_bundle")
    rng = np.random.default_rng(0)
    requests = [{"input_ids": rng.integers(0, 256, (1 + index % 2, rng.integers(1, 97)))} for index in range(60)]
    before = read_statistics(server, f"{name}-ragged")

    results = infer_all(server.grpc, f"{name}-ragged", requests, clients=16)

    (target,) = BACKENDS["ort-cpu"].find(bundle, "forward")
    with target.open(threads=1) as runner:
        for inputs, result in zip(requests, results, strict=True):
            mask = {"attention_mask": np.ones_like(inputs["input_ids"], np.bool_)}
            specs = bundle.get_graph().inputs
            arrays = {spec.name: ({**inputs, **mask})[spec.name].astype(spec.dtype) for spec in specs}
            expected, actual = runner.run(arrays)["logits"], result.as_numpy("logits")
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    after = read_statistics(server, f"{name}-ragged")
    assert after.inference_count - before.inference_count == sum(len(one["input_ids"]) for one in requests)
    assert after.execution_count - before.execution_count < len(requests)  # some were batched


def test_a_ragged_request_that_is_wrong_is_refused_alone(server: Server) -> None:
    requests = [{"input_ids": np.full((1, 3), token)} for token in (7, 300, 8, 9)]
    results = infer_all(server.grpc, "causal-ragged", requests, clients=4)

    assert [isinstance(one, triton.InferenceServerException) for one in results] == [False, True, False, False]
    assert "input_ids has 300, token ids are 0 to 256 here" in results[1].message()


def test_64_texts_at_once_are_those_of_generate(causal_byte_bundle: Bundle, server: Server) -> None:
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 256, rng.integers(1, 200)) for _ in range(64)]
    parameters = [
        {"max_tokens": 40, "temperature": 0.8 * (row % 2), "seed": row, "tokens_per_reply": 1 + row % 5}
        for row in range(64)
    ]
    answers = generate_all(server.grpc, "causal-generate", prompts, parameters)

    with Generator.open(causal_byte_bundle, threads=1) as generator:
        for row, answer in enumerate(answers):
            options = SamplingOptions(temperature=0.8 * (row % 2), max_tokens=40, seed=row)
            expected = generator.generate([prompts[row]], options).tokens[0].tolist()
            assert (answer.tokens, answer.end, answer.error) == (expected, LENGTH, None)
            assert set(answer.sizes[:-1]) == {1 + row % 5}


def test_a_stop_token_ends_a_text(causal_byte_bundle: Bundle, server: Server) -> None:
    prompt = np.arange(20)
    written = write_alone(causal_byte_bundle, prompt, 6)
    (answer,) = generate_all(server.grpc, "causal-generate", [prompt], [{"stop_tokens": f"{written[2]},255"}])
    assert (answer.tokens, answer.end) == (written[: written.index(written[2]) + 1], STOP)


def test_text_is_written_over_http_too(server: Server) -> None:
    body = {"input_ids": [1, 2, 3], "max_tokens": 3, "tokens_per_reply": 3}
    address = f"http://{server.http}/v2/models/causal-generate/generate"
    with urllib.request.urlopen(address, data=json.dumps(body).encode(), timeout=WAIT_S) as response:
        answer = json.load(response)
    (expected,) = generate_all(server.grpc, "causal-generate", [np.array([1, 2, 3])], [{"max_tokens": 3}])
    assert (answer["tokens"], answer["end"]) == (expected.tokens, LENGTH)


def test_the_example_streams_what_generate_writes(causal_byte_bundle: Bundle, server: Server) -> None:
    example, prompt = import_example("triton_client"), np.arange(30)
    with triton.InferenceServerClient(server.grpc) as client:
        tokens = list(example.stream_tokens(client, "causal-generate", prompt, max_tokens=20, tokens_per_reply=3))
        assert tokens == write_alone(causal_byte_bundle, prompt, 20)
        with pytest.raises(triton.InferenceServerException, match="has no tokens"):
            list(example.stream_tokens(client, "causal-generate", prompt[:0]))


@pytest.mark.parametrize(
    ("prompt", "parameters", "message"),
    [
        ([300], {}, "has 300, token ids are 0 to 256 here"),
        ([1], {"temprature": "1"}, "unknown field 'temprature' (did you mean temperature?)"),
        ([1], {"temperature": -1.0}, "temperature=-1.0 is not usable"),
    ],
)
def test_what_cannot_be_answered_says_why(
    server: Server, prompt: list[int], parameters: dict[str, Any], message: str
) -> None:
    (answer,) = generate_all(server.grpc, "causal-generate", [np.array(prompt)], [parameters])
    assert answer.error is not None
    assert message in answer.error


def test_more_than_may_wait_are_refused(server: Server) -> None:
    def ask(_: int) -> Answer:
        return generate_all(server.grpc, "busy-generate", [np.array([1])], [{"max_tokens": 10**6}])[0]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    errors = [str(one.error) for one in answers]
    refused = ["2 requests wait already, which is the most (max_waiting); ask again later" in one for one in errors]
    assert 1 <= sum(refused) <= 5  # one is written, two wait
    assert sum("not done after 2 s" in one for one in errors) == 8 - sum(refused)


def test_what_takes_too_long_is_ended(server: Server) -> None:
    (answer,) = generate_all(server.grpc, "busy-generate", [np.array([1])], [{"max_tokens": 10**9}])
    assert answer.tokens
    assert answer.error is not None
    assert "not done after 2 s, which is the longest (timeout_s)" in answer.error


def test_a_hundred_clients_that_disappear_leave_no_slot_taken(server: Server) -> None:
    """More than there are slots: the next one would never be answered if their slots were kept."""
    before = read_metric(server, "flash_export_cancelled_total")
    for _ in range(GONE):
        client = triton.InferenceServerClient(server.grpc)
        client.start_stream(lambda result, error: None)
        client.async_stream_infer(
            "causal-generate", [make_input("input_ids", np.array([1]))], parameters={"max_tokens": 10**9}
        )
        client.stop_stream(cancel_requests=True)
        client.close()
    (answer,) = generate_all(server.grpc, "causal-generate", [np.array([5])], [{"max_tokens": 3}])

    assert (len(answer.tokens), answer.error) == (3, None)
    wait_until(lambda: read_metric(server, "flash_export_running") == 0)
    wait_until(lambda: read_metric(server, "flash_export_waiting") == 0)
    assert read_metric(server, "flash_export_cancelled_total") > before


def test_what_was_begun_goes_on_with_the_weights_that_it_began_with(
    causal_byte_bundle: Bundle, causal_bundle: Bundle, server: Server
) -> None:
    """Another model takes the place of the one that writes; it is loaded, and answers, meanwhile."""
    prompt, found = np.array([3, 1, 4]), list[Any]()
    with triton.InferenceServerClient(server.grpc) as client, triton.InferenceServerClient(server.grpc) as controller:
        client.start_stream(lambda result, error: found.append(error or result))
        parameters = {"max_tokens": 10**9, "tokens_per_reply": 50}
        client.async_stream_infer("causal-generate", [make_input("input_ids", prompt)], parameters=parameters)
        wait_until(lambda: bool(found))
        options = TritonOptions(forms=("generate",), name="causal", threads=1)
        written = write_repository(causal_bundle, server.repository, options)
        controller.load_model("causal-generate")
        wait_until(lambda: bool(controller.is_model_ready("causal-generate", "2")))
        (other,) = generate_all(server.grpc, "causal-generate", [prompt], [{"max_tokens": 20}])
        num_replies = len(found)
        wait_until(lambda: len(found) > num_replies)
        client.stop_stream(cancel_requests=True)

    assert (written.models[0].version, written.models[0].kept) == (2, (1,))
    replies = [one.as_numpy("tokens").tolist() for one in found[: num_replies + 1]]
    assert list(itertools.chain(*replies)) == write_alone(causal_byte_bundle, prompt, 50 * len(replies))
    assert other.tokens == write_alone(causal_bundle, prompt, 20)


def write_alone(bundle: Bundle, prompt: np.ndarray, max_tokens: int) -> list[int]:
    with Generator.open(bundle, threads=1) as generator:
        tokens: list[int] = generator.generate([prompt], SamplingOptions(max_tokens=max_tokens)).tokens[0].tolist()
    return tokens


def read_statistics(server: Server, model: str) -> Any:
    with triton.InferenceServerClient(server.grpc) as client:
        return client.get_inference_statistics(model).model_stats[0]


def read_metric(server: Server, name: str, model: str = "causal-generate") -> float:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=WAIT_S) as response:
        lines = response.read().decode().splitlines()
    found = [line for line in lines if line.startswith(f"{name}{{") and f'model="{model}"' in line]
    return float(found[0].split()[-1])


def wait_until(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_done():
        assert time.monotonic() < deadline, f"not done after {WAIT_S:g} s"
        time.sleep(0.02)
