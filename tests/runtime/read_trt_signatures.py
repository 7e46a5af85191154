"""The signatures of a TensorRT package, read from what its bindings say of themselves.

Of a package without its libraries, such as tensorrt-cu13-bindings from PyPI, they can be read all the same: link empty
libraries of the names that it needs (libnvinfer.so.11, libnvinfer_plugin.so.11, libnvonnxparser.so.11) with the
functions that it asks for (``nm -D --undefined-only``) returning 0, put their folder into LD_LIBRARY_PATH, and run

    python tests/runtime/read_trt_signatures.py tensorrt_bindings > tests/runtime/tensorrt-VERSION.json
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# What our code has in its hands.
CLASSES = (
    *("Builder", "IBuilderConfig", "INetworkDefinition", "IOptimizationProfile", "OnnxParser", "ParserError"),
    *("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache", "EngineInspector"),
    *("ITensor", "ILayer", "ILogger", "IProgressMonitor"),
    *("IActivationLayer", "ICastLayer", "IConcatenationLayer", "IConstantLayer", "IConvolutionLayer"),
    *("ICumulativeLayer", "IDeconvolutionLayer", "IDequantizeLayer", "IElementWiseLayer", "IFillLayer", "IGatherLayer"),
    *("IMatrixMultiplyLayer", "INormalizationLayer", "IPaddingLayer", "IQuantizeLayer", "IReduceLayer"),
    *("IScatterLayer", "ISelectLayer", "IShapeLayer", "IShuffleLayer", "ISliceLayer", "ISoftMaxLayer", "ISqueezeLayer"),
    *("IUnaryLayer", "IUnsqueezeLayer", "IParametricReLULayer"),
)
_LINE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\) -> ", re.MULTILINE)


@dataclass(frozen=True)
class Signature:
    """The parameters of one overload, without ``self``: names, and those without a default."""

    names: tuple[str, ...]
    needed: tuple[str, ...]

    def takes(self, num_positional: int, keywords: set[str]) -> bool:
        """Tell whether it can be called so."""
        given = set(self.names[:num_positional])
        fits = num_positional <= len(self.names) and keywords <= set(self.names) and not given & keywords
        return fits and set(self.needed) <= given | keywords


# Of each class, the overloads of its methods; None: it is no method but a property.
Api = dict[str, dict[str, list[Signature] | None]]


def read_module(trt: Any) -> Api:
    """Read the signatures of an imported package."""
    found: Api = {}
    for name in CLASSES:
        if (kind := getattr(trt, name, None)) is None:
            continue
        members = {member: getattr(kind, member) for member in dir(kind) if member == "__init__" or member[0] != "_"}
        found[name] = {member: _read_doc(value) if callable(value) else None for member, value in members.items()}
    return found


def _read_doc(method: Any) -> list[Signature]:
    matches = _LINE.findall(inspect.getdoc(method) or "")
    # An overloaded one says ``name(*args, **kwargs)`` first.
    return [_parse(text) for _, text in matches if not text.startswith("*args")]


def _parse(text: str) -> Signature:
    text = re.sub(r"<[^<>]*>", "0", text)  # default values that are enums
    text = text.replace("::", ".")
    # Some have a parameter without a default after one that has one, which Python allows after a star.
    parsed = ast.parse(f"def f(*, {text}): ...").body[0]
    assert isinstance(parsed, ast.FunctionDef)
    pairs = [(one.arg, default) for one, default in zip(parsed.args.kwonlyargs, parsed.args.kw_defaults, strict=True)]
    names = tuple(name for name, _ in pairs if name != "self")
    return Signature(names, tuple(name for name, default in pairs if default is None and name != "self"))


def _read_arguments(function: ast.FunctionDef) -> Signature:
    names = tuple(one.arg for one in function.args.args if one.arg != "self")
    return Signature(names, names[: len(names) - len(function.args.defaults)])


def read_stubs(path: Path) -> Api:
    """Read the signatures of a file of type stubs."""
    found: Api = {}
    # The stubs of 10.13 are no valid Python as a whole, so that mypy cannot read them: there is a parameter called
    # ``in``, and one without a default after one that has one.
    text = path.read_text(encoding="utf-8").replace("channel_axis: int)", "channel_axis: int = ...)")
    for source in re.split(r"^(?=class )", text, flags=re.MULTILINE)[1:]:
        if re.split(r"\W", source, maxsplit=2)[1] not in CLASSES:
            continue
        kind = ast.parse(source).body[0]
        assert isinstance(kind, ast.ClassDef)
        members: dict[str, list[Signature] | None] = {}
        for one in kind.body:
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                members[one.target.id] = None
            elif isinstance(one, ast.ClassDef):
                members[one.name] = None
            elif isinstance(one, ast.FunctionDef):
                decorators = {getattr(node, "id", getattr(node, "attr", "")) for node in one.decorator_list}
                if decorators & {"property", "setter"}:
                    members[one.name] = None
                else:
                    members.setdefault(one.name, [])
                    members[one.name] = [*(members[one.name] or []), _read_arguments(one)]
        found[kind.name] = members
    return found


def read_json(path: Path) -> Api:
    """Read what this file wrote when it was run."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return {
        kind: {
            name: None if overloads is None else [Signature(tuple(names), tuple(needed)) for names, needed in overloads]
            for name, overloads in members.items()
        }
        for kind, members in values["classes"].items()
    }


def main() -> None:
    """Write the signatures of a package to stdout."""
    trt = importlib.import_module(sys.argv[1])
    classes = {
        kind: {
            name: None if overloads is None else [(one.names, one.needed) for one in overloads]
            for name, overloads in members.items()
        }
        for kind, members in read_module(trt).items()
    }
    enums = {
        name: sorted(members)
        for name, value in vars(trt).items()
        if isinstance(members := getattr(value, "__members__", None), dict) and name[0] != "_"
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(members)}" for name, members in classes.items()]
    shown = [f"  {json.dumps(name)}: {json.dumps(members)}" for name, members in sorted(enums.items())]
    version = json.dumps(trt.__version__)
    inner = ",\n".join(lines), ",\n".join(shown)
    print(f'{{"version": {version},\n"classes": {{\n{inner[0]}\n}},\n"enums": {{\n{inner[1]}\n}}}}')


if __name__ == "__main__":
    main()
