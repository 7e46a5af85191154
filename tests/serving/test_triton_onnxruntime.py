"""Triton's own onnxruntime backend, where there is one: no Python in the server.

``FLASH_EXPORT_TRITON_BACKENDS`` names the folder that holds it; docs/triton.md builds it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tritonclient.grpc as triton

from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions
from flash_export.runtime.backends import BACKENDS
from flash_export.serving.options import TritonOptions
from flash_export.serving.repository import write_repository
from tests.serving.calls import import_example, infer_all
from tests.serving.server import need_onnxruntime_backend, run_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.bundle.bundle import Bundle
    from tests.serving.server import Server

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(
    causal_byte_bundle: Bundle, masked_byte_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    need_onnxruntime_backend()
    repository = tmp_path_factory.mktemp("repository")
    options = TritonOptions(forms=("forward", "sequence"), name="served", threads=1, slots=64, queue_delay_us=2000)
    write_repository(causal_byte_bundle, repository, options)
    write_repository(causal_byte_bundle, repository, TritonOptions(forms=("generate",), name="served", threads=1))
    write_repository(masked_byte_bundle, repository, TritonOptions(name="masked", threads=1))
    forgetful = TritonOptions(forms=("sequence",), name="forgetful", threads=1, slots=4, timeout_s=1.0)
    write_repository(causal_byte_bundle, repository, forgetful)
    with run_server(repository, tmp_path_factory.mktemp("server"), "--exit-timeout-secs=5") as running:
        yield running


@pytest.mark.parametrize(("name", "fixture"), [("served", "causal_byte_bundle"), ("masked", "masked_byte_bundle")])
def test_forward_is_the_graph(request: pytest.FixtureRequest, server: Server, name: str, fixture: str) -> None:
    bundle: Bundle = request.getfixturevalue(fixture)
    rng = np.random.default_rng(0)
    requests = []
    for seq_len in (1, 7, 8, 50, 96, 96, 96, 96):
        arrays = {"input_ids": rng.integers(0, 256, (1, seq_len)), "attention_mask": np.ones((1, seq_len), np.int64)}
        requests.append({spec.name: arrays[spec.name] for spec in bundle.get_graph().inputs})

    results = infer_all(server.grpc, name, requests, clients=8)

    (target,) = BACKENDS["ort-cpu"].find(bundle, "forward")
    with target.open(threads=1) as runner:
        for inputs, result in zip(requests, results, strict=True):
            expected = runner.run(inputs)["logits"]
            atol = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=0, atol=atol)


def test_64_interleaved_sequences_are_the_forward_graph(causal_byte_bundle: Bundle, server: Server) -> None:
    """Pieces of all sizes up to a chunk, from 16 clients; the state of each text is that of no other."""
    example, rng = import_example("triton_client"), np.random.default_rng(0)
    texts = [rng.integers(0, 256, rng.integers(20, 97)) for _ in range(64)]
    cuts = [np.sort(rng.choice(np.arange(1, text.size), 8, replace=False)) for text in texts]
    with triton.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(16) as pool:
        sequences = [example.Sequence(client, "served-sequence") for _ in texts]
        read: list[list[np.ndarray]] = [[] for _ in texts]
        for step in range(9):

            def feed(row: int, step: int = step) -> None:
                piece = np.split(texts[row], cuts[row])[step]
                read[row].append(sequences[row].read(piece, is_last=step == 8))

            list(pool.map(feed, range(64)))
    (target,) = BACKENDS["ort-cpu"].find(causal_byte_bundle, "forward")
    with target.open(threads=1) as runner:
        for text, cut, rows in zip(texts, cuts, read, strict=True):
            expected = runner.run({"input_ids": text[None]})["logits"][0]
            ends = [*(cut - 1), text.size - 1]
            atol = 2e-5 * np.abs(expected).max()
            np.testing.assert_allclose(np.stack(rows), expected[ends], rtol=0, atol=atol)


def test_sequences_share_runs(server: Server) -> None:
    """One token of each of 32 texts, from 32 clients: fewer runs than requests."""
    example = import_example("triton_client")
    with triton.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(32) as pool:
        sequences = [example.Sequence(client, "served-sequence") for _ in range(32)]
        list(pool.map(lambda one: one.read(np.array([1, 2, 3])), sequences))
        before = client.get_inference_statistics("served-sequence").model_stats[0].execution_count
        list(pool.map(lambda one: one.read(np.array([5]), is_last=True), sequences))
        after = client.get_inference_statistics("served-sequence").model_stats[0].execution_count
    assert after - before < 32


def test_the_example_writes_what_generate_writes(causal_byte_bundle: Bundle, server: Server) -> None:
    example, prompt = import_example("triton_client"), np.arange(30)
    with triton.InferenceServerClient(server.grpc) as client:
        tokens = list(example.Sequence(client, "served-sequence").write(prompt, 20))
    with Generator.open(causal_byte_bundle, threads=1) as generator:
        expected = generator.generate([prompt], SamplingOptions(max_tokens=20)).tokens[0].tolist()
    assert tokens == expected


def test_the_benchmark_runs(
    causal_byte_bundle: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At a size at which its speeds mean nothing; its texts have to be right."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("triton_serving")
    arguments = ["--quick", "--soak", "0.05", "--url", server.grpc, "--json", str(tmp_path / "json")]
    benchmark.main([str(causal_byte_bundle.path), *arguments])
    figures = {one["name"]: one["value"] for one in json.loads((tmp_path / "json").read_text())["figures"]}
    assert figures["texts equal to those of generate"] == 1
    assert figures["soak: errors"] == 0
    assert figures["soak: clients that disappeared"] > 0


def test_a_sequence_that_was_idle_is_forgotten_and_its_slot_is_free(server: Server) -> None:
    """Clients that disappear by the hundred, of a model that keeps four texts."""
    example = import_example("triton_client")
    with triton.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(16) as pool:
        left = [example.Sequence(client, "forgetful-sequence") for _ in range(100)]
        list(pool.map(lambda one: one.read(np.array([1])), left))  # and never again
        list(example.Sequence(client, "forgetful-sequence").write(np.array([1]), 3))
        with pytest.raises(triton.InferenceServerException, match="must specify the START flag"):
            left[0].read(np.array([2]))


def test_a_sequence_does_not_outlive_its_server(
    causal_byte_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A server that was killed and runs again refuses to go on, and begins new texts."""
    need_onnxruntime_backend()
    repository = tmp_path_factory.mktemp("repository")
    write_repository(causal_byte_bundle, repository, TritonOptions(forms=("sequence",), name="m", threads=1))
    example, options = import_example("triton_client"), "--exit-timeout-secs=1"
    with run_server(repository, tmp_path_factory.mktemp("server"), options) as first:
        sequence = example.Sequence(triton.InferenceServerClient(first.grpc), "m-sequence")
        sequence.read(np.array([1, 2]))
        os.kill(first.pid, signal.SIGKILL)
    with run_server(repository, tmp_path_factory.mktemp("server"), options) as second:
        sequence._client = triton.InferenceServerClient(second.grpc)
        with pytest.raises(triton.InferenceServerException, match="must specify the START flag"):
            sequence.read(np.array([3]))
        assert len(list(example.Sequence(sequence._client, "m-sequence").write(np.array([1]), 3))) == 3
