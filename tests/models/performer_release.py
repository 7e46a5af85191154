"""performer-pytorch 1.1.4's own model file, without what the package depends on."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from flash_export.originals.installed import ModelFiles
from tests.models.oracles import import_oracle

RELEASE = "performer-pytorch==1.1.4"
FILES = ModelFiles(
    "performer_pytorch",
    ("performer_pytorch",),
    stand_ins={
        "axial_positional_embedding": {"AxialPositionalEmbedding": None},
        "distutils": {},
        "distutils.version": {"LooseVersion": lambda version: tuple(map(int, version.split(".")[:2]))},
        "local_attention": {"LocalAttention": None},
    },
)


def import_performer(eps: float) -> Any:
    """Import the module, with what it adds to features and to sums replaced; skips where no oracle was installed.

    Its keys are divided by the largest of all of them, which cancels only where nothing is added.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of distutils, until Python 3.12
        (module,) = import_oracle(RELEASE, FILES)
    module.softmax_kernel = partial(module.softmax_kernel, eps=eps)
    module.causal_linear_attention_noncuda = partial(module.causal_linear_attention_noncuda, eps=eps)
    return module
