"""Damage: what a disk, a transfer, an editor or an attacker makes of a file.

Each mutation takes a random generator and the content of a file, and returns another content. The same generator gives
the same damage.
"""

from __future__ import annotations

import ast
import io
import json
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    Mutation = Callable[[Random, bytes], bytes]

_NESTED: Any = "deep"
for _ in range(200):
    _NESTED = [_NESTED]

# Values that have surprised somebody's program: empty, huge, negative, not finite, deep, no text, paths, markup.
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 255, 2**31, 2**53, 2**63, -(2**63), 10**400),
    *(0.0, -0.5, 1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf")),
    *("", "x", "0", "fp32", "int8", "forward", "seq", "../../outside/secret", "/etc/hostname", "a\x00b", "..", "."),
    *("\n\x1b[2J\x07", "[/red][bold]", "\ud800", "‮abc", "é" * 300, "x" * 200_000, "{}", "%s%n", "NaN"),
    *([], {}, [[]], [None], {"": {}}, [-1], [10**12] * 3, _NESTED, {"x" * 5000: 1}),
)


def mutate_bytes(rng: Random, content: bytes) -> bytes:
    """Flip, cut, insert, repeat or overwrite bytes; one to four times."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        position = rng.randint(0, len(data))
        length = min(rng.choice((1, 1, 2, 8, 100)), len(data) - position)
        kind = rng.randrange(7)
        if kind == 0 and length:
            data[position] ^= 1 << rng.randrange(8)
        elif kind == 1 and length:
            data[position] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[position:]
        elif kind == 3:
            del data[position : position + length]
        elif kind == 4:
            data[position:position] = rng.randbytes(length or 1)
        elif kind == 5:
            data[position:position] = data[position : position + length] * rng.choice((1, 3, 50))
        else:
            data[position : position + length] = rng.choice((b"\x00", b"\xff")) * length
    return rng.choice((b"", b"\x00", b"\n", b"\xff" * 64)) if rng.random() < 0.02 else bytes(data)


def mutate_json(rng: Random, content: bytes) -> bytes:
    """Put junk in place of a value, drop, add, repeat or exchange fields; or damage the text itself."""
    choice = rng.random()
    if choice < 0.15:
        return mutate_bytes(rng, content)
    if choice < 0.20:
        return content.replace(b"{", b'{"x": 1, "x": 2, ', 1)
    if choice < 0.24:
        return b"[" * rng.choice((50, 5_000, 200_000))
    if choice < 0.26:
        return json.dumps(rng.choice(JUNK)).encode()
    values = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change_value(rng, values)
    return json.dumps(values).encode()


def _change_value(rng: Random, values: Any) -> None:
    """Change one place, every depth being as likely."""
    while True:
        names = list(values) if isinstance(values, dict) else list(range(len(values)))
        if not names:
            return
        name = rng.choice(names)
        child = values[name]
        if isinstance(child, (dict, list)) and child and rng.random() < 0.75:
            values = child
            continue
        kind = rng.randrange(8)
        if kind == 0:
            del values[name]
        elif kind == 1 and isinstance(values, dict):
            values[rng.choice(("x", "", "\n", "x" * 3000))] = rng.choice(JUNK)
        elif kind == 2:
            values[name] = values[rng.choice(names)]
        elif kind == 3 and isinstance(child, list):
            values[name] = child * 3
        elif kind == 4 and isinstance(child, (int, float)) and abs(child) < 2**53:
            values[name] = rng.choice((-child, child + 1, child * 1000, child / 7))
        else:
            values[name] = rng.choice(JUNK)
        return


def mutate_lines(rng: Random, content: bytes) -> bytes:
    """Damage a line of JSON lines, or their order."""
    lines = content.splitlines()
    index = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        del lines[index]
    elif kind == 1:
        lines.insert(rng.randrange(len(lines)), lines[index])
    elif kind == 2:
        lines[index] = mutate_bytes(rng, lines[index])
    else:
        lines[index] = mutate_json(rng, lines[index])
    return b"\n".join(lines) + b"\n"


def mutate_safetensors(rng: Random, content: bytes) -> bytes:
    """Change the header, which says what the bytes are, or any bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    (size,) = struct.unpack("<Q", content[:8])
    header = mutate_json(rng, content[8 : 8 + size])
    length = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 2**40, 2**63))
    return struct.pack("<Q", length) + header + content[8 + size :]


