"""Engines that were built before: found again, checked, limited in size, and built once for processes at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flash_export.bundle.bundle import Bundle
from flash_export.config import BuildOptions
from flash_export.errors import BundleError, ConfigError, EngineBuildError
from flash_export.exporters import engine as engine_module
from flash_export.exporters.engine import build_engine
from flash_export.exporters.engine_cache import EngineCache
from flash_export.files import hash_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    BundleFactory = Callable[..., Bundle]

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

ADA = BuildOptions(compute_capabilities=("8.9",), overwrite=True)


def make_model(factor: float = 1.0) -> onnx.ModelProto:
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", 4])
    weight = numpy_helper.from_array(np.full((1, 4, 4), factor, np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])], "tiny", [source], [result], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def bundle(write_graph_bundle: BundleFactory) -> Bundle:
    return write_graph_bundle(make_model())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASH_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def list_entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_unchanged_build_is_found_again(bundle: Bundle, folder: Path) -> None:
    first = build_engine(bundle, options=ADA)
    assert not first.is_from_cache
    again = build_engine(bundle, options=replace(ADA, name="again"))
    assert again.is_from_cache
    assert replace(again.engine, name="forward") == first.engine
    assert hash_file(bundle.get_engine_path(again.engine)) == first.engine.engine_sha256
    assert len(list_entries(folder)) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "changes",
    [{"tf32": True}, {"workspace_bytes": 1 << 30}, {"profiles": ("1x1:1x2:1x3",)}, {"compute_capabilities": ("12.0",)}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_an_engine_depends_on_is_in_its_key(bundle: Bundle, changes: dict[str, Any]) -> None:
    build_engine(bundle, options=ADA)
    assert not build_engine(bundle, options=replace(ADA, **changes)).is_from_cache


@pytest.mark.parametrize("external_data", [False, True])
def test_other_weights_are_another_engine(
    write_graph_bundle: BundleFactory, tmp_path: Path, folder: Path, external_data: bool
) -> None:
    for factor in (1.0, 2.0):
        bundle = write_graph_bundle(make_model(factor), external_data=external_data)
        assert not build_engine(bundle, options=ADA).is_from_cache
        bundle.path.rename(tmp_path / str(factor))
    assert len(list_entries(folder)) == 2


def test_another_version_is_another_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_rtx

    build_engine(bundle, options=ADA)
    monkeypatch.setattr(tensorrt_rtx, "__version__", "9.9.9")
    assert not build_engine(bundle, options=ADA).is_from_cache


def test_without_the_cache_nothing_is_taken_or_kept(bundle: Bundle, folder: Path) -> None:
    build_engine(bundle, options=ADA)
    assert not build_engine(bundle, options=replace(ADA, cache=False)).is_from_cache
    assert len(list_entries(folder)) == 1


@pytest.mark.parametrize("name", ["engine", "engine.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_entry_is_built_again(
    bundle: Bundle, folder: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = build_engine(bundle, options=ADA)
    (entry,) = folder.iterdir()
    path = entry / name
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-9] + b"}")
    else:
        path.unlink()
    second = build_engine(bundle, options=ADA)
    assert not second.is_from_cache
    assert second.engine.engine_sha256 == first.engine.engine_sha256
    if (name, damage) != ("engine.json", "missing"):
        assert "An engine in the cache is not used" in caplog.text
    assert build_engine(bundle, options=ADA).is_from_cache


def test_a_failed_build_leaves_no_entry(bundle: Bundle, folder: Path) -> None:
    with pytest.raises(EngineBuildError):
        build_engine(bundle, options=replace(ADA, compute_capabilities=("7.5",)))
    assert list_entries(folder) == []


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    cache = EngineCache(tmp_path / "engines", limit_bytes=2500)
    keys = [f"{index:064x}" for index in range(3)]
    made = build_small_engine()

    def fetch(key: str) -> bool:
        return cache.fetch(key, lambda: made)[2]

    size = len(made[1]) + len(made[0].to_json())
    cache = replace(cache, limit_bytes=int(2.5 * size))
    for age, key in ((30, keys[0]), (20, keys[1])):
        assert not fetch(key)
        os.utime(cache.folder / key, (time.time() - age,) * 2)
    assert fetch(keys[0])  # used again: now the other one is the oldest
    assert not fetch(keys[2])
    assert list_entries(cache.folder) == [keys[0], keys[2]]
    # One that is larger than the limit is kept alone.
    assert not replace(cache, limit_bytes=1).fetch(keys[1], lambda: made)[2]
    assert list_entries(cache.folder) == [keys[1]]


def build_small_engine() -> tuple[Any, bytes]:
    import hashlib

    from tests.runtime.test_trt import make_engine

    content = b"engine" * 100
    return make_engine(engine_sha256=hashlib.sha256(content).hexdigest()), content


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(bundle: Bundle, folder: Path, mode: int) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=r"others can write to .*engines.*chmod go-w"):
        build_engine(bundle, options=ADA)
    build_engine(bundle, options=replace(ADA, cache=False))


def test_a_folder_that_cannot_be_made_is_a_warning(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLASH_EXPORT_CACHE", str(tmp_path / "file"))
    assert not build_engine(bundle, options=ADA).is_from_cache
    assert "Nothing is kept for the next time" in caplog.text


@pytest.mark.parametrize("limit", ["", "-1", "ten", "1e3"])
def test_a_limit_that_is_no_size_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("FLASH_EXPORT_CACHE_GIB", limit)
    with pytest.raises(ConfigError, match="is no size in GiB; write it like 10"):
        build_engine(bundle, options=ADA)


BUILD = """
    import sys, time
    from dataclasses import replace
    from flash_export.bundle.bundle import Bundle
    from flash_export.config import BuildOptions
    from flash_export.exporters import engine

    make = engine._build
    def build(*arguments):
        print("building", flush=True)
        time.sleep({pause})
        return make(*arguments)
    engine._build = build
    options = BuildOptions(compute_capabilities=("8.9",), overwrite=True, name=sys.argv[1])
    print(engine.build_engine(Bundle.open({path!r}), options=options).is_from_cache)
