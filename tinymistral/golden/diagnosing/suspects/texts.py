"""Suspects about what is given: padding that is taken for text, a token too many or too few."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tinymistral.golden.calls import text_of
from tinymistral.golden.diagnosing.suspects.suspect import Results, Undo, suspect
from tinymistral.golden.manifest import Case

Arrays = Mapping[str, np.ndarray]
Told = tuple[Arrays, Undo]

BOS, EOS = 1, 2  # the ids of <s> and </s> in all of Mistral's vocabularies


def unchanged(results: Results) -> Results:
    """Leave results as they are."""
    return results


def renumbered(inputs: Arrays, new: np.ndarray) -> Arrays:
    """Give each column of the calls a new position (B, columns), and look in the cache for it."""
    _, old, widths = text_of(inputs)
    told, stop = dict(inputs), 0
    for n, width in enumerate(widths):
        stop += width
        told[f"calls.{n}.positions"] = new[:, stop - width : stop]
        at = inputs[f"calls.{n}.cache_positions"]
        told[f"calls.{n}.cache_positions"] = moved = np.full_like(at, -1)
        for b, p in np.argwhere(at >= 0):
            moved[b, p] = new[b, np.flatnonzero(old[b] == at[b, p])[0]]
    return told


def without_padding(inputs: Arrays) -> Undo:
    """Return what takes those columns out of attention weights that are padding by `inputs`."""
    _, positions, widths = text_of(inputs)
    stops = np.cumsum(widths)

    def undo(results: Results) -> Results:
        results = dict(results)
        for name, x in results.items():
            if name.endswith("attention_weights"):
                real = positions[:, : stops[int(name.split(".")[1])]] >= 0
                results[name] = out = np.zeros((*x.shape[:3], real.sum(axis=1).max()), x.dtype)
                for b, row in enumerate(real):
                    out[b, :, :, : row.sum()] = x[b][:, :, row]
        return results

    return undo


def columns(inputs: Arrays) -> np.ndarray:
    """Return the number of each column of the calls (B, columns), counted from a row's first."""
    positions = text_of(inputs)[1]
    first = np.where(positions >= 0, positions, np.iinfo(np.int64).max).min(axis=1)
    return first[:, None] + np.arange(positions.shape[1], dtype=np.int64)


@suspect(
    "mask-ignored",
    of="texts",
    fix="Padding is no token: it has no position and nobody sees it, as the attention mask says.",
    common=True,
)
def _mask_ignored(case: Case, inputs: Arrays) -> Told:
    """Padding is taken for text: it has positions, and the tokens after it see it."""
    if "attention_mask" in inputs:
        return {**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])}, unchanged
    if case.kind != "model":
        return inputs, unchanged
    return renumbered(inputs, columns(inputs)), without_padding(inputs)


@suspect(
    "begun-with-bos",
    of="texts",
    fix="Run the ids as they are given; <s> is put before a text by its tokenizer, once.",
    common=True,
)
def _begun_with_bos(case: Case, inputs: Arrays) -> Told:
    """<s>, id 1, is put before the ids that were given, and its results are left out."""
    return begun_with(inputs, lambda first: np.full_like(first, BOS))


@suspect(
    "first-token-twice",
    of="texts",
    fix="Run the ids as they are given: they begin with <s> already if the text does.",
    common=True,
)
def _first_token_twice(case: Case, inputs: Arrays) -> Told:
    """The first token of each row is there twice, as <s> is where two parts of a program add it.

    The results of one of them are left out.
    """
    return begun_with(inputs, lambda first: first)


