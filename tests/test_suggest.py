"""Mistyped names get the one that was probably meant, wherever a name is looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flash_export.config import BuildOptions, ExportOptions, QuantizeOptions
from flash_export.errors import FlashExportError
from flash_export.models.flash import FlashConfig
from flash_export.models.registry import get_family
from flash_export.suggest import describe_unknown, list_known, suggest
from flash_export.validators.backends import list_backends
from flash_export.validators.bisect.bisect import BisectOptions
from flash_export.validators.lengths import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.bundle.bundle import Bundle

CONFIG = FlashConfig(17, 12, 2, 24)


def make_config(**values: object) -> FlashConfig:
    return FlashConfig.from_dict({**CONFIG.to_dict(), **values})


@pytest.mark.parametrize(
    ("lookup", "meant"),
    [
        (lambda bundle: bundle.get_graph("foward"), "forward"),
        (lambda bundle: list_backends(bundle, ["ort-cup"]), "ort-cpu"),
        (lambda bundle: make_plan("quik", bundle.get_graph(), CONFIG.interface), "quick"),
        (lambda _: BisectOptions(backend="ortcuda"), "ort-cuda"),
        (lambda _: ExportOptions(precision="FP-16"), "fp16"),
        (lambda _: ExportOptions(precision="fp16", islands="minimum"), "minimal"),
        (lambda _: ExportOptions(graphs=("forward", "prefil")), "prefill"),
        (lambda _: QuantizeOptions(scheme="int8_token"), "int8-token"),
        (lambda _: BuildOptions(flavour="tensort"), "tensorrt"),
        (lambda _: get_family("flsh"), "flash"),
        (lambda _: make_config(chunksize=64), "chunk_size"),
        (lambda _: make_config(norm_type="layer_norm"), "layernorm"),
    ],
)
def test_every_lookup_suggests(causal_byte_bundle: Bundle, lookup: Callable[[Bundle], object], meant: str) -> None:
    with pytest.raises(FlashExportError) as error:
        lookup(causal_byte_bundle)
    assert f"(did you mean {meant}?)" in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_suggested_that_is_not_near() -> None:
    assert suggest("mamba", ("flash", "gau")) == ""
    assert suggest(None, ("flash", "gau")) == ""
    assert suggest("flash", ()) == ""
    assert list_known("mamba", ("flash", "gau")) == "flash, gau"


def test_names_may_come_from_an_iterator() -> None:
    assert describe_unknown("backend", "ort", iter(("ort-cpu",))) == (
        "unknown backend 'ort'; use one of ort-cpu (did you mean ort-cpu?)"
    )
