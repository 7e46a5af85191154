"""What is measured: each candidate opens, and gives a function for a length that runs it once on the device.

Every function leaves its output on the device. Axes: n sequence, h head, k width of keys, v width of values.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flash_export import BuildOptions, State, build_engine
from flash_export.config import DECODE, FLAVOURS, FORWARD, TENSORRT_RTX
from flash_export.errors import BackendUnavailableError
from flash_export.generation.ort_state import OrtStateRunner
from flash_export.generation.state import POSITION
from flash_export.generation.trt_state import TrtStateRunner
from flash_export.layers.attention import split_into_chunks, sum_kv_causal
from flash_export.models.token_model import LOGITS, TOKENS
from flash_export.runtime.eager import DTYPES
from flash_export.runtime.ort import OrtRunner
from flash_export.runtime.ort_providers import PROVIDERS
from flash_export.runtime.ort_start import find_start_failure
from flash_export.runtime.trt import load_engine
from flash_export.runtime.trt_api import get_device_capability, import_flavour
from flash_export.runtime.trt_features import Features
from flash_export.runtime.trt_session import EngineOptions
from gpu.models import TransformerSteps, export_bundle, make_ids, place_flash, place_transformer
from gpu.sizes import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from flash_export import Bundle
    from flash_export.bundle.manifest import EngineManifest
    from gpu.device import Device
    from gpu.rows import Kind
    from gpu.sizes import Sizes

    # Given a length, what runs once; of the FLASH model it returns the logits.
    Prepare = Callable[[int], Callable[[], Any]]

# Kernels are made before the first run and not kept: a benchmark is to find the same each time.
ENGINE_OPTIONS = EngineOptions(cuda_graphs=True, kernels="eager", keep_kernels=False)


@dataclass(frozen=True)
class Place:
    """Where candidates run: sizes, device, and the folder of bundles and engines."""

    sizes: Sizes
    device: Device
    folder: Path


@dataclass(frozen=True)
class Candidate:
    """Something to measure.

    Attributes:
        kind: See :class:`gpu.rows.Row`.
        name: Name in rows; its last word is the precision.
        open: Opens it; raises an error of flash-export where it cannot be used.
        is_flash: Whether its output is that of the FLASH model.
    """

    kind: Kind
    name: str
    open: Callable[[Place], AbstractContextManager[Prepare]]
    is_flash: bool = False


@contextmanager
def open_eager(place: Place, *, precision: str) -> Iterator[Prepare]:
    """The reference model as it is."""
    model = place_flash(place.sizes, precision, place.device)
    yield lambda seq_len: partial(model, make_ids(place.sizes, seq_len, place.device))


@contextmanager
def open_compiled(place: Place, *, precision: str) -> Iterator[Prepare]:
    """The reference model, each layer compiled for each length: all are one piece of code, and soon done."""
    model = place_flash(place.sizes, precision, place.device)
    torch._dynamo.config.recompile_limit = 64  # one for each length
    for layer in model.layers:
        layer.compile(backend=place.sizes.compiler, dynamic=False)
    yield lambda seq_len: partial(model, make_ids(place.sizes, seq_len, place.device))


@contextmanager
def open_transformer(place: Place, *, precision: str) -> Iterator[Prepare]:
    """As many parameters, attention by PyTorch's fused kernels."""
    model = place_transformer(place.sizes, precision, place.device)
    yield lambda seq_len: partial(model, make_ids(place.sizes, seq_len, place.device))


@contextmanager
def open_onnxruntime(place: Place, *, precision: str) -> Iterator[Prepare]:
    """The exported graph in onnxruntime, inputs and outputs on the device."""
    _check_provider(place)
    bundle = export_bundle(place.sizes, precision, place.folder)
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path(), provider=place.device.kind) as runner:

        def prepare(seq_len: int) -> Callable[[], Any]:
            ids = {TOKENS: make_ids(place.sizes, seq_len, place.device)}
            return lambda: next(iter(runner.run_on_device(ids).values()))

        yield prepare


