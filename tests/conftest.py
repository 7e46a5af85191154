from __future__ import annotations

import dataclasses
import fcntl
import functools
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, settings

from flash_export.bundle.bundle import Bundle
from flash_export.bundle.manifest import AxisRange, GraphSpec, Manifest, ModelFacts
from flash_export.config import ExportOptions
from flash_export.files import hash_file
from flash_export.interface import Interface, TensorSpec
from flash_export.models.token_model import describe_token_model
from tests.retired import write_retired_bundle

# Small models on busy machines: threads cost more than they give. Read when PyTorch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tracing a model of one or two layers is up to a fifth faster without PyTorch's cache of what an operator returns, and
# writes the same bytes: with sizes that are symbols, an entry costs more to make and read than the operator to ask.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")

# How long an example takes says something of the machine alone.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

PROVENANCE = {"source": "model.pt", "format": "flash-pytorch", "sha256": "0" * 64}
INTERFACE = describe_token_model(256, needs_mask=False, is_causal=True, window=128)
BundleFactory = Callable[..., Bundle]
SchemeExporter = Callable[[str], Bundle]
PrecisionExporter = Callable[[str], Bundle]
FolderSharer = Callable[[str, Callable[[Path], None]], Path]
_COUNTER = itertools.count()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail where the tests that need a GPU were asked for and none of them ran: what is skipped proves nothing."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    asked = session.config.getoption("markexpr") == "gpu" and not session.config.getoption("collectonly")
    if asked and exitstatus == pytest.ExitCode.OK and reporter is not None and not reporter.stats.get("passed"):
        reporter.write_line("No test that needs a GPU ran, so nothing is proven.", red=True)
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.fixture(scope="session", autouse=True)
def _read_torchlib_once() -> None:
    """Keep what PyTorch's exporter reads of onnxscript: 1,500 sources, the same for every graph, more than a second."""
    from torch.onnx._internal import _lazy_import

    apis: Any = vars(_lazy_import)["onnxscript_apis"]
    apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)


