"""Small random configurations, models and texts, for tests of the whole model.

Shapes are drawn by hypothesis, numbers by a seed. The models are tiny but not tame: every part
of a layer bears on the result, attention is neither flat nor all on one key, and logits have a
standard deviation of about 3.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinymistral import MistralConfig, MistralForCausalLM
from tinymistral.backend import Backend
from tinymistral.numpy_backend import NUMPY_DTYPES
from tinymistral.pretrained import PreTrainedModel

seeds = st.integers(0, 2**32 - 1)
wide_dtypes = st.sampled_from(["float32", "float64"])
layers = st.integers(1, 3)
windows = st.sampled_from([1, 2, 3, 5, 100, None])  # 100: larger than any text here


@st.composite
def tiny_configs(
    draw: st.DrawFn,
    layers: st.SearchStrategy[int] = layers,
    windows: st.SearchStrategy[int | None] = windows,
) -> MistralConfig:
    """Grouped-query attention of any ratio, head_dim apart from hidden_size, tied or not."""
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (3, 1)]))
    return MistralConfig(
        vocab_size=draw(st.integers(5, 17)),
        hidden_size=draw(st.integers(4, 11)),
        intermediate_size=draw(st.integers(1, 11)),
        num_hidden_layers=draw(layers),
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4, 6])),
        sliding_window=draw(windows),
        tie_word_embeddings=draw(st.booleans()),
        rope_theta=draw(st.sampled_from([10.0, 10_000.0, 1e6])),
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        bos_token_id=None,
        eos_token_id=None,
    )


def config(**changes: Any) -> MistralConfig:
    """The configuration of the examples: every width another, two layers, window 3."""
    fields = {
        "vocab_size": 13,
        "hidden_size": 10,
        "intermediate_size": 7,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "sliding_window": 3,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return MistralConfig(**(fields | changes))


def tiny_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: str = "float32", sharpness: float = 1.5
) -> dict[str, np.ndarray]:
    """Weights that keep numbers at the size of 1; scores have deviation sharpness²."""
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


def tiny_model(
    config: MistralConfig,
    seed: int = 0,
    dtype: str = "float64",
    weight_dtype: str = "float32",
    sharpness: float = 1.5,
    kind: type[PreTrainedModel] = MistralForCausalLM,
    backend: Backend | None = None,
) -> Any:
    """A model of this configuration that computes in `dtype`, its weights stored in another."""
    tensors = tiny_tensors(kind.parameter_shapes(config), seed, weight_dtype, sharpness)
    return kind(config, tensors=tensors, backend=backend, dtype=None if backend else dtype)


def random_ids(config: MistralConfig, seed: int, *shape: int) -> np.ndarray:
    """Token ids, apart from the stream that the weights come from."""
    return np.random.default_rng([seed, 1]).integers(0, config.vocab_size, shape)


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def cut(total: int, sizes: list[int]) -> list[slice]:
    """Cut `total` tokens into pieces of these sizes, over and over, the last perhaps shorter."""
    out, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= total:
            break
        out.append(slice(start, min(start + size, total)))
        start += size
    return out


@st.composite
def masks(draw: st.DrawFn, rows: int, columns: int) -> np.ndarray:
    """A mask (rows, columns): no padding, left, right, nothing but padding, or holes."""
    out = np.ones((rows, columns), dtype=np.int64)
    for row in out:
        kind = draw(st.sampled_from(["none", "left", "right", "all", "holes"]))
        padding = draw(st.integers(0, columns))
        if kind == "left":
            row[:padding] = 0
        elif kind == "right":
            row[columns - padding :] = 0
        elif kind == "all":
            row[:] = 0
        elif kind == "holes":
            row[:] = draw(st.lists(st.integers(0, 1), min_size=columns, max_size=columns))
    return out


def cap_chunk(backend: Backend, chunk: int) -> Backend:
    """Let this backend's caches take pieces of at most `chunk` tokens."""
    backend.chunk = chunk  # type: ignore[misc]
    return backend