def mutate_zip(rng: Random, content: bytes) -> bytes:
    """Change a member of an archive, its name, or the bytes of the archive."""
    if rng.random() < 0.5:
        return mutate_bytes(rng, content)
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as archive:
        members = source.namelist()
        changed = rng.choice(members)
        for name in members:
            data = source.read(name)
            if name == changed and rng.random() < 0.2:
                continue
            archive.writestr(name, mutate_bytes(rng, data) if name == changed else data)
    return target.getvalue()


def mutate_array(rng: Random, content: bytes) -> bytes:
    """Change the header of a ``.npy``, make another array, an archive, or a pickle of it."""
    kind = rng.randrange(6)
    if kind == 0:
        return mutate_bytes(rng, content)
    if kind == 1:
        (length,) = struct.unpack("<H", content[8:10])
        header: dict[str, Any] = ast.literal_eval(content[10 : 10 + length].decode())
        name = rng.choice(("descr", "fortran_order", "shape", "x"))
        header[name] = rng.choice(
            ((2**40,), (-1,), (), (2**62, 2**62), "<f8", "|O", "<i1", [("a", "<i4")], "<M8[s]", True, None, "x" * 9000)
        )
        text = f"{header}\n".encode()
        return content[:8] + struct.pack("<H", len(text) & 0xFFFF) + text + content[10 + length :]
    target = io.BytesIO()
    if kind == 2:
        np.savez(target, np.arange(100))
    elif kind == 3:
        np.save(target, np.array([{"code": 1}] * 100, object), allow_pickle=True)
    else:
        ids = np.array([rng.choice((0, 1, 255, 256, -1, 2**40)) for _ in range(rng.choice((0, 1, 63, 64, 300)))])
        np.save(target, ids.astype(rng.choice(("u1", "i8", "u8", "f4", "?", "c8", "U3", "M8[s]"))))
    return target.getvalue()


def mutate_text(rng: Random, content: bytes) -> bytes:
    """Make text that is short, the same all over, binary, or of another encoding."""
    size = rng.choice((0, 1, 63, 64, 65, 200, 3000))
    return rng.choice(
        (
            b"a" * size,
            rng.randbytes(size),
            content[:size].decode("latin-1").encode("utf-16"),
            b"\xff" * size,
            bytes(range(256)) * 4,
            mutate_bytes(rng, content),
        )
    )


def mutate_graph(rng: Random, content: bytes) -> bytes:
    """Change a name, a size, a type or a node of an ONNX graph, or any bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    value = rng.choice([*graph.input, *graph.output])
    name = rng.choice(("", "x", "input_ids", "logits", "state.x", "\n\x1b[2J", "[/red]", "x" * 50_000, "mask", "é"))
    kind = rng.randrange(14)
    if kind == 0:
        value.name = name
    elif kind == 1:
        node.op_type = rng.choice(("", "If", "Relu", "NoSuchThing", "Constant", name))
    elif kind == 2 and node.input:
        node.input[rng.randrange(len(node.input))] = name
    elif kind == 3 and node.output:
        node.output[0] = name
    elif kind == 4:
        del graph.node[rng.randrange(len(graph.node)) :]
    elif kind == 5:
        tensor.data_type = rng.choice((0, 1, 7, 8, 10, 16, 99))
    elif kind == 6:
        tensor.dims[:] = rng.choice(([], [-1], [2**40, 2**40], [0], [1]))
    elif kind == 7:
        value.type.tensor_type.elem_type = rng.choice((0, 1, 6, 8, 10, 14, 99))
    elif kind == 8:
        del value.type.tensor_type.shape.dim[rng.randrange(2) :]
    elif kind == 9:
        model.opset_import[0].version = rng.choice((0, 1, 7, 99, 2**40))
    elif kind == 10:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", rng.choice(("../outside/secret", "/etc/hostname", "x", ""))), ("length", name)):
            tensor.external_data.add(key=key, value=text)
    elif kind == 11:
        model.producer_name = name
        node.name = name
    elif kind == 12:
        node.domain = name
    else:
        for attribute in node.attribute:
            attribute.i = rng.choice((-1, 2**40, 0))
    return model.SerializeToString()
