"""The cases of the suite that are one operation each, as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tinymistral.golden.making.drafts import Draft
from tinymistral.golden.making.drawing import exact, normal

JUNK = 64.0  # what lies where nobody looks: large, so that a look shows


def draft(
    name: str,
    says: str,
    catches: str,
    inputs: dict[str, np.ndarray],
    operation: str,
    exact_angles: bool = False,
    **parameters: Any,
) -> Draft:
    """Draft a case of a method of `Backend`."""
    return Draft(
        name,
        "operation",
        says,
        tuple(catches.split()),
        inputs,
        operation=operation,
        parameters=parameters,
        exact_angles=exact_angles,
    )


def numbers(seed: int, *shape: int, size: float = 1.0) -> np.ndarray:
    """Draw numbers that 16 bits hold."""
    return exact(normal([100, seed], *shape) * size)


def narrow(seed: int, *shape: int) -> np.ndarray:
    """Draw numbers that float32 holds, and 16 bits do not."""
    return normal([100, seed], *shape).astype(np.float32).astype(np.float64)


def rms_norm(name: str, says: str, catches: str, seed: int, size: float, eps: float) -> Draft:
    """Draft a norm of vectors of this size."""
    weight = exact(np.exp2(normal([100, seed, 1], 20)))
    inputs = {"x": numbers(seed, 2, 3, 20, size=size), "weight": weight}
    return draft(name, says, catches, inputs, "rms_norm", eps=eps)


def rope(
    name: str,
    says: str,
    catches: str,
    positions: list[list[int]],
    theta: float,
    d: int = 10,
    exact_angles: bool = False,
) -> Draft:
    """Draft a rotation of three heads of width d."""
    at = np.array(positions, dtype=np.int64)
    inputs = {"x": numbers(4, *at.shape, 3, d), "positions": at}
    return draft(name, says, catches, inputs, "rope", exact_angles, theta=theta)


def attention(
    name: str,
    says: str,
    catches: str,
    seed: int,
    heads: tuple[int, int, int],
    queries: list[list[int]],
    keys: list[list[int]],
    window: int | None,
    size: float = 1.2,
) -> Draft:
    """Draft an attention of H query heads over K of width d; where nothing is, there is junk."""
    (H, K, d), q_at, k_at = heads, np.array(queries, dtype=np.int64), np.array(keys, dtype=np.int64)
    inputs = {
        "q": numbers(seed, *q_at.shape, H, d, size=size),
        "k": numbers(seed + 1, *k_at.shape, K, d, size=size),
        "v": numbers(seed + 2, *k_at.shape, K, d),
    }
    for name_of, at in (("q", q_at), ("k", k_at), ("v", k_at)):
        inputs[name_of][at < 0] = JUNK
    inputs |= {"q_positions": q_at, "k_positions": k_at}
    return draft(name, says, catches, inputs, "attention", window=window)


def with_nan(case: Draft, values: list[tuple[int, int]], keys: list[tuple[int, int]]) -> Draft:
    """Put NaN into all numbers of some values and keys of a case, by row and slot."""
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    for name, places in (("v", values), ("k", keys)):
        for place in places:
            inputs[name][place] = np.nan
    return replace(case, inputs=inputs)


def many_keys() -> Draft:
    """Draft two queries of 600 keys, whose scores are near each other and whose values positive."""
    keys = np.arange(600, dtype=np.int64)[None]
    inputs = {
        "q": numbers(60, 1, 2, 2, 4, size=0.25),
        "k": numbers(61, 1, 600, 1, 4),
        "v": exact(1 + 0.25 * normal([100, 62], 1, 600, 1, 4)),
        "q_positions": np.array([[598, 599]], dtype=np.int64),
        "k_positions": keys,
    }
    return draft(
        "attention-many-keys",
        "600 keys of much the same weight: a sum in 16 bits stays at 256 of them",
        "",
        inputs,
        "attention",
        window=None,
    )


PAST_FLOAT32 = 2**24  # float32 counts to here
PAST_INT32 = 2**31  # so many positions do 32 bits with a sign have
NEAR = [[0, 1, 2, 3, 5, 9], [-1, -1, 0, 1, 4, 12]]
FAR = [[0, 1, 4095, 4096, 4097, 32767], [-1, 8191, 8192, 16384, 32766, 32767]]
TEXT = [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]]

OPERATIONS = [
    draft(
        "embedding",
        "a token is a row of the table: the first row, the last one, one twice",
        "embedding-counts-from-1 embedding-scaled",
        {"table": numbers(1, 29, 14), "ids": np.array([[0, 28, 7], [7, 13, 1]], dtype=np.int64)},
        "embedding",
    ),
    draft(
        "linear",
        "a matrix of 11 outputs and 17 inputs as checkpoints store it: x @ weight.T",
        "weights-transposed odd-weight-forgotten",
        {"x": numbers(2, 2, 3, 17), "weight": numbers(3, 11, 17, size=0.25)},
        "linear",
    ),
    draft(
        "linear-not-exact-in-16-bits",
        "numbers that float32 holds and 16 bits do not: whoever computes in 16 bits rounds them",
        "weights-transposed",
        {"x": narrow(6, 1, 3, 12), "weight": narrow(7, 9, 12)},
        "linear",
    ),
    draft(
        "linear-long-sums",
        "sums of 1024 numbers of one sign: a sum in 16 bits stays behind",
        "sums-in-16-bits",
        {
            "x": exact(1 + 0.25 * normal([100, 8], 1, 2, 1024)),
            "weight": exact(0.75 + 0.125 * normal([100, 9], 3, 1024)),
        },
        "linear",
    ),
    draft(
        "tied-head",
        "the logits where tie_word_embeddings is true: x @ table.T, of the table in `embedding`",
        "weights-transposed",
        {"x": numbers(5, 1, 4, 14), "weight": numbers(1, 29, 14)},
        "linear",
    ),
    rms_norm(
        "rms-norm",
        "a weight far from 1",
        "norm-weight-forgotten norm-weight-plus-1 mean-subtracted sum-of-squares "
        "norm-over-the-batch",
        seed=10,
        size=1.0,
        eps=1e-5,
    ),
    rms_norm(
        "rms-norm-of-small-numbers",
        "numbers so small that their mean square is near an epsilon of 1e-5",
        "eps-of-another-model eps-outside-the-root eps-forgotten",
        seed=11,
        size=2.0**-8,
        eps=1e-5,
    ),
    rms_norm(
        "rms-norm-another-epsilon",
        "numbers so small that their mean square is near an epsilon of 1e-6",
        "eps-outside-the-root eps-forgotten",
        seed=12,
        size=2.0**-10,
        eps=1e-6,
    ),
    rms_norm(
        "rms-norm-of-large-numbers",
        "numbers whose squares float16 does not hold",
        "squares-in-16-bits norm-weight-forgotten",
        seed=13,
        size=2.0**9,
        eps=1e-5,
    ),
    rope(
        "rope",
        "positions 0, 1, ... of two rows, one with padding; theta 10000",
        "rope-interleaved rope-backwards rope-exponent-halved rope-counts-from-1 "
        "rope-of-the-first-row rope-stretched",
        NEAR,
        theta=1e4,
    ),
    rope(
        "rope-theta-1e6",
        "positions 0, 1, ... of two rows, one with padding; theta 1000000",
        "rope-theta-ignored rope-interleaved rope-backwards rope-exponent-halved",
        NEAR,
        theta=1e6,
    ),
    rope(
        "rope-far",
        "positions on either side of a window of 4096, and up to 32767; theta 10000",
        "rope-by-slot rope-theta-grows",
        FAR,
        theta=1e4,
    ),
    rope(
        "rope-far-theta-1e6",
        "positions on either side of a window of 4096, and up to 32767; theta 1000000",
        "rope-by-slot rope-theta-ignored",
        FAR,
        theta=1e6,
    ),
    rope(
        "rope-past-2-24",
        "positions past 2^24, which float32 cannot count, so that angles have to be made of them "
        "in float64, or of integers; transformers and llama.cpp make them in float32, and differ; "
        "all frequencies are powers of 2",
        "rope-positions-in-float32 rope-angles-in-float32",
        [
            [PAST_FLOAT32 - 1, PAST_FLOAT32 + 1, PAST_FLOAT32 + 2, 3 * PAST_FLOAT32 + 1],
            [-1, PAST_INT32 - 1, PAST_INT32 + 1, 2 * PAST_INT32 + 3],
        ],
        theta=2.0**16,
        d=8,
        exact_angles=True,
    ),
    attention(
        "attention-one-to-one",
        "as many key/value heads as query heads, no window: causal attention of two rows",
        "future-seen blind-to-itself scores-not-scaled scores-scaled-twice one-head-for-all "
        "softmax-over-queries",
        20,
        (3, 3, 8),
        TEXT,
        TEXT,
        None,
    ),
    attention(
        "attention-two-to-one",
        "query head h reads key/value head h // 2",
        "tiled-heads one-head-for-all scores-scaled-by-the-model-width",
        23,
        (6, 3, 8),
        TEXT,
        TEXT,
        None,
    ),
    attention(
        "attention-four-to-one",
        "query head h reads key/value head h // 4",
        "tiled-heads one-head-for-all",
        26,
        (8, 2, 6),
        TEXT,
        TEXT,
        None,
    ),
    attention(
        "attention-window-1",
        "a window of 1: a query sees its own key alone",
        "inclusive-window no-window",
        29,
        (4, 2, 6),
        TEXT,
        TEXT,
        1,
    ),
    attention(
        "attention-window-3",
        "a window of 3: keys at distance 2 are seen, keys at distance 3 are not",
        "inclusive-window short-window no-window positions-of-the-first-row",
        32,
        (4, 2, 6),
        [[10, 11], [4, 5]],
        [[7, 8, 9, 10, 11, 12], [0, 1, 2, 3, 4, 5]],
        3,
    ),
    attention(
        "attention-window-4096",
        "a window of 4096: keys at distance 4095 are seen, keys at distance 4096 are not",
        "inclusive-window short-window no-window window-by-slot",
        35,
        (4, 2, 6),
        [[5000, 5001], [4095, 4096]],
        [[0, 903, 904, 905, 906, 4999, 5000, 5001], [0, 1, 2, 3, 4000, 4094, 4095, 4096]],
        4096,
    ),
    attention(
        "attention-no-window",
        "no window: keys are seen from any distance",
        "window-by-default",
        53,
        (4, 2, 6),
        [[5000, 32767], [0, 9000]],
        [[0, 1, 903, 904, 5000, 32767], [0, 1, 4000, 4904, 4905, 9000]],
        None,
    ),
    attention(
        "attention-ring-slots",
        "keys where a ring has put them, in no order; what is seen is a matter of positions alone",
        "causal-by-slot window-by-slot stops-at-the-first-hidden inclusive-window",
        38,
        (4, 2, 6),
        [[9, 10, 11], [6, 7, 8]],
        [[8, 9, 10, 11, 4, 5, 6, 7], [8, 1, 2, 3, 4, 5, 6, 7]],
        5,
    ),
    attention(
        "attention-padding",
        "slots with nothing in them and queries that are padding, at the left and at the right",
        "padding-seen masked-by-multiplying maximum-of-hidden-scores",
        41,
        (4, 2, 6),
        [[-1, -1, 0, 1], [0, 1, 2, -1], [5, 6, 7, 8]],
        [[-1, -1, 0, 1, -1, -1], [0, 1, 2, -1, -1, -1], [6, 7, 8, -1, 4, 5]],
        4,
    ),
    attention(
        "attention-nothing-visible",
        "a query that sees no key gets zeros; of the others each sees something; transformers, "
        "which adds the lowest number to hidden scores, lets it see all keys alike",
        "nan-for-who-sees-nothing masked-by-adding",
        44,
        (4, 2, 6),
        [[2, 3, 9], [4, 5, 6]],
        [[3, 4, -1, 9], [-1, -1, 6, 7]],
        3,
    ),
    attention(
        "attention-large-scores",
        "scores past 88, of which exp is infinite in float32 unless the largest is taken off",
        "softmax-overflows",
        420,  # the largest score of each query leads by 40, which 16 bits cannot undo
        (4, 2, 6),
        TEXT,
        TEXT,
        None,
        size=16.0,
    ),
    attention(
        "attention-past-2-24",
        "a window of 3 at positions past 2^24, where float32 takes neighbours for the same",
        "positions-in-float32-compared inclusive-window",
        63,
        (4, 2, 6),
        [[PAST_FLOAT32 + 1, PAST_FLOAT32 + 3], [PAST_FLOAT32 + 4, PAST_FLOAT32 + 5]],
        [[PAST_FLOAT32 + n for n in range(-2, 5)], [PAST_FLOAT32 + n for n in range(7)]],
        3,
    ),
    attention(
        "attention-past-2-31",
        "a window of 3 at positions past 2^31, which 32 bits take for negative",
        "positions-in-float32-compared inclusive-window",
        66,
        (4, 2, 6),
        [[PAST_INT32 - 1, PAST_INT32, PAST_INT32 + 1]],
        [[PAST_INT32 + n for n in range(-4, 3)]],
        3,
    ),
    attention(
        "attention-window-past-2-32",
        "a window of 2^32 + 2: its lower 32 bits are one of 2; keys are seen up to 2^32 + 1 away",
        "window-in-32-bits inclusive-window no-window",
        69,
        (4, 2, 6),
        [[5, 2**32 + 5]],
        [[1, 2, 3, 4, 5, 9, 2**32, 2**32 + 5]],
        2**32 + 2,
    ),
    with_nan(
        attention(
            "attention-hidden-nan",
            "NaN in empty slots, and in keys and values that no query sees: it has no influence; "
            "in transformers, which adds the lowest number to hidden scores, it stays NaN",
            "zero-times-nan maximum-of-hidden-scores masked-by-adding",
            72,
            (4, 2, 6),
            [[5, 6], [1, 2]],
            [[-1, 1, 4, 5, 6, 8], [-1, -1, 0, 1, 2, 3]],
            3,
        ),
        values=[(0, 0), (0, 1), (0, 5), (1, 0), (1, 5)],
        keys=[(0, 0), (0, 1), (0, 5), (1, 1), (1, 5)],
    ),
    with_nan(
        attention(
            "attention-visible-nan",
            "NaN in the value at position 5: the queries that see it get NaN, the others do not; "
            "in transformers, where weights of 0 count, and 0 times NaN is NaN, all of them do",
            "nan-swallowed zero-times-nan no-window",
            75,
            (4, 2, 6),
            [[4, 5, 7, 8]],
            [[2, 3, 4, 5, 6, 7, 8]],
            3,
        ),
        values=[(0, 3)],
        keys=[],
    ),
    many_keys(),
    draft(
        "silu-mul",
        "silu(gate) · up, silu(x) = x / (1 + exp(-x))",
        "gate-and-up-swapped gelu-for-silu sigmoid-for-silu",
        {"gate": numbers(50, 2, 3, 17, size=2.0), "up": numbers(51, 2, 3, 17)},
        "silu_mul",
    ),
    draft(
        "silu-mul-of-large-gates",
        "gates from -120 to 120: exp of either overflows in float32",
        "silu-overflows",
        {
            "gate": exact(np.linspace(-120, 120, 34).reshape(2, 1, 17)),
            "up": numbers(52, 2, 1, 17),
        },
        "silu_mul",
    ),
]
