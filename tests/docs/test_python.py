"""What docs/python.md shows runs, as it stands there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from flash_pytorch import FLASHTransformer

from tests.docs.pages import ROOT, read_blocks

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "What a model of bytes reads to be calibrated: it should be what it sees in use. " * 40


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_line_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="engines are built here with TensorRT-RTX alone")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"causal": True, "group_size": 64}
    model = FLASHTransformer(num_tokens=256, dim=32, depth=1, query_key_dim=16, expansion_factor=2.0, **arguments)
    torch.save(model.state_dict(), "model.pt")
    (tmp_path / "text.txt").write_text(TEXT)

    blocks = read_blocks(ROOT / "docs" / "python.md")
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)

    assert len(blocks) >= 6
    assert names["found"]
    assert names["fault"] is None
    assert names["logits"].shape == (1, 3, 256)
    assert 0 < names["kl_bits"] < 1
    assert len(names["tokens"]) == 20
    assert names["written"] == names["tokens"].tolist()
    assert names["served"] == ["bundle", "bundle-generate"]
    assert names["engine"].profiles[0]["input_ids"].max == (4, 1024)
