"""Small models with random weights, and sequences of calls with one cache.

The models are tiny, but every part of a layer matters for the result: attention is neither uniform
nor all on one key, and logits have a standard deviation of about 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
from hypothesis import strategies as st

from tinymistral import pretrained
from tinymistral.backend import Backend
from tinymistral.config import MistralConfig
from tinymistral.conformance.cases import seeds, sizes, widths
from tinymistral.heads import MistralForCausalLM
from tinymistral.operations import NUMPY_DTYPES

windows = st.sampled_from([1, 2, 3, 5, 100, None])  # 100: longer than any text here


@dataclass(frozen=True)
class Tiny:
    """A configuration in the letters of `model.py`, and weights from a seed."""

    V: int
    D: int
    F: int
    layers: int
    K: int
    group: int
    d: int
    window: int | None
    theta: float
    eps: float
    tied: bool
    stored: str
    seed: int
    sharpness: float = 1.5  # scores have the standard deviation sharpness²
    as_stored: bool = False  # matrices keep their dtype, as those of a large model do

    @property
    def config(self) -> MistralConfig:
        """Return its config; head_dim does not depend on hidden_size."""
        return MistralConfig(
            vocab_size=self.V,
            hidden_size=self.D,
            intermediate_size=self.F,
            num_hidden_layers=self.layers,
            num_attention_heads=self.K * self.group,
            num_key_value_heads=self.K,
            head_dim=self.d,
            sliding_window=self.window,
            rope_theta=self.theta,
            rms_norm_eps=self.eps,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=None,
            max_position_embeddings=2**30,
        )

    def model(self, backend: Backend) -> MistralForCausalLM:
        """Return the model, on a backend."""
        shapes = MistralForCausalLM.parameter_shapes(self.config)
        tensors = tiny_tensors(shapes, self.seed, self.stored, self.sharpness)
        widened = 0 if self.as_stored else pretrained.WIDENED_AT_MOST
        with patch.object(pretrained, "WIDENED_AT_MOST", widened):
            return MistralForCausalLM(self.config, backend=backend, tensors=tensors)

    def ids(self, rows: int, tokens: int, *which: int) -> np.ndarray:
        """Return random ids (rows, tokens); another `which` gives other ones."""
        return np.random.default_rng([self.seed, 1, *which]).integers(0, self.V, (rows, tokens))


def tiny_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: str, sharpness: float
) -> dict[str, np.ndarray]:
    """Return weights that keep activations near 1; scores have the deviation sharpness²."""
    rng, tensors = np.random.default_rng([seed, 0]), {}
    for name, shape in shapes.items():
        numbers = rng.standard_normal(shape)
        if len(shape) == 1:
            numbers = 1 + 0.3 * numbers
        else:
            of_scores, of_logits = ("q_proj", "k_proj"), ("embed_tokens", "lm_head")
            gain = sharpness if any(part in name for part in of_scores) else 1.0
            gain = 3.0 if any(part in name for part in of_logits) else gain
            numbers *= gain / shape[1] ** 0.5
        tensors[name] = numbers.astype(NUMPY_DTYPES[dtype])
    return tensors


@st.composite
def tinies(
    draw: st.DrawFn,
    backend: Backend,
    layers: st.SearchStrategy[int] = st.integers(1, 2),  # noqa: B008
    windows: st.SearchStrategy[int | None] = windows,
    sharpness: float = 1.5,
    widths: Callable[[Backend], st.SearchStrategy[int]] = widths,
) -> Tiny:
    """Draw a model for a backend."""
    wide = backend.dtype in ("float32", "float64")
    stored = ("float32", "float16", "bfloat16") if wide else (backend.dtype,)
    K, group = draw(st.sampled_from([(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (3, 1)]))
    return Tiny(
        V=draw(st.integers(5, 17)),
        D=draw(st.integers(4, 11)),
        F=draw(st.integers(1, 11)),
        layers=draw(layers),
        K=K,
        group=group,
        d=draw(widths(backend)),
        window=draw(windows),
        theta=draw(st.sampled_from([10.0, 10_000.0, 1e6])),
        eps=draw(st.sampled_from([1e-5, 1e-6])),
        tied=draw(st.booleans()),
        stored=draw(st.sampled_from(stored)),
        seed=draw(seeds),
        sharpness=sharpness,
        as_stored=draw(st.booleans()),
    )


@dataclass(frozen=True)
class Step:
    """The next tokens of every row: "0110" has two, and padding on both sides.

    Each row first goes back by `back` tokens, as after a rejected draft. If `copy` names rows of
    the cache, the step is taken with a copy of these rows, then with the original; the next step
    continues with the copy.
    """

    masks: tuple[str, ...]
    back: tuple[int, ...]
    copy: tuple[int, ...] | None = None

    def positions(self, last: Iterator[int]) -> np.ndarray:
        """Return positions (B, T), -1 for padding; `last` has the last position of each row."""
        new = np.array([[int(digit) for digit in mask] for mask in self.masks], dtype=np.int64)
        starts = np.array(list(last), dtype=np.int64)[:, None]
        return np.where(new == 1, starts + np.cumsum(new, axis=1), -1)


@dataclass(frozen=True)
class Stream:
    """A model, the chunk of its cache, and the steps to take with it."""

    tiny: Tiny
    chunk: int
    steps: tuple[Step, ...]

    @property
    def rows(self) -> int:
        """B, the number of rows."""
        return len(self.steps[0].masks)


@st.composite
def masks(draw: st.DrawFn, columns: int) -> str:
    """Draw the mask of a row: no padding, left, right, only padding, or with holes."""
    padding = draw(st.integers(0, columns))
    tokens = "1" * (columns - padding)
    return draw(
        st.sampled_from(["1" * columns, "0" * padding + tokens, tokens + "0" * padding])
        | st.just("0" * columns)
        | st.text("01", min_size=columns, max_size=columns)
    )


@st.composite
def streams(
    draw: st.DrawFn,
    backend: Backend,
    most_steps: int = 4,
    layers: st.SearchStrategy[int] = st.integers(1, 2),  # noqa: B008
) -> Stream:
    """Draw a stream whose ring wraps in some cases."""
    rows, chunk = draw(sizes(3)), draw(sizes(4))
    row = st.integers(0, rows - 1)
    some = st.lists(row, min_size=rows, max_size=rows).map(tuple)
    copies = st.none() | st.just(tuple(range(rows))) | some

    def step(columns: int) -> st.SearchStrategy[Step]:
        return st.builds(
            Step,
            masks=st.tuples(*[masks(columns) for _ in range(rows)]),
            back=st.tuples(*[st.sampled_from([0, 0, 0, 1, 2, 4]) for _ in range(rows)]),
            copy=copies,
        )

    steps = st.tuples(*[sizes(chunk).flatmap(step) for _ in range(draw(sizes(most_steps)))])
    few = st.sampled_from([1, 2, 3, 5, None])
    return Stream(draw(tinies(backend, layers, few)), chunk, draw(steps))


@dataclass(frozen=True)
class Decoding:
    """Prompts of these lengths, padded on the left, and `steps` tokens of each row after them.

    Before step `leaves`, if there is one, the first of several rows leaves the batch.
    """

    tiny: Tiny
    chunk: int
    lengths: tuple[int, ...]
    steps: int
    leaves: int


def decodings(backend: Backend) -> st.SearchStrategy[Decoding]:
    """Draw a decoding during which storage grows, and the ring wraps in some cases."""
    few = st.sampled_from([1, 2, 3, 5, None])
    return st.builds(
        Decoding,
        tiny=tinies(backend, st.integers(1, 2), few, sharpness=0.5),
        chunk=sizes(4),
        lengths=sizes(3).flatmap(lambda rows: st.tuples(*[sizes(4)] * rows)),
        steps=sizes(9),
        leaves=st.integers(0, 9),
    )