@suspect(
    "ended-with-eos",
    of="texts",
    fix="Run the ids as they are given; </s> ends what a model has written, not its prompt.",
)
def _ended_with_eos(case: Case, inputs: Arrays) -> Told | None:
    """</s>, id 2, is put after the ids that were given first, and its results are left out."""
    if "attention_mask" in inputs:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        told = {
            "input_ids": np.concatenate([ids, np.full_like(ids[:, :1], EOS)], axis=1),
            "attention_mask": np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1),
        }
        return {**inputs, **told}, lambda results: _without_column(results, ids.shape[1])
    if case.kind != "model":
        return inputs, unchanged
    ids, positions, (width, *_) = text_of(inputs)
    if (positions[:, width - 1] < 0).any():
        return None
    told = _moved(inputs, 1, positions[:, width - 1])
    for name, end in (("input_ids", EOS), ("positions", positions[:, width - 1 : width] + 1)):
        name = f"calls.0.{name}"
        column = np.broadcast_to(end, (len(ids), 1)).astype(np.int64)
        told[name] = np.concatenate([inputs[name], column], axis=1)
    return told, lambda results: _without_column(results, width)


@suspect(
    "first-token-missing",
    of="texts",
    fix="Run all ids that are given, <s> too, which most texts begin with.",
    common=True,
)
def _first_token_missing(case: Case, inputs: Arrays) -> Told | None:
    """The first token of each row is left out, as <s> is where nobody puts it before a text."""
    return _shorter(case, inputs, first=True)


@suspect(
    "last-token-missing",
    of="texts",
    fix="Run all ids that are given, the last one too: what follows the text is told by it.",
)
def _last_token_missing(case: Case, inputs: Arrays) -> Told | None:
    """The last token of what is given first is left out, as targets are cut off in training."""
    return _shorter(case, inputs, first=False)


def _shorter(case: Case, inputs: Arrays, first: bool) -> Told | None:
    """Leave a token of the first call out; of what has padding nothing can be told."""
    part = slice(1, None) if first else slice(None, -1)
    if "attention_mask" in inputs:
        if not inputs["attention_mask"].all() or inputs["input_ids"].shape[1] == 1:
            return None
        return {name: x[:, part] for name, x in inputs.items()}, unchanged
    if case.kind != "model":
        return inputs, unchanged
    _, positions, (width, *_) = text_of(inputs)
    if width == 1 or (positions < 0).any():
        return None
    gone = positions[:, 0 if first else width - 1]
    told = _moved(inputs, -1, gone)
    for name in ("calls.0.input_ids", "calls.0.positions"):
        told[name] = told[name][:, part]
    return told, unchanged


def _moved(inputs: Arrays, step: int, after: np.ndarray) -> dict[str, np.ndarray]:
    """Move all positions that come after these (B,) by a step; none is left at these, if by -1."""
    told = dict(inputs)
    for name, x in inputs.items():
        if name.endswith("positions"):
            moved = np.where(x > after[:, None], x + step, x)
            told[name] = np.where(x == after[:, None], -1, moved) if step < 0 else moved
    return told


def begun_with(inputs: Arrays, more: Callable[[np.ndarray], np.ndarray]) -> Told:
    """Put `more(first ids (B,))` before each row; its results are left out."""
    told = dict(inputs)
    if "attention_mask" in inputs:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        start = more(ids[np.arange(len(ids)), mask.argmax(axis=1)])[:, None]
        told["input_ids"] = np.concatenate([start, ids], axis=1)
        told["attention_mask"] = np.concatenate([np.ones_like(start), mask], axis=1)
    elif "calls.0.input_ids" in inputs:
        for name, x in inputs.items():
            if name.endswith("positions"):
                told[name] = np.where(x >= 0, x + 1, -1)
        ids, positions, _ = text_of(inputs)
        start = more(ids[np.arange(len(ids)), (positions >= 0).argmax(axis=1)])[:, None]
        for name, begin in (("input_ids", start), ("positions", columns(inputs)[:, :1])):
            name = f"calls.0.{name}"
            told[name] = np.concatenate([begin, told[name]], axis=1)
    return told, lambda results: _without_column(results, 0)


def _without_column(results: Results, column: int) -> Results:
    """Leave out the results of a token that was put in."""
    found = dict(results)
    for name, x in results.items():
        if name.endswith("attention_weights"):
            x = np.delete(x, column, axis=3)
            found[name] = np.delete(x, column, axis=2) if name.startswith("calls.0.") else x
        elif name == "sequences" or (name.startswith("calls.0.") and ".cache." not in name):
            found[name] = np.delete(x, column, axis=1)
    return found
