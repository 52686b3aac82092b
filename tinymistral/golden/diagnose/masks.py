"""Guesses of which keys a query sees, and the mask that attention weights show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from tinymistral.golden.diagnose.guess import Guess
from tinymistral.golden.diagnose.steps import Array, Step, mask_of, scores_of, softmax

FAR = 2**62
UNDERFLOW = 80  # exp(-80) is about the smallest number of float32
# Of the positions i of queries (B, T, 1) and j of keys (B, 1, S), the window W or FAR, and the
# step: (B, T, S) without padding, or (B, H, T, S).
Rule = Callable[..., Array]


def _newest(s: Step) -> Array:
    return np.asarray(s.x["q_positions"].max(axis=1)[:, None, None])


def oldest(s: Step) -> Array:
    """Return the position of each row's first query (B, 1, 1)."""
    i = s.x["q_positions"]
    return np.where(i < 0, FAR, i).min(axis=1)[:, None, None]


def _single(s: Step) -> bool:
    return bool(s.x["q_positions"].shape[1] == 1)


def _later(s: Step) -> bool:
    return bool(s.x.get("call"))


def _sees(n: Callable[..., int]) -> Rule:
    return lambda i, j, W, s: (j <= i) & (i - j < (n(W) if W < FAR else W))


def _distance_in_columns(i: Array, j: Array) -> Array:
    T, S = i.shape[1], j.shape[2]
    return S - T + np.arange(T)[:, None] - np.arange(S)


def _compared_as(kind: Any) -> Rule:
    def rule(i: Array, j: Array, W: int, s: Step) -> Array:
        i, j = i.astype(kind), j.astype(kind)
        return np.asarray((j >= 0) & (j <= i) & (i.astype(np.float64) - j < W))

    return rule


def _from_the_first(i: Array, j: Array, W: int, s: Step) -> Array:
    if not _later(s) or _single(s):
        return (j <= i) & (i - j < W)
    rank = np.where(j < 0, FAR, j).argsort(axis=-1, kind="stable").argsort(axis=-1)
    return np.asarray(rank <= np.arange(i.shape[1])[:, None])


def _largest(n: int) -> Rule:
    def rule(i: Array, j: Array, W: int, s: Step) -> Array:
        mask = mask_of(s.x)[:, None]
        scores = np.where(mask, scores_of(s.x), -np.inf)
        at = max(0, scores.shape[-1] - n)
        return np.asarray(mask & (scores >= np.sort(scores, axis=-1)[..., at : at + 1]))

    return rule


RULES: dict[str, Rule] = {
    "no-window | the window is ignored: there is no window, and a query sees all earlier keys": (
        lambda i, j, W, s: j <= i
    ),
    "inclusive-window | a query sees one key too many, W + 1": _sees(lambda W: W + 1),
    "short-window | a query sees one key too few, W - 1": _sees(lambda W: W - 1),
}
for _part in "1/2 2 -2 +2 3/4 1/4 1/3 2/3 3/2 -3 +3 4 -4 +4".split():
    _more = _part[0] in "+-"
    RULES[f"a query sees {f'W {_part[0]} {_part[1:]}' if _more else f'{_part} W'} keys"] = _sees(
        lambda W, more=_more, part=Fraction(_part): max(1, int(W + part if more else W * part))
    )
for _n in (*range(1, 17), 32, 64, 128, 256, 512, 1024, 4096):
    _known = "window-by-default | " if _n == 4096 else ""
    RULES[f"{_known}a query sees {_n} key{'s' * (_n > 1)}, whatever the window is"] = (
        lambda i, j, W, s, n=_n: (j <= i) & (i - j < n)
    )
