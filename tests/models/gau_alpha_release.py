"""gau-alpha 0.0.3's own model files, without what the package depends on.

transformers is not there: what these files take from it, a config, a base class that ties the decoder to the embedding
and records of outputs, is replaced by a few lines. What computes is the package's own text.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

ORACLES = Path(sys.prefix) / "oracles"
RELEASE = "gau-alpha==0.0.3"


def import_gau_alpha() -> Any:
    """Import the module of the models, and leave none behind; skips where no oracle was installed at all."""
    if not ORACLES.is_dir():
        pytest.skip(f"{ORACLES} does not exist; make test installs it")
    folder = ORACLES / RELEASE / "gau_alpha"
    before = dict(sys.modules)
    with _write_no_bytecode():
        try:
            sys.modules.update(_make_stubs())
            package = types.ModuleType("gau_alpha")
            package.__path__ = [str(folder)]
            sys.modules["gau_alpha"] = package
            module = importlib.import_module("gau_alpha.modeling_gau_alpha")
        finally:
            for name in sys.modules.keys() - before.keys():
                del sys.modules[name]
    assert Path(str(module.__file__)).is_relative_to(folder)
    return module


@contextlib.contextmanager
def _write_no_bytecode() -> Iterator[None]:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


class _Config:
    output_attentions = output_hidden_states = False
    use_return_dict = True

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class _Model(nn.Module):
    base_model_prefix: str

    def __init__(self, config: _Config) -> None:
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        """Tie the decoder to the embedding, as transformers does unless the config says otherwise."""
        if hasattr(self, "get_output_embeddings"):
            base = getattr(self, self.base_model_prefix)
            decoder: Any = getattr(self, "get_output_embeddings")()  # noqa: B009
            decoder.weight = base.get_input_embeddings().weight


class _Output:
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def __getitem__(self, index: int) -> Any:
        return [value for value in vars(self).values() if value is not None][index]


def _get_activation(name: str) -> nn.Module:
    return {"swish": nn.SiLU()}[name]


def _make_stubs() -> dict[str, types.ModuleType]:
    names = ("BaseModelOutput", "MaskedLMOutput", "MultipleChoiceModelOutput", "QuestionAnsweringModelOutput")
    more = ("SequenceClassifierOutput", "TokenClassifierOutput")
    values: dict[str, dict[str, Any]] = {
        "transformers": {},
        "transformers.activations": {"get_activation": _get_activation},
        "transformers.configuration_utils": {"PretrainedConfig": _Config},
        "transformers.modeling_outputs": dict.fromkeys((*names, *more), _Output),
        "transformers.modeling_utils": {"PreTrainedModel": _Model, "SequenceSummary": nn.Identity},
        "transformers.utils": {"logging": types.SimpleNamespace(get_logger=lambda name: None)},
    }
    stubs = {}
    for name, attributes in values.items():
        stubs[name] = types.ModuleType(name)
        vars(stubs[name]).update(attributes)
    return stubs
