"""The twelve systems: what each is, and that they are of equal size."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flash_export.errors import ConfigError
from flash_export.models.registry import FAMILIES
from flash_export.study.systems import SYSTEMS, Size, build_config, count_parameters

DEFAULT = Size()


def build(name: str, size: Size = DEFAULT, *, masked: bool = False) -> dict[str, object]:
    causal = not masked and not SYSTEMS[name].is_bidirectional_only
    return build_config(name, size, vocab_size=257, causal=causal).to_dict()


def test_there_are_the_twelve_of_the_paper() -> None:
    assert [system.title for system in SYSTEMS.values()] == [
        "Transformer",
        "Transformer with GLU",
        "Transformer++",
        "GAU (FLASH-Quad)",
        "FLASH",
        "MC-TFM++",
        "FLASH, local only",
        "FLASH, global only",
        "Performer",
        "Linformer",
        "Longformer",
        "BigBird",
    ]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("transformer", {"model_type": "transformer", "ff_type": "mlp", "positions": "sinusoid"}),
        ("transformer-glu", {"model_type": "transformer", "ff_type": "swiglu", "positions": "sinusoid"}),
        ("transformer++", {"model_type": "transformer", "ff_type": "swiglu", "positions": "rotary"}),
        ("mc-tfm++", {"model_type": "mc_tfm", "ff_type": "swiglu", "positions": "rotary", "chunk_size": 128}),
        ("flash", {"model_type": "flash", "branches": "both", "depth": 10, "chunk_size": 128}),
        ("flash-local", {"model_type": "flash", "branches": "local"}),
        ("flash-global", {"model_type": "flash", "branches": "global"}),
        ("longformer", {"model_type": "longformer", "reach": 128, "depth": 5}),
        ("bigbird", {"model_type": "bigbird", "block_size": 64}),
    ],
)
def test_a_system_is_what_it_is_called(name: str, fields: dict[str, object]) -> None:
    assert fields.items() <= build(name).items()


@settings(max_examples=8)
@given(
    st.builds(
        Size,
        dim=st.sampled_from((48, 96, 128, 192)),
        depth=st.integers(2, 6),
        num_heads=st.sampled_from((2, 4)),
        qk_dim=st.sampled_from((16, 64)),
        chunk_size=st.sampled_from((32, 128)),
        parameters=st.none() | st.integers(400_000, 4_000_000),
    ),
    st.booleans(),
)
def test_all_have_as_many_parameters(size: Size, masked: bool) -> None:
    names = [name for name, system in SYSTEMS.items() if masked or not system.is_bidirectional_only]
    try:
        configs = [build_config(name, size, vocab_size=257, causal=not masked) for name in names]
    except ConfigError as error:
        assume("fewer than" not in str(error))
        raise
    counts = [count_parameters(config).constant for config in configs]
    assert max(counts) <= 1.02 * min(counts), dict(zip(names, counts, strict=True))


def test_what_grows_with_the_length_is_counted_apart() -> None:
    short, long = (
        count_parameters(build_config("linformer", Size(max_positions=n), vocab_size=257, causal=False))
        for n in (512, 1024)
    )
    assert long.constant == short.constant
    assert long.growing == 2 * short.growing == 2 * 5 * 512 * 64
    config = build_config("flash", DEFAULT, vocab_size=256, causal=True)
    assert count_parameters(config).growing == 0
    model = FAMILIES["flash"].model_class(config)
    assert count_parameters(config).constant == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("flesh", DEFAULT, "unknown system 'flesh'; there are .*flash"),
        ("linformer", DEFAULT, "system linformer has no causal form; give objective masked"),
        ("flash", Size(parameters=1000), "parameters=1,000 are fewer than the"),
        ("transformer", Size(dim=30, num_heads=4), "dim=30 cannot be shared between num_heads=4"),
    ],
)
def test_what_cannot_be_is_refused(name: str, size: Size, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(name, size, vocab_size=257, causal=True)
    with pytest.raises(ConfigError, match="dim=0 is not usable; use a whole number from 1 on"):
        Size(dim=0)