"""


def start_build(bundle: Bundle, name: str, pause: float = 0.0) -> subprocess.Popen[str]:
    script = textwrap.dedent(BUILD.format(path=str(bundle.path), pause=pause))
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_builds_of_one_engine_at_once_build_once(bundle: Bundle, folder: Path) -> None:
    builds = [start_build(bundle, name, pause=1.0) for name in ("one", "two")]
    outputs = [build.communicate(timeout=120) for build in builds]
    assert [build.returncode for build in builds] == [0, 0], outputs
    assert sorted(stdout.split() for stdout, _ in outputs) == [["True"], ["building", "False"]]
    assert len(list_entries(folder)) == 1
    assert {engine.name for engine in bundle.list_engines()} == {"one", "two"}


def test_a_build_that_is_killed_hands_its_place_on(bundle: Bundle, folder: Path) -> None:
    killed = start_build(bundle, "one", pause=60.0)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "building\n"
    waiting = start_build(bundle, "two")
    time.sleep(0.2)
    killed.kill()
    stdout, stderr = waiting.communicate(timeout=120)
    assert stdout.split() == ["building", "False"], stderr
    killed.communicate()
    assert len(list_entries(folder)) == 1
    assert [engine.name for engine in bundle.list_engines()] == ["two"]


@pytest.mark.slow
def test_killed_at_any_moment_leaves_nothing_broken(bundle: Bundle, folder: Path) -> None:
    """SIGKILL at 20 random moments between the start of a build and its usual end."""
    started = time.monotonic()
    first = start_build(bundle, "first")
    first.communicate()
    assert first.returncode == 0
    whole = time.monotonic() - started
    draw = random.Random(0)
    outcomes = []
    for _ in range(20):
        for entry in folder.iterdir():
            for path in entry.iterdir():
                path.unlink()
        build = start_build(bundle, "killed")
        time.sleep(draw.uniform(0, 1.1 * whole))
        build.send_signal(signal.SIGKILL)
        build.communicate()
        outcomes.append(build.returncode)
        opened = Bundle.open(bundle.path)
        for engine in opened.list_engines():
            assert hash_file(opened.get_engine_path(engine)) == engine.engine_sha256
        # No lock is stuck, and what is in the cache is whole or built again.
        after = build_engine(opened, options=replace(ADA, name="after"))
        assert hash_file(opened.get_engine_path(after.engine)) == after.engine.engine_sha256
        assert build_engine(opened, options=ADA).is_from_cache
        assert len(list_entries(folder)) == 1
    assert outcomes.count(-signal.SIGKILL) >= 10, "hardly a build was killed while it ran"


def test_an_error_of_a_build_is_no_entry_for_the_next(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> Any:
        raise BundleError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "_build", stop)
        with pytest.raises(BundleError, match="stopped"):
            build_engine(bundle, options=ADA)
    assert list_entries(folder) == []
    assert not build_engine(bundle, options=ADA).is_from_cache
