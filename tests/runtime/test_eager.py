from __future__ import annotations

import numpy as np
import pytest
import torch

from flash_export.errors import BackendUnavailableError, InputError
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.runtime.eager import EagerRunner


@pytest.fixture(scope="module")
def model() -> FlashModel:
    torch.manual_seed(0)
    return FlashModel(FlashConfig(vocab_size=11, dim=16, depth=1, hidden_dim=32, chunk_size=8, qk_dim=8)).eval()


def test_run_gives_what_the_model_gives(model: FlashModel) -> None:
    ids = np.arange(10, dtype=np.int64)[None]
    mask = (np.arange(10) < 6).astype(np.int64)[None]
    with EagerRunner(model) as runner:
        plain = runner.run({"input_ids": ids})["logits"]
        masked = runner.run({"input_ids": ids, "attention_mask": mask})["logits"]

    with torch.no_grad():
        assert np.array_equal(plain, model(torch.from_numpy(ids)).numpy())
        assert np.array_equal(masked, model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy())
    assert plain.dtype == np.float32
    assert runner.name == "eager"


def test_threads_are_put_back(model: FlashModel) -> None:
    before = torch.get_num_threads()
    with EagerRunner(model, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_wrong_names_are_refused(model: FlashModel) -> None:
    with EagerRunner(model) as runner:
        with pytest.raises(InputError, match="input_ids is missing"):
            runner.run({})
        with pytest.raises(InputError, match="tokens is unknown"):
            runner.run({"input_ids": np.zeros((1, 2), dtype=np.int64), "tokens": np.zeros(1)})


@pytest.mark.parametrize("odd", [-1, 11])
def test_ids_outside_of_the_vocabulary_are_refused(model: FlashModel, odd: int) -> None:
    with EagerRunner(model) as runner, pytest.raises(InputError, match=f"input_ids has {odd}, token ids are 0 to 10"):
        runner.run({"input_ids": np.array([[3, odd]])})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_gpu_is_named(model: FlashModel) -> None:
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        EagerRunner(model, device="cuda")
