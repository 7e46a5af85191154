"""mmpose 1.3.2's own files of RTMPose's head, without what the package depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flash_export.originals.mmpose import FILES
from tests.models.oracles import import_oracle

RELEASE = "mmpose==1.3.2"


@dataclass(frozen=True)
class MmposeRelease:
    """What is compared with."""

    block: Any
    head: Any
    scale_norm: Any


def import_mmpose() -> MmposeRelease:
    """Import the files, and leave no module behind; skips where no oracle was installed at all."""
    head, block = import_oracle(RELEASE, FILES)
    return MmposeRelease(block.RTMCCBlock, head.RTMCCHead, block.ScaleNorm)
