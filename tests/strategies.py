"""Small random configurations, models and texts, for tests of the whole model.

Shapes are drawn by hypothesis, numbers by a seed, as in `tinymistral.conformance.models`.
"""

import itertools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinymistral import MistralConfig, MistralForCausalLM
from tinymistral.backend import Backend
from tinymistral.conformance.cases import seeds as seeds
from tinymistral.conformance.models import tinies, tiny_tensors, windows
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.pretrained import PreTrainedModel

wide_dtypes = st.sampled_from(["float32", "float64"])


def tiny_configs(
    windows: st.SearchStrategy[int | None] = windows,
) -> st.SearchStrategy[MistralConfig]:
    """Grouped-query attention of any ratio, head_dim apart from hidden_size, tied or not."""
    widths = st.sampled_from([2, 4, 6])
    tiny = tinies(NumpyBackend(), st.integers(1, 3), windows, widths=lambda backend: widths)
    return tiny.map(lambda drawn: drawn.config)


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
