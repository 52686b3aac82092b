"""AdamW, the learning rate's course, and clipping: from gradients to new weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

# Numbers that are updated together: few enough that the five arrays of a step (2.5 MB of float32)
# stay in the processor's cache from one operation to the next.
BLOCK = 1 << 17


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    Of step t with gradient g, learning rate η and decay λ, for each weight w, from m = v = 0:

        m ← β1 · m + (1 - β1) · g
        v ← β2 · v + (1 - β2) · g²
        w ← w - η · (m̂ / (sqrt(v̂) + ε) + λ · w),    m̂ = m / (1 - β1^t),  v̂ = v / (1 - β2^t)

    The hats undo that m and v, which begin at 0, are too small at first. The decay is η · λ here,
    as in torch.optim.AdamW. It bears on matrices only: a norm's weight scales what is normed, and
    begins at 1, so that shrinking it towards 0 is not towards a simpler model.
    https://arxiv.org/abs/1711.05101
    """

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        """Begin with these weights, contiguous arrays that `step` changes in place."""
        self.weights, self.betas, self.eps, self.weight_decay = weights, betas, eps, weight_decay
        self.steps = 0
        self.first = {name: np.zeros_like(array) for name, array in weights.items()}  # m
        self.second = {name: np.zeros_like(array) for name, array in weights.items()}  # v

    def step(self, gradients: Mapping[str, np.ndarray], learning_rate: float) -> None:
        """Move the weights once, given the gradient of each."""
        self.steps += 1
        for name, weight in self.weights.items():
            decay = self.weight_decay if weight.ndim > 1 else 0.0
            arrays = (weight, gradients[name], self.first[name], self.second[name])
            flat = [array.reshape(-1) for array in arrays]
            for start in range(0, weight.size, BLOCK):
                block = slice(start, start + BLOCK)
                self._update([array[block] for array in flat], learning_rate, decay)

    def _update(self, block: list[np.ndarray], learning_rate: float, decay: float) -> None:
        weight, gradient, first, second = block
        beta1, beta2 = self.betas
        work = gradient * (1 - beta1)
        first *= beta1
        first += work
        np.square(gradient, out=work)
        work *= 1 - beta2
        second *= beta2
        second += work
        np.multiply(second, 1 / (1 - beta2**self.steps), out=work)
        np.sqrt(work, out=work)
        work += self.eps
        np.divide(first, work, out=work)
        work *= learning_rate / (1 - beta1**self.steps)
        weight *= 1 - learning_rate * decay
        weight -= work

    def state(self) -> dict[str, np.ndarray]:
        """Return all that `load` needs: arrays by name, the moments themselves, not copies."""
        state = {"steps": np.array(self.steps, dtype=np.int64)}
        state |= {f"first.{name}": array for name, array in self.first.items()}
        return state | {f"second.{name}": array for name, array in self.second.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` returned, for weights of the same names and shapes."""
        self.steps = int(state["steps"])
        for name, array in self.state().items():
            if name != "steps":
                array[...] = state[name]


def learning_rate(step: int, warm_up: int, total: int, peak: float, floor: float) -> float:
    """Return the learning rate of step 0, 1, ... total - 1.

    It rises in a straight line over the first `warm_up` steps, to `peak` at the last of them, then
    falls along half a cosine, which ends at `floor` with step `total` (Loshchilov & Hutter 2017,
    https://arxiv.org/abs/1608.03983, without restarts). After that it stays there.
    """
    if step < warm_up:
        return peak * ((step + 1) / warm_up)
    done = min(1.0, (step - warm_up) / max(1, total - warm_up))
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2


def clip(gradients: Mapping[str, np.ndarray], norm: float) -> float:
    """Scale gradients in place so that their norm is at most `norm`; return what it was before.

    The norm is that of all of them as one vector, so that its direction stays
    (Pascanu et al. 2013, https://arxiv.org/abs/1211.5063).
    """
    squares = (float(np.vdot(array, array)) for array in gradients.values())
    before = math.sqrt(math.fsum(squares))
    if before > norm:
        for array in gradients.values():
            array *= norm / before
    return before
