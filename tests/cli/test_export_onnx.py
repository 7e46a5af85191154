"""``flash-export onnx``: a good checkpoint becomes a bundle; any other input is one line, and nothing is written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner, Result

from flash_export.bundle.bundle import Bundle
from flash_export.cli.main import main
from flash_export.exporters.tracing import TracedGraph
from flash_export.models.checkpoint import load_checkpoint
from flash_export.models.import_record import ImportRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(sys.executable).parent / "flash-export"
FOREIGN = ["--family", "flash", "--set", "group_size=16", "--assume-defaults"]
Prepare = Callable[[Path], list[str]]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "500"}).invoke(main, ["onnx", *map(str, arguments)])


def list_tree(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder, hidden ones too, with the content of the files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def check_refused(result: Result, *fragments: str) -> None:
    """Check exit code 2, nothing on stdout and one line on stderr with every fragment."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    assert "internal error" not in result.stderr
    assert [fragment for fragment in fragments if fragment not in result.stderr] == [], result.stderr


@contextlib.contextmanager
def nothing_written(folder: Path) -> Iterator[None]:
    before = list_tree(folder)
    yield
    assert list_tree(folder) == before


@pytest.fixture
def place(tmp_path: Path, small_checkpoint: Path) -> Path:
    """Make a folder with ``model/``, a checkpoint of ours, and ``model.pt``, one of flash-pytorch."""
    shutil.copytree(small_checkpoint, tmp_path / "model")
    tensors = load_checkpoint(tmp_path / "model").model.state_dict()
    freqs = tensors.pop("rotary_pos_emb.freqs")
    tensors.update({f"layers.{index}.rotary_pos_emb.freqs": freqs for index in range(2)})
    torch.save(tensors, tmp_path / "model.pt")
    return tmp_path


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, small_bundle: Bundle) -> None:
    """Take the graphs from the exported bundle instead of tracing again, to save seconds."""
    monkeypatch.setattr(
        "flash_export.exporters.export.trace_model",
        lambda _, graph, __: TracedGraph(ir.load(small_bundle.path / graph.file)),
    )


# --- what works


def test_export_says_what_it_made(small_checkpoint: Path, small_bundle: Bundle) -> None:
    assert sorted(path.name for path in small_bundle.path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.onnx",
        "model.safetensors",
        "probes.json",
    ]
    assert [path.name for path in small_checkpoint.parent.iterdir() if path.name.startswith(".")] == []
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in small_bundle.path.iterdir())
    assert small_bundle.get_graph().axes["seq"].max == 512


