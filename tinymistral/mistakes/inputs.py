"""Mistakes about the inputs: padding treated as text, a token too many or too few.

A case has one of three kinds of inputs, by name: of calls one after another with one cache
("calls.0.input_ids", "calls.0.positions", ...); of a prompt, if there is an "attention_mask"; or of
an operation, which do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tinymistral.mistakes.mistake import mistake

Arrays = Mapping[str, np.ndarray]
Results = dict[str, np.ndarray]
Undo = Callable[[Results], Results]  # brings results into the expected shapes
Changed = tuple[Arrays, Undo]

BOS, EOS = 1, 2  # the ids of <s> and </s> in all of Mistral's vocabularies


def unchanged(results: Results) -> Results:
    """Return the results."""
    return results


def positions_of(inputs: Arrays) -> tuple[np.ndarray, list[int]]:
    """Return the positions of all calls (B, columns), or (0, 0), and the columns of each call."""
    parts: list[np.ndarray] = []
    while f"calls.{len(parts)}.positions" in inputs:
        parts.append(inputs[f"calls.{len(parts)}.positions"])
    nothing = np.zeros((0, 0), dtype=np.int64)
    return np.concatenate(parts, axis=1) if parts else nothing, [x.shape[1] for x in parts]


def _with_positions(inputs: Arrays, new: np.ndarray) -> Arrays:
    """Replace the positions of the calls by new (B, columns), and those of the cache likewise."""
    (old, widths), found, stop = positions_of(inputs), dict(inputs), 0
    for n, width in enumerate(widths):
        stop += width
        found[f"calls.{n}.positions"] = new[:, stop - width : stop]
        at = inputs[f"calls.{n}.cache_positions"]
        found[f"calls.{n}.cache_positions"] = moved = np.full_like(at, -1)
        for b, p in np.argwhere(at >= 0):
            moved[b, p] = new[b, np.flatnonzero(old[b] == at[b, p])[0]]
    return found


def _column_positions(inputs: Arrays) -> np.ndarray:
    """Return positions (B, columns) that count padding too, from a row's first position."""
    positions, _ = positions_of(inputs)
    first = np.where(positions >= 0, positions, np.iinfo(np.int64).max).min(axis=1)
    return first[:, None] + np.arange(positions.shape[1], dtype=np.int64)


def padding_as_text(inputs: Arrays) -> Changed:
    """Give padding positions; leave its columns out of the resulting attention weights."""
    positions, widths = positions_of(inputs)
    if not widths:
        return inputs, unchanged

    def undo(results: Results) -> Results:
        results, stops = dict(results), np.cumsum(widths)
        for name, x in results.items():
            if name.endswith("attention_weights"):
                real = positions[:, : stops[int(name.split(".")[1])]] >= 0
                results[name] = out = np.zeros((*x.shape[:3], real.sum(axis=1).max()), x.dtype)
                for b, row in enumerate(real):
                    out[b, :, :, : row.sum()] = x[b][:, :, row]
        return results

    return _with_positions(inputs, _column_positions(inputs)), undo


def padding_counted_later(inputs: Arrays) -> Changed:
    """Let positions after the first call count padding; in `generate` the cache counts them."""
    positions, widths = positions_of(inputs)
    if not widths:
        return inputs, unchanged
    new = np.where(positions >= 0, _column_positions(inputs), -1)
    new[:, : widths[0]] = positions[:, : widths[0]]
    return _with_positions(inputs, new), unchanged


@mistake("inputs")
def mask_ignored(inputs):
    """Padding is treated as text: it has positions, and is visible to the tokens after it.
    Fix: Mask padding and count no positions for it, as the attention mask says."""
    if "attention_mask" in inputs:
        return {**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])}, unchanged
    return padding_as_text(inputs)


@mistake("inputs")
def begun_with_bos(inputs):
    """<s>, id 1, is put before the case's ids, and its results are left out.
    Fix: Run the ids as they are; <s> is put before a text by its tokenizer, once."""
    return _with_first(inputs, lambda first: np.full_like(first, BOS))


@mistake("inputs")
def first_token_twice(inputs):
    """The first token of each row occurs twice, as <s> does if two parts of a program add it. The
    results of one of them are left out.
    Fix: Run the ids as they are: they begin with <s> already if the text does."""
    return _with_first(inputs, lambda first: first)


