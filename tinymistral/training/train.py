"""The training loop: batches of packed rows, their gradients, and steps of the optimizer.

The rows of a batch are computed by several threads, each of which multiplies matrices with one.
Their gradients are added in the order of the rows, so the number of threads changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.heads import MistralForCausalLM
from tinymistral.scoring import score
from tinymistral.threads import keep_freed_memory
from tinymistral.training.gradients import loss_and_gradients
from tinymistral.training.optimizer import clip, learning_rate
from tinymistral.training.packing import Row, pack, take_documents
from tinymistral.training.run import Run, encode

EVALUATE_EVERY = 100  # steps


@dataclass(frozen=True)
class StepDone:
    """What a step did: its number, counted from 1, and the mean loss of its batch before it."""

    step: int
    loss: float
    tokens: int
    held_out_loss: float | None  # where it was measured


def train(
    run: Run,
    *,
    threads: int = 1,
    report: Callable[[StepDone], None] = lambda done: None,
    save: Callable[[], None] = lambda: None,
    save_every: int = 250,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Go on with a run until its last step, or until `stop()` returns true after a step.

    `report` is called after each step, `save` every `save_every` steps and at the end. Raises
    ValueError if the loss or a gradient is not finite.
    """
    recipe = run.recipe
    keep_freed_memory()
    with ThreadPoolExecutor(threads) as pool:
        while run.step < recipe.steps:
            documents, after = take_documents(run.ids, run.next_document, recipe.batch_tokens)
            rows = pack(documents, recipe.length, run.config.sliding_window)
            loss, gradients = batch_gradients(run.weights, rows, run.config, pool)
            norm = clip(gradients, recipe.clip)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = "gradient" if math.isfinite(loss) else "loss"
                raise ValueError(
                    f"the {what} of step {run.step + 1} is not finite; take a lower learning rate"
                )
            run.optimizer.step(gradients, rate(run))
            run.step, run.next_document = run.step + 1, after
            run.curve.loss.append(loss)
            held_out, is_last = None, run.step == recipe.steps
            if run.documents.held_out and (is_last or run.step % EVALUATE_EVERY == 0):
                held_out = held_out_loss(run, pool)
                run.curve.held_out_steps.append(run.step)
                run.curve.held_out_loss.append(held_out)
            report(StepDone(run.step, loss, sum(len(row.ids) for row in rows), held_out))
            stopped = stop()
            if stopped or is_last or run.step % save_every == 0:
                save()
            if stopped:
                return


def rate(run: Run) -> float:
    """Return the learning rate of a run's next step."""
    recipe = run.recipe
    return learning_rate(
        run.step, recipe.warm_up, recipe.steps, recipe.learning_rate, recipe.final_learning_rate
    )


def batch_gradients(
    weights: Mapping[str, np.ndarray],
    rows: list[Row],
    config: MistralConfig,
    pool: ThreadPoolExecutor,
) -> tuple[float, dict[str, np.ndarray]]:
    """Return the mean loss over all targets of the rows, and its gradients."""

    def of_row(row: Row) -> tuple[float, int, dict[str, np.ndarray]]:
        return loss_and_gradients(weights, row.ids, row.targets, row.positions, config)

    results = pool.map(of_row, rows)  # in the order of the rows, whichever is done first
    total, count, gradients = next(results)
    for loss, targets, of_weights in results:
        total, count = total + loss, count + targets
        for name, gradient in of_weights.items():
            gradients[name] += gradient
    for gradient in gradients.values():
        gradient /= count
    return total / count, gradients


def held_out_loss(run: Run, pool: ThreadPoolExecutor) -> float:
    """Return the mean loss of the held-out documents by the forward pass of `model.py`."""
    model = MistralForCausalLM(run.config, backend="numpy", tensors=run.weights)
    documents = [encode(run.tokenizer, text) for text in run.documents.held_out]
    totals = pool.map(lambda ids: score(model, ids[None]).total, documents)
    return -sum(totals) / sum(len(ids) - 1 for ids in documents)
