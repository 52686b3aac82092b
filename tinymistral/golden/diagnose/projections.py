"""Guesses of projections and logits: other weights, inputs, and orders of rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tinymistral.golden.diagnose.formulas import short_name, tensor_like
from tinymistral.golden.diagnose.guess import Guess, halves_to_pairs, is_known, number
from tinymistral.golden.diagnose.steps import Array, Step

SWAPPED = {
    ("gate", "up_proj"): "gate-and-up-weights-swapped | ",
    ("up", "gate_proj"): "gate-and-up-weights-swapped | ",
    ("k", "v_proj"): "keys-and-values-swapped | ",
    ("v", "k_proj"): "keys-and-values-swapped | ",
}
Reorder = Callable[[Array], Array]

JOINS: dict[str, Reorder] = {  # of the mix (B, T, H, d)
    "heads are joined in another order: transposed, (d, H) rather than (H, d)": lambda x: (
        x.swapaxes(2, 3)
    ),
    "heads are joined in reverse order": lambda x: x[:, :, ::-1],
    "heads are joined across tokens, in another order: (H, T, d) is read as (T, H·d)": lambda x: (
        x.swapaxes(1, 2)
    ),
    "numbers of each head are joined in the order of pairs": lambda x: x[
        ..., halves_to_pairs(x.shape[-1])
    ],
}


def _times(s: Step, x: Array, weight: Array) -> Array | None:
    """Multiply any input, its axes after (B, T) joined; None if shapes do not fit."""
    x = x.reshape(*s.right.shape[:2], -1)
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        return None
    found = x @ weight.T
    return found.reshape(s.right.shape) if found.size == s.right.size else None


def of_linear(steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield other weights, orders of the input, roundings and inputs."""
    first = steps[0]
    w, stage = first.x["weight"], first.stage
    if stage == "logits":
        yield from _of_logits()
    for other, tensor in first.tensors.items():
        if tensor.ndim == 2 and tensor is not w and tensor.shape == w.shape:
            says = short_name(other)
            own = f"layers.{first.layer}." in f"{says}."
            known = SWAPPED.get((stage, says.split(".")[-1]), "")
            known = "tied-though-it-is-not | " if stage == "logits" else known
            yield Guess(
                f"{known}the weight is that of {says.split('.')[-1] if own else says}",
                lambda s, n=other, own=own: _times(
                    s, s.x["x"], tensor_like(s, n) if own else s.tensors[n]
                ),
            )
    yield Guess(
        "weights-transposed | the weight is transposed, or read as (inputs, outputs)",
        lambda s: _times(s, s.x["x"], s.x["weight"].reshape(s.x["weight"].shape[::-1]).T),
    )
    if stage == "attention_output":
        for says, f in JOINS.items():
            yield Guess(says, lambda s, f=f: _times(s, f(s.x["x"]), s.x["weight"]))
        if is_known(first):
            shown = ", ".join(map(number, _of_heads(first)))
            yield Guess(
                f"heads 0, 1, ... count {shown} times in the sum",
                lambda s: _times(s, s.x["x"] * _of_heads(s)[:, None], s.x["weight"]),
                last=True,
            )
    if stage in ("q", "k", "v"):
        yield Guess(
            "rows of the weights are those of q, k and v fused, taken apart group by group: "
            "(q..., k, v) for each key/value head",
            _fused,
        )
        yield Guess(
            "heads are cut across tokens: (T, H·d) is read as (H, T, d)",
            lambda s: s.right.reshape(np.array(s.right.shape)[[0, 2, 1, 3]]).swapaxes(1, 2),
        )
    for other, value in first.others.items():
        if other != stage and value.size == first.x["x"].size and value is not first.x["x"]:
            yield Guess(
                f"the input is {other}" + ", before the norm" * (other == "hidden"),
                lambda s, n=other: _times(s, s.others[n], s.x["weight"]),
            )
    for n in (1, -1):
        yield Guess(
            f"columns of the weight are shifted by {n}: each input is multiplied by a neighbour's",
            lambda s, n=n: _times(s, s.x["x"], np.roll(s.x["weight"], n, axis=1)),
        )
    for bits in (8, 4):
        for axis, what in ((1, "row"), (None, "matrix")):
            yield Guess(
                f"the weight is rounded to {bits} bits, int{bits}, with a scale for each {what}",
                lambda s, b=bits, a=axis: _times(s, s.x["x"], _integers(s.x["weight"], b, a)),
            )
    ends = [("first", 1), *(("last", n) for n in range(1, 33 if is_known(first) else 2))]
    for end, n in ends:
        if n < w.shape[1]:
            rest = slice(n, None) if end == "first" else slice(None, -n)
            yield Guess(
                f"the {end} {n} input{'s are' if n > 1 else ' is'} left out of the sum",
                lambda s, r=rest: _times(
                    s, s.x["x"].reshape(*s.right.shape[:2], -1)[..., r], s.x["weight"][:, r]
                ),
            )


def _of_heads(s: Step) -> Array:
    """Return how often the mix (B, T, H, d) of each head is in what comes out."""
    H, d = s.x["x"].shape[2:]
    parts = np.einsum("bthd,mhd->hbtm", s.x["x"], s.x["weight"].reshape(-1, H, d))
    a, out = (np.where(s.counts & np.isfinite(s.out), x, 0.0) for x in (parts, s.out))
    return np.asarray(
        np.linalg.lstsq(np.nan_to_num(a).reshape(H, -1).T, out.ravel(), rcond=None)[0].round(4)
    )


def _of_logits() -> Iterator[Guess]:
    def log_softmax(x: Array) -> Array:
        x = x - x.max(axis=-1, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))

    yield Guess("they are a log_softmax of the logits", lambda s: log_softmax(s.right))
    yield Guess(
        "they are probabilities: a softmax of the logits", lambda s: np.exp(log_softmax(s.right))
    )
    yield Guess(
        "they are those of the hidden state before the norm",
        lambda s: _times(s, s.others["hidden"], s.x["weight"]),
    )
    for n, other in ((1, "one before"), (-1, "next")):
        yield Guess(
            f"columns are shifted: each id has the logit of the {other}",
            lambda s, n=n: np.roll(s.right, n, axis=-1),
        )


def _integers(w: Array, bits: int, axis: int | None) -> Array:
    scale = np.abs(w).max(axis=axis, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.asarray(np.round(w / np.where(scale == 0, 1, scale)) * scale)


def _fused(s: Step) -> Array | None:
    q, k, v = (s.tensors[f"model.layers.{s.layer}.self_attn.{n}_proj.weight"] for n in "qkv")
    d = s.right.shape[-1]
    K, G = len(k) // d, len(q) // len(k)
    whole = np.concatenate([q, k, v]).reshape(K, G + 2, d, -1)
    rows = {"q": whole[:, :G], "k": whole[:, G], "v": whole[:, G + 1]}[s.stage]
    return _times(s, s.x["x"], rows.reshape(-1, q.shape[1]))