@contextmanager
def open_flavour(place: Place, *, precision: str, flavour: str) -> Iterator[Prepare]:
    """An engine of the exported graph, one profile for all lengths, by CUDA graphs."""
    _check_flavour(place, flavour)
    bundle = export_bundle(place.sizes, precision, place.folder)
    engine = _build(place, bundle, flavour, FORWARD)
    with load_engine(bundle, engine, ENGINE_OPTIONS) as loaded:
        session = loaded.open_session()

        def prepare(seq_len: int) -> Callable[[], Any]:
            ids = make_ids(place.sizes, seq_len, place.device)
            binding = session.get_binding({TOKENS: tuple(ids.shape)})
            with session.use():
                binding.inputs[TOKENS].copy_(ids)

            def run() -> torch.Tensor:
                with session.use():
                    binding.run()
                return binding.outputs[LOGITS]

            return run

        yield prepare


@contextmanager
def open_ort_steps(place: Place, *, precision: str) -> Iterator[Prepare]:
    """Decoding with onnxruntime, the state on the device; a step returns its logits to the host."""
    _check_provider(place)
    bundle = export_bundle(place.sizes, precision, place.folder)
    path = bundle.get_graph_path(DECODE)
    with OrtStateRunner(bundle.get_graph(DECODE), path, provider=place.device.kind) as runner:
        yield partial(_prepare_steps, bundle, runner)


@contextmanager
def open_engine_steps(place: Place, *, precision: str, flavour: str) -> Iterator[Prepare]:
    """Decoding with an engine, the state on the device, a step by CUDA graph; logits go to the host."""
    _check_flavour(place, flavour)
    bundle = export_bundle(place.sizes, precision, place.folder)
    engine = _build(place, bundle, flavour, DECODE)
    with TrtStateRunner(bundle.get_graph(DECODE), load_engine(bundle, engine, ENGINE_OPTIONS)) as runner:
        yield partial(_prepare_steps, bundle, runner)


@contextmanager
def open_transformer_steps(place: Place, *, precision: str) -> Iterator[Prepare]:
    """Decoding with keys and values that are kept, eager; logits go to the host."""
    model = place_transformer(place.sizes, precision, place.device)

    def prepare(context: int) -> Callable[[], Any]:
        steps, token = TransformerSteps(model, context), make_ids(place.sizes, 1, place.device)
        return lambda: steps.step(token).float().cpu()

    yield prepare


@contextmanager
def open_branch(place: Place, *, precision: str) -> Iterator[Prepare]:
    """The linear branch of every layer as the eager model computes it."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        chunks = [split_into_chunks(one[:, :, 0], place.sizes.config.chunk_size) for one in (q, k, v)]
        return chunks[0] @ sum_kv_causal(chunks[1], chunks[2])

    yield partial(_prepare_branch, place, precision, attend)


@contextmanager
def open_fla(place: Place, *, precision: str) -> Iterator[Prepare]:
    """The same by the chunked kernels of flash-linear-attention, which do not leave out a token's own chunk."""
    if find_spec("fla") is None:
        raise BackendUnavailableError("flash-linear-attention is not installed; pip install flash-linear-attention")
    from fla.ops.linear_attn import chunk_linear_attn

    yield partial(
        _prepare_branch, place, precision, lambda q, k, v: chunk_linear_attn(q, k, v, scale=1.0, normalize=False)[0]
    )


