"""The cases of the suite that are calls of a whole model, or what it generates, as data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinymistral.golden.making.calls import inputs_of
from tinymistral.golden.making.drafts import Draft
from tinymistral.golden.making.drawing import integers
from tinymistral.golden.making.models import MODELS

ONE = [("1", "1")]  # one more token of two rows


def calls(
    name: str,
    says: str,
    catches: str,
    model: str,
    masks: Sequence[tuple[str, ...]],
    seed: int,
    first: int = 0,
) -> Draft:
    """Draft calls: for each the mask of each row, "0011" being two tokens after padding.

    Positions begin at `first`.
    """
    config = MODELS[model].config
    rows = ["".join(parts) for parts in zip(*masks, strict=True)]
    real = np.array([[int(digit) for digit in row] for row in rows], dtype=np.int64)
    positions = np.where(real == 1, first + np.cumsum(real, axis=1) - 1, -1)
    ids = integers(
        [200, seed], config.vocab_size, *real.shape
    )  # in padding too, so that a look shows
    inputs = inputs_of(ids, positions, [len(call[0]) for call in masks], config.sliding_window)
    return Draft(
        name,
        "model",
        says,
        tuple(catches.split()),
        inputs,
        model=model,
        exact_angles=bool(positions.max() >= 2**24),
    )


def greedy(
    name: str,
    says: str,
    catches: str,
    model: str,
    lengths: tuple[int, ...],
    new: int,
    seeds: tuple[int, ...],
) -> Draft:
    """Draft a continuation of prompts of these lengths, each of a seed, padded on the left."""
    width, vocabulary = max(lengths), MODELS[model].config.vocab_size
    real = np.arange(width) >= width - np.array(lengths)[:, None]
    inputs = {
        "input_ids": np.stack([integers([200, seed], vocabulary, width) for seed in seeds]),
        "attention_mask": real.astype(np.int64),
    }
    parameters = {"max_new_tokens": new}
    return Draft(
        name, "generate", says, tuple(catches.split()), inputs, model=model, parameters=parameters
    )


CALLS = [
    calls(
        "plain",
        "two texts at once, shorter than the window: begin here",
        "rope-interleaved tiled-heads gate-and-up-swapped norm-weight-forgotten residual-lost",
        "plain",
        [("1111111", "1111111")],
        13,
    ),
    calls(
        "plain-decode",
        "a prompt, then one token at a time, still within the window",
        "rope-begins-anew keys-not-turned values-turned growth-forgets layers-share-a-cache",
        "plain",
        [("1111", "1111"), *ONE * 2],
        2,
    ),
    calls(
        "window-at-once",
        "one call with a text of more than twice the window",
        "inclusive-window short-window no-window window-of-the-piece",
        "window",
        [("1" * 12,)],
        3,
    ),
    calls(
        "window-wrap-by-decode",
        "a prompt of 3, then one token at a time past the window of 5",
        "added-to-the-slot positions-not-updated rope-begins-anew inclusive-window",
        "window",
        [("111", "111"), *ONE * 5],
        4,
    ),
    calls(
        "window-wrap-by-chunks",
        "calls of 4 tokens, fewer than the window of 5: each still sees 4 keys before it",
        "evict-before-attend ring-too-small window-of-the-piece causal-by-slot",
        "window",
        [("1111", "1111")] * 3,
        5,
    ),
    calls(
        "window-wrap-by-long-chunks",
        "calls of 7 tokens, more than the window of 5",
        "evict-before-attend ring-too-small window-of-the-piece",
        "window",
        [("1111111",)] * 2,
        6,
    ),
    calls(
        "window-wrap-by-both",
        "a prompt of 6, then calls of 1, 6 and 1",
        "evict-before-attend ring-too-small added-to-the-slot stops-at-the-first-hidden",
        "window",
        [("111111",), ("1",), ("111111",), ("1",)],
        7,
    ),
    calls(
        "window-1",
        "a window of 1: a prompt and two more tokens, none of which sees another; transformers' "
        "cache keeps every key where the window is 1, and lets later calls see them all",
        "inclusive-window no-window",
        "window-1",
        [("11111",), ("1",), ("1",)],
        8,
    ),
    calls(
        "no-window",
        "a text with no window and a theta of 1000000, then two more tokens",
        "rope-theta-ignored rope-exponent-halved",
        "no-window",
        [("1" * 9,), ("1",), ("1",)],
        9,
    ),
    calls(
        "left-padding",
        "prompts of 4, 7 and 1 tokens with padding on the left, then two more tokens of each",
        "padding-seen padding-takes-slots positions-of-the-first-row rope-of-the-first-row "
        "length-of-the-first-row",
        "window",
        [("0001111", "1111111", "0000001"), ("1", "1", "1"), ("1", "1", "1")],
        10,
    ),
    calls(
        "right-padding",
        "texts of 7, 4 and 1 tokens with padding on the right; a cache that keeps the last columns "
        "of the batch rather than the last tokens of each row, as transformers' does, holds less",
        "padding-seen",
        "window",
        [("1111111", "1111000", "1000000")],
        11,
    ),
    calls(
        "ragged-chunks",
        "rows that go on by different numbers of tokens in each call; a window counts a row's own "
        "tokens, where transformers' counts columns of the batch, padding too, and differs",
        "padding-takes-slots slots-of-the-first-row padding-written-to-the-last-slot "
        "padding-stored",
        "window",
        [("11111", "00111"), ("1111", "1100"), ("1000", "1111"), ("11", "01")],
        12,
    ),
    calls(
        "one-to-one",
        "as many key/value heads as query heads, past a window of 4; weights that 16 bits do not "
        "hold, so that whoever computes in 16 bits rounds them",
        "one-head-for-all inclusive-window",
        "one-to-one",
        [("111111",), ("1",)],
        13,
    ),
    calls(
        "four-to-one",
        "four query heads to a key/value head, theta 1000000, past a window of 6; odd widths, and "
        "activations so small that an epsilon of 1e-6 is felt",
        "tiled-heads one-head-for-all rope-theta-ignored eps-outside-the-root odd-weight-forgotten",
        "four-to-one",
        [("1111111",), ("1",)],
        14,
    ),
    calls(
        "tied",
        "the output head is the embedding",
        "embedding-scaled weights-transposed",
        "tied",
        [("1111111",), ("1",)],
        15,
    ),
    calls(
        "small-activations",
        "activations so small that epsilon is felt in every norm",
        "eps-of-another-model eps-outside-the-root eps-forgotten",
        "small",
        [("111111",), ("1",)],
        16,
    ),
    calls(
        "bfloat16-weights",
        "weights stored in bfloat16, past a window of 7",
        "inclusive-window",
        "bfloat16",
        [("11111111",), ("1",)],
        17,
    ),
    calls(
        "float16-weights",
        "weights stored in float16, past a window of 3; a number in what is normed is large, and "
        "whoever rounds to 8 bits with one scale loses the others",
        "inclusive-window one-scale-for-the-batch",
        "float16",
        [("11111",), ("1",)],
        18,
    ),
    calls(
        "far-positions",
        "a text at positions 32756 to 32767, in calls of 8 and 4: distances alone count",
        "rope-theta-grows rope-theta-ignored",
        "no-window",
        [("1" * 8,), ("1111",)],
        19,
        first=32756,
    ),
    calls(
        "positions-past-2-24",
        "a text whose positions begin at 2^24 - 3, past a window of 5: float32 cannot count them; "
        "transformers and llama.cpp make angles in float32, and differ",
        "rope-positions-in-float32 rope-angles-in-float32 positions-in-float32-compared",
        "far",
        [("1" * 8,), ("1",)],
        21,
        first=2**24 - 3,
    ),
    calls(
        "large-numbers",
        "squares, scores and gates so large that float16 does not hold the squares, and float32 "
        "not exp of the others",
        "softmax-overflows silu-overflows maximum-of-hidden-scores squares-in-16-bits",
        "large",
        [("1111",), ("1",)],
        24,
    ),
    calls(
        "long-sums",
        "sums of 256 numbers, of which the first is large: sums in 16 bits lose the others",
        "sums-in-16-bits",
        "long-sums",
        [("111",)],
        25,
    ),
    calls(
        "raw-twin",
        "two texts on `window`, whose raw checkpoint `raw-layout` computes the same from",
        "rope-interleaved",
        "window",
        [("111111", "111111")],
        20,
    ),
    calls(
        "raw-layout",
        "the texts of `raw-twin` on a raw checkpoint: other names, and wq and wk in pairs",
        "rope-interleaved",
        "raw",
        [("111111", "111111")],
        20,
    ),
]

GREEDY = [
    greedy(
        "greedy-past-the-window",
        "the likeliest token each time, to more than ten times the window of 5",
        "inclusive-window added-to-the-slot positions-not-updated",
        "window",
        (7,),
        48,
        (235,),
    ),
    greedy(
        "greedy-left-padding",
        "prompts of 9, 5 and 1 tokens, padded on the left, go on past the window of 7",
        "padding-seen padding-counted positions-of-the-first-row",
        "bfloat16",
        (9, 5, 1),
        18,
        (696, 555, 4),
    ),
    greedy(
        "greedy-no-window",
        "the likeliest token each time, with no window",
        "rope-theta-ignored rope-begins-anew",
        "no-window",
        (5,),
        28,
        (688,),
    ),
    Draft(
        "greedy-demo",
        "generate",
        'the demo model goes on with "One day the wolf", given as ids, past its window of 64',
        ("inclusive-window", "rope-interleaved", "gate-and-up-swapped"),
        {
            "input_ids": np.array([[1, 1102, 507, 262, 1330]], dtype=np.int64),
            "attention_mask": np.ones((1, 5), dtype=np.int64),
        },
        model="demo",
        parameters={"max_new_tokens": 100},
    ),
]