@pytest.mark.usefixtures("traced")
def test_summary_and_what_comes_next(place: Path) -> None:
    result = invoke(place / "model", "-o", place / "out", "--max-seq-len", "512")
    assert result.exit_code == 0, result.output
    assert result.stderr == f"Next: flash-export validate {place / 'out'}\n"
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"Exported model.safetensors to {place / 'out'} (")
    assert lines[1].startswith("  model     flash, vocab_size 17, dim 12, depth 2, hidden_dim 24, chunk_size 16")
    assert lines[2] == "  inputs    input_ids int64 (batch, seq), attention_mask int64 (batch, seq)"
    assert lines[3] == "  outputs   logits float32 (batch, seq, 17)"
    assert lines[4] == "  ranges    batch 1 to 64, seq 1 to 512"
    assert lines[5].startswith("  nodes     ")
    assert lines[5].endswith(" in each of 2 blocks; opset 20, fp32")
    assert len(lines) == 6


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("by_file", [False, True])
def test_foreign_file_with_its_arguments(place: Path, by_file: bool) -> None:
    rest = {"causal": False, "shift_tokens": True, "laplace_attn_fn": False, "reduce_group_non_causal_attn": True}
    (place / "arguments.json").write_text(json.dumps({"group_size": 99, **rest}))
    given = (
        ["--config", str(place / "arguments.json")]
        if by_file
        else [part for name, value in rest.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    )
    result = invoke(place / "model.pt", "-o", place / "out", "--family", "flash", *given, "--set", "group_size=16")
    assert result.exit_code == 0, result.output
    assert "assumed" not in result.output
    bundle = Bundle.open(place / "out")
    assert bundle.manifest.imported == ImportRecord(arguments={"group_size": 16, **rest})
    assert bundle.load_model().config == load_checkpoint(place / "model").model.config
    assert bundle.manifest.checkpoint["source"] == "model.pt"
    assert bundle.manifest.checkpoint["format"] == "flash-pytorch"


@pytest.mark.usefixtures("traced")
def test_output_may_be_an_empty_folder(place: Path) -> None:
    (place / "out").mkdir()
    assert invoke(place / "model", "-o", place / "out").exit_code == 0
    Bundle.open(place / "out")


@pytest.mark.usefixtures("traced")
def test_force_replaces_a_bundle_with_its_engines(place: Path, bundle: Bundle) -> None:
    (bundle.path / "engines").mkdir()
    (bundle.path / "engines" / "old.engine").write_bytes(b"old")
    refused = invoke(place / "model", "-o", bundle.path)
    check_refused(refused, f"{bundle.path} already holds a bundle; add --force to replace it")
    assert (bundle.path / "engines" / "old.engine").exists()
    result = invoke(place / "model", "-o", bundle.path, "--force", "--max-seq-len", "1024")
    assert result.exit_code == 0, result.output
    assert not (bundle.path / "engines").exists()
    assert Bundle.open(bundle.path).get_graph().axes["seq"].max == 1024
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []


@pytest.mark.usefixtures("traced")
def test_force_also_replaces_a_damaged_bundle(place: Path, bundle: Bundle) -> None:
    (bundle.path / "manifest.json").write_text("{")
    assert invoke(place / "model", "-o", bundle.path, "--force").exit_code == 0
    Bundle.open(bundle.path)


# --- checkpoints that cannot be exported


def give_missing_file(place: Path) -> list[str]:
    return [str(place / "none.pt"), *FOREIGN]


def give_truncated(suffix: str, fraction: float) -> Prepare:
    def prepare(place: Path) -> list[str]:
        path = place / "model.pt" if suffix == ".pt" else place / "model" / "model.safetensors"
        data = path.read_bytes()
        (place / f"cut{suffix}").write_bytes(data[: int(len(data) * fraction)])
        return [str(place / f"cut{suffix}"), *FOREIGN]

    return prepare


def give_bytes(name: str, data: bytes) -> Prepare:
    def prepare(place: Path) -> list[str]:
        (place / name).write_bytes(data)
        return [str(place / name), *FOREIGN]

    return prepare


class Bomb:
    """Would end the process if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (99,)


def give_hostile_pickle(place: Path) -> list[str]:
    torch.save({**torch.load(place / "model.pt"), "x": Bomb()}, place / "model.pt")
    return [str(place / "model.pt"), *FOREIGN]


def give_changed_tensor(change: Callable[[dict[str, torch.Tensor]], object]) -> Prepare:
    def prepare(place: Path) -> list[str]:
        tensors = torch.load(place / "model.pt")
        change(tensors)
        torch.save(tensors, place / "model.pt")
        return [str(place / "model.pt"), *FOREIGN]

    return prepare


def give_options(*options: str) -> Prepare:
    return lambda place: [str(place / "model"), *options]


def give_foreign_options(*options: str) -> Prepare:
    return lambda place: [str(place / "model.pt"), *options]


def give_config_file(text: str) -> Prepare:
    def prepare(place: Path) -> list[str]:
        (place / "arguments.json").write_text(text)
        return [str(place / "model.pt"), "--family", "flash", "--config", str(place / "arguments.json")]

    return prepare


def give_folder_config(text: str | None = None, **changes: Any) -> Prepare:
    def prepare(place: Path) -> list[str]:
        path = place / "model" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}) if text is None else text)
        return [str(place / "model")]

    return prepare


def give_folder_without(name: str) -> Prepare:
    def prepare(place: Path) -> list[str]:
        (place / "model" / name).unlink()
        return [str(place / "model")]

    return prepare


BAD_INPUTS: dict[str, tuple[Prepare, str]] = {
    "missing file": (give_missing_file, "none.pt does not exist; give a checkpoint folder or a weights file"),
    "pickle, cut early": (give_truncated(".pt", 0.1), "cut.pt is not a whole PyTorch file"),
    "pickle, cut late": (give_truncated(".pt", 0.95), "cut.pt is not a whole PyTorch file"),
    "safetensors, cut early": (give_truncated(".safetensors", 0.1), "cut.safetensors is not a whole safetensors file"),
    "safetensors, cut late": (give_truncated(".safetensors", 0.95), "cut.safetensors is not a whole safetensors file"),
    "no bytes": (give_bytes("empty.pt", b""), "empty.pt is not a whole PyTorch file"),
    "random bytes": (give_bytes("random.bin", os.urandom(1000)), "random.bin is "),
    "unknown suffix": (give_bytes("model.h5", b"x"), "suffix '.h5'; weights are read from .safetensors, .pt"),
    "hostile pickle": (give_hostile_pickle, "never loaded because they can run code"),
    "missing tensor": (
        give_changed_tensor(lambda tensors: tensors.pop("to_logits.1.bias")),
        "1 missing (to_logits.1.bias); correct the config or give the right file",
    ),
    "extra tensor": (
        give_changed_tensor(lambda tensors: tensors.update(extra=torch.ones(1))),
        "1 unexpected (extra); correct the config",
    ),
    "misshapen tensor": (
        give_changed_tensor(lambda tensors: tensors.update({"layers.1.norm.g": torch.ones(2)})),
        "1 misshapen (layers.1.norm.g (2,) instead of (1,))",
    ),
    "NaN": (
        give_changed_tensor(lambda tensors: tensors["layers.1.norm.g"].fill_(float("nan"))),
        "layers.1.norm.g holds NaN or infinite values",
    ),
    "integers": (
        give_changed_tensor(lambda tensors: tensors.update({"layers.1.norm.g": torch.ones(1, dtype=torch.int32)})),
        "layers.1.norm.g is torch.int32; weights must be floating point",
    ),
    "rotary tables that differ": (
        give_changed_tensor(lambda tensors: tensors.update({"layers.1.rotary_pos_emb.freqs": torch.ones(10)})),
        "layers.1.rotary_pos_emb.freqs differs from layers.0.rotary_pos_emb.freqs",
    ),
    "foreign file, no family": (
        give_foreign_options("--set", "causal=true"),
        "weights do not tell group_size, shift_tokens, laplace_attn_fn; give ",
    ),
    "foreign file, no config": (
        give_foreign_options("--family", "flash"),
        "weights do not tell group_size, causal, shift_tokens, laplace_attn_fn, reduce_group_non_causal_attn; give ",
    ),
    "unknown family": (
        give_foreign_options("--family", "mamba", "--set", "a=1"),
        "unknown model family 'mamba'; this version knows flash, gau",
    ),
    "wrong family": (give_options("--family", "gau"), "--family gau, but"),
    "mistyped argument": (give_foreign_options(*FOREIGN, "--set", "grop_size=16"), "(did you mean group_size?)"),
    "unknown argument": (give_foreign_options(*FOREIGN, "--set", "heads=8"), "unknown argument 'heads'"),
    "argument against the weights": (
        give_foreign_options(*FOREIGN, "--set", "depth=3"),
        "depth=3, but the weights say 2; correct it or leave it out",
    ),
    "argument of another type": (
        give_foreign_options(*FOREIGN, "--set", "causal=yes"),
        "causal='yes' is not a boolean; use true or false",
    ),
    "set without =": (give_foreign_options("--family", "flash", "--set", "causal"), "write --set causal=true"),
    "set without name": (give_foreign_options("--family", "flash", "--set", "=1"), "write --set causal=true"),
    "config not there": (
        give_foreign_options("--family", "flash", "--config", "none.json"),
        "none.json cannot be read (No such file or directory); give --config a file with a JSON object",
    ),
    "config not JSON": (give_config_file("causal: true"), "arguments.json cannot be read as JSON"),
    "config nested too deeply": (give_config_file("[" * 100_000), "arguments.json cannot be read as JSON"),
    "config no object": (
        give_config_file("[1]"),
        "arguments.json holds a list, not a JSON object; give --config",
    ),
    "folder without config": (give_folder_without("config.json"), "has no readable config.json (No such file"),
    "folder without weights": (give_folder_without("model.safetensors"), "model.safetensors does not exist"),
    "folder config not JSON": (give_folder_config("{"), "config.json is not JSON"),
    "folder config no object": (give_folder_config("[]"), "config.json holds a list, not a JSON object"),
    "folder config, unknown family": (give_folder_config(model_type="mamba"), "unknown model family 'mamba'"),
    "folder config, unknown field": (give_folder_config(heads=8), "unknown config field heads"),
    "folder config, missing field": (give_folder_config('{"model_type": "flash"}'), "lacks vocab_size, dim, depth"),
    "folder config, bad value": (give_folder_config(dim=-2), "dim=-2 is not usable; use a whole number from 1"),
    "folder config against the weights": (give_folder_config(dim=16), "misshapen (token_emb.weight (17, 12) instead"),
    "set against the weights": (give_options("--set", "depth=1"), "unexpected (layers.1.norm.g"),
    "opset too low": (give_options("--opset", "17"), "17 is not in the range 18<=x<=23; see 'main onnx --help'"),
    "opset too high": (give_options("--opset", "24"), "24 is not in the range 18<=x<=23"),
    "opset no number": (give_options("--opset", "new"), "'new' is not a valid integer range"),
    "length 0": (give_options("--max-seq-len", "0"), "max_seq_len=0 is not usable; use at least 1"),
    "batch below 0": (
        give_options("--max-batch", "-1"),
        "max_batch=-1 is not usable; use at least 1",
    ),
}


@pytest.mark.parametrize(("prepare", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input_is_one_line_and_nothing_is_written(place: Path, prepare: Prepare, message: str) -> None:
    arguments = prepare(place)
    with nothing_written(place):
        check_refused(invoke(*arguments, "-o", place / "out"), message)


@pytest.mark.parametrize("name", ["missing file", "hostile pickle", "missing tensor", "folder config, bad value"])
def test_bad_input_leaves_an_old_bundle_whole(place: Path, bundle: Bundle, name: str) -> None:
    prepare, message = BAD_INPUTS[name]
    arguments = prepare(place)
    with nothing_written(place):
        check_refused(invoke(*arguments, "-o", bundle.path, "--force"), message)
    Bundle.open(bundle.path)


def test_bad_input_to_the_installed_script(place: Path) -> None:
    arguments = [str(SCRIPT), "onnx", *give_truncated(".pt", 0.5)(place), "-o", str(place / "out"), "--quiet"]
    with nothing_written(place):
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: {place / 'cut.pt'} is not a whole PyTorch file")
    assert result.stderr.count("\n") == 1


def test_traceback_is_shown_when_asked_for(place: Path) -> None:
    result = CliRunner().invoke(main, ["--traceback", "onnx", str(place / "none.pt"), "-o", str(place / "out")])
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "flash_export.errors.CheckpointError: " in result.stderr


# --- outputs that cannot be written


def test_output_below_a_file(place: Path) -> None:
    with nothing_written(place):
        result = invoke(place / "model", "-o", place / "model.pt" / "out")
    check_refused(result, f"{place / 'model.pt'} is a file; give the name of a folder to create")


def test_output_that_may_not_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with nothing_written(place):
        result = invoke(place / "model", "-o", place / "out")
    check_refused(result, "out: Permission denied; choose a folder that you may write to")


def test_output_with_a_name_that_is_too_long(place: Path) -> None:
    with nothing_written(place):
        result = invoke(place / "model", "-o", place / ("x" * 300))
    check_refused(result, "File name too long; correct the path")


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_output_is_a_file(place: Path, force: list[str]) -> None:
    with nothing_written(place):
        result = invoke(place / "model", "-o", place / "model.pt", *force)
    check_refused(result, "model.pt is a file; give the name of a folder to create")


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_output_holds_other_files(place: Path, force: list[str]) -> None:
    with nothing_written(place):
        result = invoke(place / "model", "-o", place / "model", *force)
    check_refused(result, "model holds other files and is no bundle; choose another folder")


def test_output_is_the_current_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    with nothing_written(place):
        result = invoke(place / "model", "-o", ".")
    check_refused(result, "here is the current folder, which cannot be replaced; give the name of a folder in it")


def fail_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_half(_: object, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"half a graph")
    fail_full()


def write_text_but_no_manifest(path: Path, text: str, **options: Any) -> int:
    if path.name == "manifest.json":
        fail_full()
    with path.open("w", **options) as stream:
        return stream.write(text)


DISK_FULL = {
    "weights": ("flash_export.models.base.save_file", fail_full),
    "graph": ("flash_export.exporters.export.write_models", write_half),
    "manifest": ("pathlib.Path.write_text", write_text_but_no_manifest),
    "flush": ("os.fsync", fail_full),
    "rename": ("flash_export.files._exchange", fail_full),
}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("function", "fail"), DISK_FULL.values(), ids=DISK_FULL)
def test_full_disk_leaves_the_old_bundle(
    place: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, function: str, fail: Callable[..., object]
) -> None:
    with nothing_written(place):
        with monkeypatch.context() as context:
            context.setattr(function, fail)
            result = invoke(place / "model", "-o", bundle.path, "--force")
        check_refused(result, "cannot write", "No space left on device", "free some space")
    Bundle.open(bundle.path)


def test_write_error_of_the_system_leaves_the_old_bundle(place: Path, bundle: Bundle) -> None:
    """Not simulated: the system refuses to write more than 4 KiB into one file."""
    arguments = [str(SCRIPT), "onnx", str(place / "model"), "-o", str(bundle.path), "--force", "--quiet"]
    with nothing_written(place):
        result = subprocess.run(
            ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *arguments], capture_output=True, text=True, check=False
        )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: cannot write ")
    assert "File too large" in result.stderr
    assert result.stderr.count("\n") == 1
    Bundle.open(bundle.path)


def test_interrupt_leaves_the_old_bundle(place: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flash_export.exporters.export.lower_model", interrupt)
    with nothing_written(place):
        result = invoke(place / "model", "-o", bundle.path, "--force")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_bundle_whose_files_were_changed_is_no_checkpoint(bundle: Bundle, tmp_path: Path, name: str) -> None:
    with (bundle.path / name).open("ab") as stream:
        stream.write(b" ")  # JSON takes it
    result = invoke(bundle.path, "-o", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{name} was changed after the export: sha256 " in result.stderr
    assert not (tmp_path / "out").exists()