@pytest.fixture(autouse=True)
def _empty_engine_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test build what it says it builds."""
    monkeypatch.setenv("FLASH_EXPORT_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{next(_COUNTER)}"))


@pytest.fixture
def default_hang_up() -> Iterator[None]:
    """Let SIGHUP end processes, as in a terminal: tests that run under nohup inherit that it is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def share_folder(tmp_path_factory: pytest.TempPathFactory) -> FolderSharer:
    """Make a folder once for all processes of a test run; whoever comes second waits for it. Not to be changed."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of the whole run

    def share(name: str, write: Callable[[Path], None]) -> Path:
        folder = root / "shared" / name
        folder.parent.mkdir(exist_ok=True)
        with folder.with_name(f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                partial = tmp_path_factory.mktemp(name)
                write(partial)
                partial.rename(folder)
        return folder

    return share


@pytest.fixture
def write_graph_bundle(tmp_path: Path) -> BundleFactory:
    """Write a bundle around any ONNX model; the contract is read from the model unless ``outputs`` overrides it."""

    def write(
        model: onnx.ModelProto,
        *,
        max_batch: int = 64,
        max_seq_len: int = 65536,
        config: str = '{"model_type": "flash", "chunk_size": 128, "depth": 2}',
        external_data: bool = False,
        outputs: tuple[TensorSpec, ...] | None = None,
    ) -> Bundle:
        folder = tmp_path / "bundle"
        folder.mkdir()
        (folder / "config.json").write_text(config)
        onnx.save_model(
            model,
            folder / "model.onnx",
            save_as_external_data=external_data,
            location="model.onnx.data",
            size_threshold=0,
        )
        spec = GraphSpec(
            file="model.onnx",
            opset=20,
            precision="fp32",
            inputs=_read_specs(model.graph.input),
            outputs=outputs or _read_specs(model.graph.output),
            axes={"batch": AxisRange(1, max_batch), "seq": AxisRange(1, max_seq_len)},
        )
        interface = Interface(
            tuple(_free_sizes(one) for one in spec.inputs),
            tuple(_free_sizes(one) for one in spec.outputs),
            "tokens",
            padding="refused",
            window=128,
            fixed_len=None if any("seq" in one.shape for one in spec.inputs) else 1,
        )
        files = {path.name: hash_file(path) for path in folder.iterdir()}
        (folder / "manifest.json").write_text(
            Manifest({}, interface, {"forward": spec}, PROVENANCE, files, ModelFacts("flash", 1, 2, {})).to_json()
        )
        return Bundle.open(folder)

    return write


def _free_sizes(spec: TensorSpec) -> TensorSpec:
    return dataclasses.replace(spec, shape=("batch", *spec.shape[1:]))


def _read_specs(values: list[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


@pytest.fixture(scope="session")
def causal_byte_bundle(share_folder: FolderSharer) -> Bundle:
    """Export a tiny causal model of bytes with text to be measured on, all graphs; not to be changed."""
    return Bundle.open(share_folder("causal-bytes", lambda folder: _export_bytes(folder, causal=True)) / "bundle")


@pytest.fixture(scope="session")
def masked_byte_bundle(share_folder: FolderSharer) -> Bundle:
    """Export a tiny masked model of bytes with text to be measured on; not to be changed."""
    return Bundle.open(share_folder("masked-bytes", lambda folder: _export_bytes(folder, causal=False)) / "bundle")


@pytest.fixture(scope="session")
def causal_bundle(share_folder: FolderSharer) -> Bundle:
    """Export a causal model of two layers and odd sizes, all graphs, lengths to 60; not to be changed."""
    return Bundle.open(share_folder("causal", _export_causal) / "bundle")


@pytest.fixture(scope="session")
def export_half(share_folder: FolderSharer) -> PrecisionExporter:
    """Export a causal model of two layers in fp16 or bf16, all graphs, each precision once; not to be changed."""

    @functools.cache
    def export(precision: str) -> Bundle:
        write = functools.partial(_export_half, precision=precision)
        return Bundle.open(share_folder(f"causal-{precision}", write) / "bundle")

    return export


@pytest.fixture(scope="session")
def int8_bundle(causal_byte_bundle: Bundle, share_folder: FolderSharer) -> Bundle:
    """Quantize the causal model in int8, with scales known beforehand; not to be changed."""
    from flash_export.config import QuantizeOptions
    from flash_export.quantization.quantize import quantize_bundle

    def write(folder: Path) -> None:
        quantize_bundle(causal_byte_bundle, folder / "int8", options=QuantizeOptions("int8", threads=1))

    return Bundle.open(share_folder("int8-bytes", write) / "int8")


@pytest.fixture(scope="session")
def int8_bf16_bundle(causal_byte_bundle: Bundle, share_folder: FolderSharer) -> Bundle:
    """Quantize the causal model in int8, and compute the rest in bf16; not to be changed."""
    from flash_export.config import QuantizeOptions
    from flash_export.quantization.quantize import quantize_bundle

    def write(folder: Path) -> None:
        options = QuantizeOptions("int8", threads=1, precision="bf16")
        quantize_bundle(causal_byte_bundle, folder / "int8", options=options)

    return Bundle.open(share_folder("int8-bf16-bytes", write) / "int8")


@pytest.fixture(scope="session")
def token_bundle(causal_byte_bundle: Bundle, share_folder: FolderSharer) -> Bundle:
    """Quantize the causal model with the defaults: int8 with a scale for each token; not to be changed."""
    from flash_export.config import QuantizeOptions
    from flash_export.quantization.quantize import quantize_bundle

    def write(folder: Path) -> None:
        quantize_bundle(causal_byte_bundle, folder / "int8", options=QuantizeOptions(threads=1))

    return Bundle.open(share_folder("int8-token-bytes", write) / "int8")


@pytest.fixture(scope="session")
def retired_bundle(causal_byte_bundle: Bundle, share_folder: FolderSharer) -> Bundle:
    """Write the causal model in a scheme of older versions; not to be changed."""

    def write(folder: Path) -> None:
        write_retired_bundle(causal_byte_bundle, folder / "bundle")

    return Bundle.open(share_folder("retired-bytes", write) / "bundle")


@pytest.fixture(scope="session")
def export_scheme(masked_byte_bundle: Bundle, share_folder: FolderSharer) -> SchemeExporter:
    """Quantize all of the masked model by a plan that asks no one, each scheme once; not to be changed."""
    from flash_export.bundle.quantization_record import QuantizationRecord
    from flash_export.exporters.quantization.bundle import write_quantized
    from flash_export.exporters.quantization.recipe import ProductRecipe, QuantizationRecipe
    from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME

    names = ("layers.0.projection", "layers.0.out", "head")

    @functools.cache
    def export(name: str) -> Bundle:
        scheme = SCHEMES_BY_NAME[name]
        largest, block_size = 8.0 if scheme.has_range else None, 16 if scheme.has_blocks else None
        product = ProductRecipe(scheme, largest, block_size=block_size)
        plan = QuantizationRecipe(scheme, dict.fromkeys(names, product))
        record = QuantizationRecord(name, "", "text", "", (96,), 1, 0.02, 0.01, {"kl_bits": 0.01}, None, 1.0, None, ())

        def write(folder: Path) -> None:
            write_quantized(masked_byte_bundle, folder / "bundle", plan, record.to_json())

        return Bundle.open(share_folder(f"planned-{name}", write) / "bundle")

    return export


def _export_bytes(folder: Path, *, causal: bool) -> None:
    import torch

    from flash_export.exporters.export import export_onnx
    from flash_export.models.flash import FlashConfig, FlashModel

    torch.manual_seed(0)
    config = FlashConfig(257, dim=32, depth=1, hidden_dim=48, chunk_size=8, qk_dim=32, causal=causal)
    model = FlashModel(config)
    for name, parameter in model.named_parameters():  # attention is to matter
        torch.nn.init.normal_(parameter, std=1 if "qk_offset_scale" in name else 0.2)
    model.save_pretrained(folder / "checkpoint")
    text = "a quick test of what little a model of bytes can tell; " * 12
    objective = "causal" if causal else "masked"
    settings: dict[str, object] = {"objective": objective, "tokenizer": "bytes", "seq_len": 64, "seed": 0}
    settings |= {"mask_token_id": 256, "mask_fraction": 0.3}
    (folder / "checkpoint" / "heldout.txt").write_text(text)
    (folder / "checkpoint" / "heldout.json").write_text(json.dumps(settings))
    options = ExportOptions(max_seq_len=96, max_batch=4)
    export_onnx(folder / "checkpoint", folder / "bundle", options=options)


def _export_causal(folder: Path) -> None:
    import torch

    from flash_export.exporters.export import export_onnx
    from flash_export.models.flash import FlashConfig, FlashModel

    torch.manual_seed(0)
    model = FlashModel(FlashConfig(29, dim=22, depth=2, hidden_dim=33, chunk_size=8, qk_dim=37, causal=True))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "checkpoint")
    export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(max_seq_len=60))  # not whole chunks


def _export_half(folder: Path, *, precision: str) -> None:
    import torch

    from flash_export.exporters.export import export_onnx
    from flash_export.models.flash import FlashConfig, FlashModel

    torch.manual_seed(0)
    model = FlashModel(FlashConfig(29, dim=22, depth=2, hidden_dim=34, chunk_size=8, qk_dim=18, causal=True))
    for name, parameter in model.named_parameters():  # attention is to matter
        torch.nn.init.normal_(parameter, std=1 if "qk_offset_scale" in name else 0.2)
    model.save_pretrained(folder / "checkpoint")
    export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(precision=precision))
