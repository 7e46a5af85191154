"""New text from a Triton server against the same in one process: streams, long replies, kept states, a soak.

    flash-export onnx flash_export/assets/byte-causal -o BUNDLE
    flash-export triton BUNDLE -o REPOSITORY --name served --form sequence --form generate
    tritonserver --model-repository=REPOSITORY
    python benchmarks/triton_serving.py BUNDLE [--url localhost:8001] [--soak 30] [--json FILE] [--quick]

The bundled causal model, its clients on the same two cores. Prompts of 1 to 300 bytes, 256 new ones each; every text
has to be what ``generate`` writes. ``--soak`` asks for so many minutes, from 16 clients, a tenth of which disappear in
the middle of a text, and reports by how much the server's processes grew after the first twentieth. A server without
the form ``sequence``, which needs Triton's onnxruntime backend, is measured without it.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as triton

from flash_export import Bundle, Generator, SamplingOptions
from harness.processes import MIB
from harness.report import Figure, make_parser, print_figures, write_json
from harness.sessions import THREADS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GENERATE, SEQUENCE = "served-generate", "served-sequence"
STREAMS = 16
IN_PROCESS_TARGET, ALONE_TARGET, GROWTH_TARGET_MIB = 0.5, 1.5, 20.0
REPLY_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Size:
    """What is written."""

    prompts: int = 64
    longest: int = 300
    new: int = 256


QUICK = Size(4, 20, 8)


@dataclass
class Latencies:
    """Of calls: until the first tokens and until the end, in seconds; and how many went wrong."""

    first_s: list[float] = field(default_factory=list)
    all_s: list[float] = field(default_factory=list)
    tokens: int = 0
    left: int = 0
    errors: int = 0


def make_input(name: str, values: np.ndarray) -> Any:
    """Return an int64 input."""
    tensor = triton.InferInput(name, list(values.shape), "INT64")
    tensor.set_data_from_numpy(values)
    return tensor


class Stream:
    """A client with one stream, for one text after the other."""

    def __init__(self, url: str) -> None:
        """Connect."""
        self._client = triton.InferenceServerClient(url)
        self._replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._replies.put((result, error)))

    def write(self, prompt: np.ndarray, latencies: Latencies | None = None, **parameters: int) -> list[int]:
        """Return the new tokens."""
        start, tokens, end = time.perf_counter(), list[int](), 0
        self._client.async_stream_infer(GENERATE, [make_input("input_ids", prompt)], parameters=parameters)
        while not end:
            result, error = self._replies.get(timeout=REPLY_TIMEOUT_S)
            if error is not None:
                raise error
            if not tokens and latencies is not None:
                latencies.first_s.append(time.perf_counter() - start)
            tokens += result.as_numpy("tokens").tolist()
            (end,) = result.as_numpy("end")
        if latencies is not None:
            latencies.all_s.append(time.perf_counter() - start)
            latencies.tokens += len(tokens)
        return tokens

    def leave(self, prompt: np.ndarray) -> None:
        """Ask for a long text, and disappear after its first tokens."""
        parameters = {"max_tokens": 10**6}
        self._client.async_stream_infer(GENERATE, [make_input("input_ids", prompt)], parameters=parameters)
        self._replies.get(timeout=REPLY_TIMEOUT_S)
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


def write_kept(url: str, number: int, prompt: np.ndarray, new: int) -> list[int]:
    """Write a text whose state the server keeps, and return the new tokens."""
    tokens = list[int]()
    with triton.InferenceServerClient(url) as client:
        piece_len = int(client.get_model_config(SEQUENCE).config.parameters["flash_export.chunk_size"].string_value)
        pieces = np.split(prompt, range(piece_len, prompt.size, piece_len))
        for step in range(len(pieces) + new):
            piece = pieces[step] if step < len(pieces) else np.array(tokens[-1:])
            inputs = [make_input("input_ids", piece[None]), make_input("lengths", np.array([[piece.size]]))]
            ends = {"sequence_start": step == 0, "sequence_end": step == len(pieces) + new - 1}
            result = client.infer(SEQUENCE, inputs, sequence_id=number, **ends)
            if step >= len(pieces) - 1 and len(tokens) < new:
                tokens.append(int(result.as_numpy("logits")[0, -1].argmax()))
    return tokens


def time_clients(url: str, prompts: Sequence[np.ndarray], new: int, clients: int, per_reply: int) -> tuple[float, Any]:
    """Return tokens a second of so many streams, and the texts."""
    streams = [Stream(url) for _ in range(clients)]
    idle: queue.SimpleQueue[Stream] = queue.SimpleQueue()
    for stream in streams:
        idle.put(stream)

    def write(prompt: np.ndarray) -> list[int]:
        stream = idle.get()
        try:
            return stream.write(prompt, max_tokens=new, tokens_per_reply=per_reply)
        finally:
            idle.put(stream)

    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        texts = list(pool.map(write, prompts))
        seconds = time.perf_counter() - start
    for stream in streams:
        stream.close()
    return sum(map(len, texts)) / seconds, texts


def time_kept(url: str, prompts: Sequence[np.ndarray], new: int, clients: int) -> tuple[float, Any]:
    """Return tokens a second of so many clients of the form ``sequence``, and the texts."""
    first = int(time.time()) << 16
    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        texts = list(pool.map(lambda row: write_kept(url, first + row, prompts[row], new), range(len(prompts))))
        return sum(map(len, texts)) / (time.perf_counter() - start), texts


def time_process(write: Callable[[], int]) -> float:
    """Return tokens a second of what returns their number."""
    start = time.perf_counter()
    return write() / (time.perf_counter() - start)


def soak(url: str, prompts: Sequence[np.ndarray], minutes: float) -> tuple[Latencies, float]:
    """Ask for so long from 16 clients; return what they saw, and the growth of the server in MiB."""
    seen, end, lock = Latencies(), time.monotonic() + 60 * minutes, threading.Lock()

    def ask(client: int) -> None:
        random, stream, number = np.random.default_rng(client), Stream(url), client
        while time.monotonic() < end:
            number += 1
            prompt, own = prompts[int(random.integers(len(prompts)))], Latencies()
            try:
                if number % 10 == 0:
                    stream.leave(prompt)
                    stream, own.left = Stream(url), 1
                else:
                    stream.write(prompt, own, max_tokens=int(random.integers(1, 256)), tokens_per_reply=8)
            except (triton.InferenceServerException, queue.Empty):
                own.errors = 1
            with lock:
                for name in ("first_s", "all_s"):
                    getattr(seen, name).extend(getattr(own, name))
                for name in ("tokens", "left", "errors"):
                    setattr(seen, name, getattr(seen, name) + getattr(own, name))
        stream.close()

    with ThreadPoolExecutor(STREAMS) as pool:
        running = pool.map(ask, range(STREAMS))
        time.sleep(60 * minutes / 20)
        first = measure_server()
        list(running)
    return seen, measure_server() - first


def measure_server() -> float:
    """Return the resident memory of the server and of what it started, in MiB."""
    return sum(map(_measure_process, Path("/proc").glob("[0-9]*"))) / MIB


def _measure_process(folder: Path) -> int:
    """Return the bytes of a process; 0 if it is another one, or has ended."""
    try:
        program = Path((folder / "cmdline").read_text().split("\0")[0]).name
        if program not in ("tritonserver", "triton_python_backend_stub"):
            return 0
        return 1024 * int((folder / "status").read_text().split("VmRSS:")[1].split()[0])
    except (OSError, IndexError):
        return 0


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--url", default="localhost:8001", help="where the server takes gRPC")
    parser.add_argument(
        "--soak", type=float, default=0, metavar="MINUTES", help="ask for so long, and watch the memory"
    )
    options = parser.parse_args(arguments)
    size, random = QUICK if options.quick else Size(), np.random.default_rng(0)
    prompts = [random.integers(0, 256, random.integers(1, size.longest, endpoint=True)) for _ in range(size.prompts)]
    sampling, batch = SamplingOptions(max_tokens=size.new), prompts[:STREAMS]
    url, streams = options.url, f"{STREAMS} streams"
    runs: dict[str, tuple[float, Any]] = {}
    with Generator.open(Bundle.open(options.bundle), threads=THREADS) as generator:

        def write_batch() -> int:
            return sum(one.size for one in generator.generate(batch, sampling).tokens)

        expected = [generator.generate([one], sampling).tokens[0].tolist() for one in prompts]
        in_process = [time_process(write_batch)]
        runs["one stream"] = time_clients(url, prompts[:2], size.new, 1, 1)
        runs[streams] = time_clients(url, prompts, size.new, STREAMS, 1)
        in_process.append(time_process(write_batch))
        runs["one stream, 8 tokens a reply"] = time_clients(url, prompts[:2], size.new, 1, 8)
        runs[f"{streams}, 8 tokens a reply"] = time_clients(url, prompts, size.new, STREAMS, 8)
        in_process.append(time_process(write_batch))
    with triton.InferenceServerClient(url) as client:
        keeps_states = client.is_model_ready(SEQUENCE)
    if keeps_states:
        runs["states kept, one client"] = time_kept(url, prompts[:2], size.new, 1)
        runs["states kept, 8 clients"] = time_kept(url, prompts[:16], size.new, 8)
    alone = max(in_process)  # other work makes it slower, never faster
    speeds = {name: speed for name, (speed, _) in runs.items()}
    texts = [(expected[row], text) for _, found in runs.values() for row, text in enumerate(found)]
    many, many_8 = speeds[streams], speeds[f"{streams}, 8 tokens a reply"]
    figures = [
        Figure.judge("texts equal to those of generate", np.mean([one == two for one, two in texts]), at_least=1.0),
        Figure(f"generate, a batch of {STREAMS} in one process: tokens a second, the best of three", alone),
        *(Figure(f"{name}: tokens a second", speed) for name, speed in speeds.items()),
        Figure.judge(f"{streams} / in one process", many / alone, at_least=IN_PROCESS_TARGET),
        Figure.judge("the same, 8 tokens a reply", many_8 / alone, at_least=IN_PROCESS_TARGET),
        Figure.judge(f"{streams} / one stream", many / speeds["one stream"], at_least=ALONE_TARGET),
    ]
    if options.soak:
        seen, growth = soak(options.url, prompts, options.soak)
        figures += [
            Figure("soak: calls", float(len(seen.all_s))),
            Figure("soak: clients that disappeared", float(seen.left)),
            Figure.judge("soak: errors", float(seen.errors), at_most=0.0),
            Figure("soak: tokens a second", seen.tokens / (60 * options.soak)),
            *(
                Figure(f"soak: ms until {what}, p{share}", 1e3 * float(np.percentile(values, share)))
                for what, values in (("the first tokens", seen.first_s), ("the end", seen.all_s))
                for share in (50, 99)
            ),
            Figure.judge("soak: growth of the server, MiB", growth, at_most=GROWTH_TARGET_MIB),
        ]
    print_figures(f"{size.prompts} prompts of 1 to {size.longest} tokens, {size.new} new, {STREAMS} slots", figures)
    write_json(options.json, {"size": asdict(size), "figures": [asdict(figure) for figure in figures]})


if __name__ == "__main__":
    main()