RULES |= {
    "future-seen | keys after the query are visible, within the window: there is no causal mask": (
        lambda i, j, W, s: i - j < W
    ),
    "future-seen | keys of the future are visible on both sides of the query, |i - j| < W": (
        lambda i, j, W, s: np.where(W < FAR, abs(i - j) < W, j <= i)
    ),
    "future-seen | all keys are visible, also later ones: there is neither a causal mask nor a "
    "window": lambda i, j, W, s: i == i,
    "the next token is visible too, j <= i + 1": lambda i, j, W, s: (j <= i + 1) & (i - j < W),
    "blind-to-itself | a query's own key is not visible": lambda i, j, W, s: (j < i) & (i - j < W),
    "a single token sees all earlier keys, without a window": (
        lambda i, j, W, s: (j <= i) & (_single(s) | (i - j < W))
    ),
    "several tokens at once see all earlier keys, one does not": (
        lambda i, j, W, s: (j <= i) & ((not _single(s)) | (i - j < W))
    ),
    "inclusive-window-of-prompts | several tokens at once see W + 1 keys; a single one does not": (
        lambda i, j, W, s: (j <= i) & (i - j < W + (not _single(s)))
    ),
    "the first position of the text is not visible": lambda i, j, W, s: (
        (j <= i) & (i - j < W) & (j > 0)
    ),
    "the first position of the text stays visible, as a sink": lambda i, j, W, s: (
        (j <= i) & ((i - j < W) | (j < 1))
    ),
    "the first 4 positions of the text stay visible, as a sink": lambda i, j, W, s: (
        (j <= i) & ((i - j < W) | (j < 4))
    ),
    "a query sees only its own block of W keys, i // W == j // W": lambda i, j, W, s: (
        (j <= i) & (i // W == j // W)
    ),
    "only keys of this call are visible": lambda i, j, W, s: (
        (j <= i) & (i - j < W) & (j >= oldest(s))
    ),
    "in the first call keys after the query are visible: it has no causal mask": (
        lambda i, j, W, s: ((j <= i) & (i - j < W)) | (s.x.get("call") == 0)
    ),
    "in the first call keys after the query are visible within the window: no causal mask": (
        lambda i, j, W, s: ((j <= i) | (s.x.get("call") == 0)) & (i - j < W)
    ),
    "in later calls keys after the query are visible: they have no causal mask": (
        lambda i, j, W, s: ((j <= i) | _later(s)) & (i - j < W)
    ),
    "window-of-the-piece | all queries of a call have the window of its last one, as if all of it "
    "was written to a cache of W slots first": lambda i, j, W, s: (j <= i) & (_newest(s) - j < W),
}
for _n in (-1, -2, 1, 2, -3):
    RULES[
        "ring-too-small | older keys are gone before they are attended to: the cache has "
        f"W {'+' if _n > 0 else '-'} {abs(_n)} slots, and all of a call is written first"
    ] = lambda i, j, W, s, n=_n: (j <= i) & (i - j < W) & (_newest(s) - j < max(1, W + n))
RULES |= {
    "window-by-slot | the window is counted in columns or slots, not in positions": (
        lambda i, j, W, s: (j <= i) & (_distance_in_columns(i, j) < W)
    ),
    "causal-by-slot | the future is masked by columns or slots, not by positions": (
        lambda i, j, W, s: (_distance_in_columns(i, j) >= 0) & (i - j < W)
    ),
    "query t of a later call sees the first t + 1 keys of all": _from_the_first,
    "positions-in-float32-compared | positions are compared as float32 numbers": (
        _compared_as(np.float32)
    ),
    "positions are compared as integers of 32 bits": _compared_as(np.int32),
    "window-in-32-bits | the window is cut to 32 bits": lambda i, j, W, s: (
        (j <= i) & (i - j < int(np.int64(W).astype(np.int32)))
    ),
    "positions-of-the-first-row | the positions of the first row are used for all rows": (
        lambda i, j, W, s: (j[:1] <= i[:1]) & (i[:1] - j[:1] < W) & (j[:1] >= 0)
    ),
}
for _n in (1, 2, 3, 4, 5, 8, 16):
    RULES[f"only the {_n} largest scores of a query are kept, the other keys are not visible"] = (
        _largest(_n)
    )


def by_rule(rule: Rule, s: Step) -> Array:
    """Return the mask (B, 1 or H, T, S) of a rule; nothing is seen at padding, or from it."""
    i, j = s.x["q_positions"][:, :, None], s.x["k_positions"][:, None, :]
    mask = rule(i, j, s.x["window"] or FAR, s)
    if mask.ndim == 4:
        return mask
    return np.asarray((mask & (i >= 0) & (j >= 0))[:, None])


def measured_mask(s: Step) -> tuple[Array, Array]:
    """Return which keys have a weight (B, H, T, S), and where that can be told from rounding.

    Where scores may differ by more than float32 has exponents, a weight of 0 shows no mask.
    """
    right, seen = np.broadcast_to(mask_of(s.x)[:, None], s.out.shape), s.out > 0
    q, k, scale = s.x["q"], s.x["k"], s.x["q"].shape[-1] ** -0.5
    sizes = [np.linalg.norm(np.where(np.isfinite(x), x, 0), axis=-1) for x in (q, k)]
    near = 2 * scale * sizes[0].swapaxes(1, 2)[..., None] * sizes[1].max(initial=0.0) < UNDERFLOW
    shown = np.maximum(softmax(scores_of(s.x) * scale, right | seen), s.out) > s.tolerance
    clear = ((seen == right) | shown) & (seen | near) & s.counts
    return np.where(seen | near, seen, right), clear


def mask_guesses(steps: Sequence[Step]) -> Iterator[Guess]:
    """Yield masks by their rules, of all heads or the wrong ones; else what is seen."""
    s = steps[0]
    differs = (s.out != s.right) & s.counts
    wrong = np.flatnonzero(differs.any(axis=(0, 2, 3)))
    for text, rule in RULES.items():
        yield Guess(
            text, lambda s, f=rule: np.broadcast_to(by_rule(f, s), s.right.shape).astype(np.float64)
        )
    if not len(wrong):
        return
    if len(wrong) < s.out.shape[1]:
        heads = ", ".join(map(str, wrong))
        for text, rule in RULES.items():
            yield Guess(
                f"in heads {heads} {text.rpartition(' | ')[2]}",
                lambda s, f=rule: np.where(
                    np.isin(np.arange(s.out.shape[1]), wrong)[:, None, None], by_rule(f, s), s.right
                ).astype(np.float64),
            )
    far = ", ".join(map(str, sorted(_distances(s))[:12]))
    yield Guess(
        f"a query sees keys at the distances {far}, in case {s.case}, call {s.call}",
        lambda s: (_not_padding(s) & np.isin(distance(s), _distances(s))).astype(np.float64),
        last=True,
    )
    keys = np.unique(s.x["k_positions"][differs.any(axis=(1, 2))])
    by = "by no query" if (_by_key(s) < s.right).any() else "by all queries"
    yield Guess(
        f"keys at the positions {_ranges(keys)} are seen {by}, in case {s.case}, call {s.call}",
        _by_key,
        last=True,
    )
    b, h, t = (int(n) for n in np.argwhere(differs.any(axis=-1))[0])
    seen, right = (_ranges(s.x["k_positions"][b][x[b, h, t] > 0]) for x in (s.out, s.right))
    yield Guess(
        f"in case {s.case}, call {s.call}, the query at position {s.x['q_positions'][b, t]} sees "
        f"keys {seen}, it should see {right}",
        lambda s: s.out,
        last=True,
    )


def distance(s: Step) -> Array:
    """Return how far keys are behind queries (B, 1, T, S)."""
    return np.asarray(s.x["q_positions"][:, None, :, None] - s.x["k_positions"][:, None, None, :])


def _distances(s: Step) -> list[int]:
    """Return at which distances keys are seen."""
    far = np.broadcast_to(distance(s), s.out.shape)
    return [int(n) for n in np.unique(far[(s.out > 0) & s.counts])]


def _not_padding(s: Step) -> Array:
    """Return what can be seen: all but padding (B, H, T, S)."""
    i, j = s.x["q_positions"][:, None, :, None], s.x["k_positions"][:, None, None, :]
    return np.broadcast_to((i >= 0) & (j >= 0), s.out.shape)


def _by_key(s: Step) -> Array:
    """Let all queries see a key that all do see, and none a key that none sees."""
    here, seen = _not_padding(s) & s.counts, s.out > 0
    never, always = (x.all(axis=(1, 2), keepdims=True) for x in (~(seen & here), seen | ~here))
    return np.where(never, 0.0, np.where(always & here, 1.0, s.right))


def _ranges(positions: Array) -> str:
    p = sorted(int(n) for n in positions if n >= 0)
    if not p:
        return "none"
    whole = p[-1] - p[0] + 1 == len(p)
    return f"{p[0]} to {p[-1]}" if whole else ", ".join(map(str, p[:12]))
