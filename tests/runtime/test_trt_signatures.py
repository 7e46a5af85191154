"""Every call that we make of TensorRT fits the signatures of each version that we speak of, and so does our stand-in.

TensorRT 10.13 is told by its type stubs, 11.4 by a file that read_trt_signatures.py wrote, TensorRT-RTX by itself.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime import trt_stub
from tests.runtime.read_trt_signatures import CLASSES, Api, Signature, read_json, read_module, read_stubs
from tests.runtime.test_trt_session import compute, make_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent.parent
TENSORRT_11 = Path(__file__).parent / "tensorrt-11.4.json"
STUBS = "tensorrt-stubs==10.13.0.35.1"
# Where TensorRT is spoken to.
SOURCES = (
    *("flash_export/runtime/trt_*.py", "flash_export/runtime/engine_check.py"),
    *("examples/run_engine.py", "exporters/engine.py", "exporters/engine_*.py", "exporters/engine_report/network.py"),
)
# Their names are those of methods of TensorRT too.
OF_OURS = {"run_on_device"}
RTX_ALONE = {
    "set_compute_capability",
    "create_runtime_cache",
    "deserialize",
    "set_runtime_cache",
    "get_engine_validity",
    "cuda_graph_strategy",
    "dynamic_shapes_kernel_specialization_strategy",
    "num_compute_capabilities",
}


def list_files() -> list[Path]:
    return sorted({path for pattern in SOURCES for path in ROOT.glob(pattern)})


def list_calls() -> Iterator[tuple[str, str, int, set[str]]]:
    """Yield where, the method, how many positional arguments and which keywords, of every call with plain arguments."""
    for path in list_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_plain = not any(isinstance(one, ast.Starred) for one in node.args)
                keywords = {one.arg for one in node.keywords}
                if is_plain and None not in keywords:
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield where, node.func.attr, len(node.args), {name for name in keywords if name}


def list_attributes() -> set[str]:
    """Return every name that follows a dot in code that speaks to TensorRT."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in list_files())
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.fixture(scope="module")
def rtx() -> Api:
    return read_module(pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed"))


@pytest.fixture(scope="module")
def tensorrt_10() -> Api:
    folder = ROOT / ".venv" / "oracles" / STUBS
    assert folder.is_dir() or "CI" not in os.environ
    return read_stubs(folder / "tensorrt_bindings" / "tensorrt.pyi")


@pytest.fixture(scope="module")
def tensorrt_11() -> Api:
    return read_json(TENSORRT_11)


@pytest.fixture(params=["rtx", "tensorrt_10", "tensorrt_11"])
def api(request: pytest.FixtureRequest) -> Api:
    found: Api = request.getfixturevalue(request.param)
    return found


def find_methods(api: Api, name: str) -> list[tuple[str, list[Signature]]]:
    return [(kind, overloads) for kind in api if (overloads := api[kind].get(name)) is not None]


def test_signatures_are_read(api: Api) -> None:
    assert {"Builder", "ICudaEngine", "IExecutionContext", "IShuffleLayer"} <= api.keys() <= set(CLASSES)
    (memory,) = api["IExecutionContext"]["set_device_memory"] or []
    assert memory.names == ("memory", "size")
    assert memory.takes(2, set())
    assert memory.takes(1, {"size"})
    assert not memory.takes(1, set())
    assert not memory.takes(3, set())
    assert not memory.takes(2, {"size"})
    assert not memory.takes(2, {"other"})
    assert api["IBuilderConfig"]["progress_monitor"] is None


def test_every_call_fits(api: Api) -> None:
    seen = set()
    for where, name, num_positional, keywords in list_calls():
        if name in OF_OURS:
            continue
        methods = find_methods(api, name)
        seen |= {name for _ in methods}
        fits = [kind for kind, overloads in methods if any(one.takes(num_positional, keywords) for one in overloads)]
        assert fits or not methods, f"{where}: {name} of {', '.join(kind for kind, _ in methods)} takes no such call"
    wanted = {
        "create_network",
        "build_serialized_network",
        "set_shape",
        "execute_async_v3",
        "get_layer",
        "set_input_shape",
    }
    assert wanted <= seen


def test_what_tensorrt_lacks_is_asked_for_in_one_place_alone(rtx: Api, tensorrt_10: Api, tensorrt_11: Api) -> None:
    """What TensorRT-RTX has and TensorRT has not is used, and behind the one object that tells them apart."""
    used = list_attributes()

    def list_used(api: Api) -> set[str]:
        return {name for members in api.values() for name in members if name in used}

    assert list_used(rtx) - list_used(tensorrt_11) == RTX_ALONE
    # 10.13 has what 11.4 has of this.
    assert list_used(tensorrt_11) <= list_used(tensorrt_10) | {"__init__"}
    for path in list_files():
        if path.name != "trt_features.py":
            names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            assert not names & RTX_ALONE, path


STAND_INS = {
    **{name: kind for name, kind in vars(trt_stub).items() if name in CLASSES},
    "Runtime": trt_stub.Plan(make_manifest(), compute, kernels=True).make_module().Runtime,
}


@pytest.mark.parametrize("name", STAND_INS)
def test_the_stand_in_has_the_signatures_of_tensorrt(rtx: Api, name: str) -> None:
    for method, function in inspect.getmembers(STAND_INS[name], inspect.isfunction):
        if method == "__init__" or method[0] == "_":
            continue
        overloads = rtx[name][method]
        assert overloads is not None, f"{name}.{method} is no method"
        parameters = tuple(inspect.signature(function).parameters)[1:]
        # A stand-in takes what our code gives, in the order of the real one.
        assert any(one.names[: len(parameters)] == parameters for one in overloads), (name, method, overloads)


@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt-11.4"])
def test_enums_have_the_members_that_are_named(module: str) -> None:
    if module == "tensorrt_rtx":
        trt = pytest.importorskip(module, reason="tensorrt_rtx is not installed")
        enums = {name: set(getattr(value, "__members__", ())) for name, value in vars(trt).items()}
    else:
        enums = {name: set(members) for name, members in json.loads(TENSORRT_11.read_text())["enums"].items()}
    found = 0
    for path in list_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            inner = node.value if isinstance(node, ast.Attribute) else None
            if isinstance(node, ast.Attribute) and isinstance(inner, ast.Attribute) and enums.get(inner.attr):
                assert node.attr in enums[inner.attr] | {"__members__"}, f"{path.name}:{node.lineno}"
                found += 1
    assert found >= 5


def test_the_stand_ins_enums_are_tensorrts() -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    for name, value in vars(trt_stub).items():
        if isinstance(value, type) and hasattr(value, "__members__") and hasattr(trt, name):
            assert set(value.__members__) <= set(getattr(trt, name).__members__), name
    importlib.invalidate_caches()