@mistake("inputs")
def ended_with_eos(inputs):
    """</s>, id 2, is put after the ids of the first call, and its results are left out.
    Fix: Run the ids as they are; </s> ends what a model has written, not its prompt."""
    if "attention_mask" in inputs:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        longer = {
            "input_ids": np.concatenate([ids, np.full_like(ids[:, :1], EOS)], axis=1),
            "attention_mask": np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1),
        }
        return {**inputs, **longer}, lambda results: _without_column(results, ids.shape[1])
    positions, widths = positions_of(inputs)
    if not widths:
        return inputs, unchanged
    last = positions[:, widths[0] - 1]
    if (last < 0).any():
        return None
    found = _with_shifted(inputs, 1, last)
    for name, end in (("input_ids", EOS), ("positions", last[:, None] + 1)):
        name = f"calls.0.{name}"
        column = np.broadcast_to(end, (len(last), 1)).astype(np.int64)
        found[name] = np.concatenate([inputs[name], column], axis=1)
    return found, lambda results: _without_column(results, widths[0])


@mistake("inputs")
def first_token_missing(inputs):
    """The first token of each row is left out, as <s> is if nothing puts it before a text.
    Fix: Run all ids of the case, also the first, which is often <s>."""
    return _without_token(inputs, first=True)


@mistake("inputs")
def last_token_missing(inputs):
    """The last token of the first call is left out, as in training, where it is only a target.
    Fix: Run all ids of the case, also the last: what follows the text depends on it."""
    return _without_token(inputs, first=False)


def _without_token(inputs: Arrays, first: bool) -> Changed | None:
    """Leave out the first token of the first call, or its last; None if there is padding."""
    part = slice(1, None) if first else slice(None, -1)
    if "attention_mask" in inputs:
        if not inputs["attention_mask"].all() or inputs["input_ids"].shape[1] == 1:
            return None
        return {name: x[:, part] for name, x in inputs.items()}, unchanged
    positions, widths = positions_of(inputs)
    if not widths:
        return inputs, unchanged
    if widths[0] == 1 or (positions < 0).any():
        return None
    found = _with_shifted(inputs, -1, positions[:, 0 if first else widths[0] - 1])
    for name in ("calls.0.input_ids", "calls.0.positions"):
        found[name] = found[name][:, part]
    return found, unchanged


def _with_shifted(inputs: Arrays, step: int, after: np.ndarray) -> dict[str, np.ndarray]:
    """Shift all positions after these (B,) by a step; if it is -1, remove these."""
    found = dict(inputs)
    for name, x in inputs.items():
        if name.endswith("positions"):
            moved = np.where(x > after[:, None], x + step, x)
            found[name] = np.where(x == after[:, None], -1, moved) if step < 0 else moved
    return found


def _with_first(inputs: Arrays, more: Callable[[np.ndarray], np.ndarray]) -> Changed:
    """Put `more(first ids (B,))` before each row, and leave out its results."""
    found = dict(inputs)
    if "attention_mask" in inputs:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        start = more(ids[np.arange(len(ids)), mask.argmax(axis=1)])[:, None]
        found["input_ids"] = np.concatenate([start, ids], axis=1)
        found["attention_mask"] = np.concatenate([np.ones_like(start), mask], axis=1)
    elif "calls.0.input_ids" in inputs:
        for name, x in inputs.items():
            if name.endswith("positions"):
                found[name] = np.where(x >= 0, x + 1, -1)
        positions, widths = positions_of(inputs)
        calls = range(len(widths))
        ids = np.concatenate([inputs[f"calls.{n}.input_ids"] for n in calls], axis=1)
        start = more(ids[np.arange(len(ids)), (positions >= 0).argmax(axis=1)])[:, None]
        for name, begin in (("input_ids", start), ("positions", _column_positions(inputs)[:, :1])):
            name = f"calls.0.{name}"
            found[name] = np.concatenate([begin, found[name]], axis=1)
    return found, lambda results: _without_column(results, 0)


def _without_column(results: Results, column: int) -> Results:
    """Leave out the results of an added token."""
    found = dict(results)
    for name, x in results.items():
        if name.endswith("attention_weights"):
            x = np.delete(x, column, axis=3)
            found[name] = np.delete(x, column, axis=2) if name.startswith("calls.0.") else x
        elif name == "sequences" or (name.startswith("calls.0.") and ".cache." not in name):
            found[name] = np.delete(x, column, axis=1)
    return found