def list_candidates() -> list[Candidate]:
    """Return all, those that matter most first: time may run out."""
    halves = PRECISIONS[:2]
    engines = [
        Candidate("forward", f"engine {name} {one}", partial(open_flavour, precision=one, flavour=name), True)
        for one in halves
        for name in FLAVOURS
    ]
    steps = [
        Candidate("decode", f"engine {name} bf16", partial(open_engine_steps, precision="bf16", flavour=name))
        for name in FLAVOURS
    ]
    return [
        Candidate("forward", "eager bf16", partial(open_eager, precision="bf16"), True),
        Candidate("forward", "Transformer bf16", partial(open_transformer, precision="bf16")),
        *engines[: len(FLAVOURS)],
        Candidate("forward", "onnxruntime bf16", partial(open_onnxruntime, precision="bf16"), True),
        Candidate("decode", "onnxruntime bf16", partial(open_ort_steps, precision="bf16")),
        *steps,
        Candidate("decode", "Transformer bf16", partial(open_transformer_steps, precision="bf16")),
        Candidate("forward", "compile bf16", partial(open_compiled, precision="bf16"), True),
        Candidate("branch", "eager bf16", partial(open_branch, precision="bf16")),
        Candidate("branch", "flash-linear-attention bf16", partial(open_fla, precision="bf16")),
        Candidate("forward", "eager fp16", partial(open_eager, precision="fp16"), True),
        Candidate("forward", "Transformer fp16", partial(open_transformer, precision="fp16")),
        *engines[len(FLAVOURS) :],
        Candidate("forward", "onnxruntime fp16", partial(open_onnxruntime, precision="fp16"), True),
        Candidate("forward", "compile fp16", partial(open_compiled, precision="fp16"), True),
        Candidate("forward", "eager fp32", partial(open_eager, precision="fp32"), True),
        Candidate("forward", "onnxruntime fp32", partial(open_onnxruntime, precision="fp32"), True),
    ]


def _check_provider(place: Place) -> None:
    """Refuse what cannot start here before a graph is exported for it, which takes a minute."""
    provider = PROVIDERS[place.device.kind]
    ort = importlib.import_module("onnxruntime")
    if provider.title not in (listed := ort.get_available_providers()):
        raise BackendUnavailableError(f"this onnxruntime has no {provider.title}, only {', '.join(listed)}")
    if (failure := find_start_failure(ort, provider)) is not None:
        raise BackendUnavailableError(f"{provider.title}: {failure.reason}; {failure.cure}")


def _check_flavour(place: Place, flavour: str) -> None:
    """Refuse a flavour that is not here, or builds nothing that flash-export would load on this GPU."""
    if not place.device.is_cuda:
        raise BackendUnavailableError("engines run on an NVIDIA GPU; use --device cuda on a machine that has one")
    offered = Features(import_flavour(FLAVOURS[flavour])).list_capabilities()
    capability = get_device_capability()
    if flavour == TENSORRT_RTX.name and capability not in offered:
        raise BackendUnavailableError(
            f"{flavour} builds for compute capability {', '.join(offered)}, the GPU here has {capability}; see "
            "gpu.rtx_on_this_gpu for whether such an engine runs all the same"
        )


def _build(place: Place, bundle: Bundle, flavour: str, graph: str) -> EngineManifest:
    """Build an engine, unless that was done before."""
    name = f"{graph}-{flavour}"
    for engine in bundle.list_engines():
        if engine.name == name:
            return engine
    longest = max(place.sizes.seq_lens)
    profile = f"1x1:1x{min(2048, longest)}:1x{longest}" if graph == FORWARD else "1:1:1"
    options = BuildOptions(graph=graph, name=name, flavour=flavour, profiles=(profile,), cache=False)
    return build_engine(bundle, options=options).engine


def _prepare_steps(bundle: Bundle, runner: OrtStateRunner | TrtStateRunner, context: int) -> Callable[[], Any]:
    """Start from a state that says it has read a context; what it holds is no matter for the time."""
    state = State.zeros(bundle.get_graph(DECODE), 1)
    state.tensors[POSITION][:] = context
    runner.load_state(state)
    token = np.zeros(1, np.int64)
    return lambda: runner.step(token)


def _prepare_branch(
    place: Place,
    precision: str,
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    seq_len: int,
) -> Callable[[], Any]:
    """Run the linear branch once for each layer of the model, on queries, keys (1, n, 1, k) and values (1, n, 1, v)."""
    config = place.sizes.config
    widths = config.qk_dim, config.qk_dim, config.hidden_dim
    q, k, v = (torch.randn(1, seq_len, 1, width, device=place.device.kind) for width in widths)
    halves = [one.to(DTYPES[precision]) / config.qk_dim for one in (q, k, v)]

    def run() -> None:
        for _ in range(config.depth):
            attend(*halves)

    return run
