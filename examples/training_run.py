"""A training run that can be taken up again: model, optimiser and what was seen, in a folder beside the output."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor, nn

BETAS, MAX_GRAD_NORM, WARMUP_STEPS = (0.9, 0.98), 5.0, 300
STATE_FILE, HISTORY_FILE = "state.pt", "history.json"


class Run:
    """Modules that are trained together, by AdamW with a warm-up and a cosine down to a fiftieth."""

    def __init__(self, output: Path, modules: dict[str, nn.Module], learning_rate: float, seed: int) -> None:
        """Start, or go on from the state that an earlier run left in ``OUTPUT.run``."""
        self.output, self.folder, self.learning_rate = output, output.with_name(f"{output.name}.run"), learning_rate
        self.modules = modules
        parameters = [one for module in modules.values() for _, one in sorted(module.named_parameters())]
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=BETAS, weight_decay=0.01)
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.history: list[dict[str, Any]] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / STATE_FILE).exists():
            state = torch.load(self.folder / STATE_FILE, weights_only=True)
            for name, module in modules.items():
                module.load_state_dict(state[name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
            self.history = json.loads((self.folder / HISTORY_FILE).read_text())
        self.random = np.random.default_rng([seed, self.step])

    def save(self) -> None:
        """Keep the state, whole or not at all."""
        state = {name: module.state_dict() for name, module in self.modules.items()}
        part = self.folder / f"{STATE_FILE}.part"
        facts = {"step": self.step, "seconds": self.seconds, "best": self.best}
        torch.save({**state, "optimizer": self.optimizer.state_dict(), **facts}, part)
        (self.folder / HISTORY_FILE).write_text(json.dumps(self.history, indent=2))
        part.replace(self.folder / STATE_FILE)

    def learn(self, loss: Tensor, progress: float) -> None:
        """Take one step down a loss; ``progress`` is the share of the run that is over."""
        warmup = min(1.0, (self.step + 1) / WARMUP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._list_parameters(), MAX_GRAD_NORM)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.step += 1

    def _list_parameters(self) -> Iterable[nn.Parameter]:
        return (one for module in self.modules.values() for one in module.parameters())
