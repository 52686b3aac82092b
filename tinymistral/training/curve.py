"""The loss curve of a run, and its picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.training.pictures import picture


@dataclass
class Curve:
    """Losses in nats a token: of each step's batch, before the step, and of held-out documents."""

    loss: list[float] = field(default_factory=list)
    held_out_steps: list[int] = field(default_factory=list)  # after how many steps
    held_out_loss: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON file of a run contains."""
        return {
            "loss": self.loss,
            "held_out_steps": self.held_out_steps,
            "held_out_loss": self.held_out_loss,
        }


def draw(curve: Curve, path: Path) -> None:
    """Draw the loss by step, of each batch and of the held-out documents."""
    loss = np.asarray(curve.loss, dtype=np.float64)
    steps = np.arange(1, len(loss) + 1)
    with picture(path, width=7, height=4) as axes:
        axes.set(xlabel="step", ylabel="loss (nats a token)")
        axes.plot(steps, loss, color="#8fa8c8", linewidth=0.8, label="each batch")
        if curve.held_out_loss:
            style: dict[str, Any] = {"color": "#c0392b", "marker": "o", "markersize": 3}
            axes.plot(curve.held_out_steps, curve.held_out_loss, label="held out", **style)
        axes.legend(frameon=False)
