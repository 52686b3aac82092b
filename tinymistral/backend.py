"""What a backend must implement. `discovery.py` chooses one.

The model computes through the methods of `Backend` alone. Its arrays are the backend's own; the
model uses only their `+`, `.reshape`, `.shape`, `.dtype` and basic slicing. No operation but
`scatter` changes its arguments or returns a view of one, and each returns the same bits every time.
Positions, ids and slots are NumPy int64 arrays on the host. The letters B, T, S, ... are explained
at the top of `model.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from tinymistral.config import MistralConfig

Array = Any  # an array of the backend's own

DTYPES = ("float32", "float64", "float16", "bfloat16")


class BackendUnavailable(ValueError):  # noqa: N818, as it is read after `raise`
    """A backend cannot run here: the reason, and the remedy, which says what to do about it."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason, remedy)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        """Both on one line."""
        return " ".join(f"{self.reason}; {self.remedy}".split())


class Backend(ABC):
    """The operations of a Mistral forward pass on one kind of array.

    `dtype` names what activations are rounded to after every operation. Inside an operation
    sums, norms and softmax are computed in float32 at least. Weights may be stored narrower.
    """

    name: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]]  # the supported ones, the default first
    chunk: ClassVar[int] = 512  # most tokens of a row that go through the model at once
    has_attention_weights: ClassVar[bool] = False
    # The supported head widths, all even; None: any even one.
    head_dims: ClassVar[Collection[int] | None] = None
    # Whether weights may be narrower than the activations; if not, the model widens them.
    narrow_weights: ClassVar[bool] = True
    # Laws of `tinymistral.conformance` that do not hold here, by name, and why.
    unsupported: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, dtype: str | None = None):
        self.dtype = self.check_dtype(dtype)

    @classmethod
    def check_dtype(cls, dtype: str | None) -> str:
        """Return the dtype asked for, or the default one; ValueError unless it is supported."""
        if dtype is None:
            return cls.dtypes[0]
        if dtype not in cls.dtypes:
            raise ValueError(
                f"dtype {dtype!r} is not one that backend {cls.name!r} supports; "
                f"expected one of {', '.join(cls.dtypes)}"
            )
        return dtype

    @classmethod
    def device(cls) -> str:
        """Name what it computes on here, such as "CPU" or "NVIDIA H100".

        Raises BackendUnavailable where it cannot run. Called before a backend is made.
        """
        return "CPU"

    @classmethod
    def details(cls) -> str:
        """Say on one line what else there is to know about how it computes here; "": nothing.

        For `tinymistral backends`. Called after `device`, where that did not raise.
        """
        return ""

    def chunk_for(self, rows: int) -> int:
        """Return how many tokens of a row go through the model at once, at most, of so many rows.

        `chunk`, unless a backend limits all rows together.
        """
        return self.chunk

    def prepare(self, config: MistralConfig) -> None:  # noqa: B027, as below
        """Make ready for a model of this shape, by compiling, say; called before its weights come.

        It may return at once, and let what it began go on while the weights are sent.
        """

    def check_memory(self, nbytes: int) -> None:  # noqa: B027, to be overridden where there is need
        """Raise BackendUnavailable if weights of so many bytes do not fit.

        Called before `asarray` gets the first of a model's weights. Tied ones count once; a cache
        takes more.
        """

    # Required. `operations.py` has each of them in plain NumPy.

    @abstractmethod
    def asarray(self, array: np.ndarray, dtype: str | None = None) -> Array:
        """Bring a NumPy array to the backend, in its own dtype or in the one named."""

    @abstractmethod
    def to_numpy(self, array: Array) -> np.ndarray:
        """Bring an array to the host, dtype kept (bfloat16 as `ml_dtypes.bfloat16`)."""

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Return an array of zeros."""

    @abstractmethod
    def take(self, array: Array, indices: np.ndarray, axis: int) -> Array:
        """Return a new array that gathers slices along an axis."""

    @abstractmethod
    def embedding(self, table: Array, ids: np.ndarray) -> Array:
        """Return rows `ids` (B, T) of `table` (V, D) -> (B, T, D), in the activations' dtype."""

    @abstractmethod
    def linear(self, x: Array, weight: Array) -> Array:
        """Map x (..., n) by weight (m, n) -> x @ weight.T (..., m)."""

    @abstractmethod
    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Scale x (..., D) to unit mean square: x / sqrt(mean(x²) + eps) · weight (D,).

        Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
        """

    @abstractmethod
    def rope_table(self, positions: np.ndarray, theta: float, d: int) -> Array:
        """Return what `rope` needs for `positions` (B, T); at position -1 anything finite.

        The angle of pair m at position i is i · theta^(-2m/d), computed in float64, since a
        float32 angle at position 32767 is off by up to 2^-10.
        """

    @abstractmethod
    def rope(self, x: Array, table: Array) -> Array:
        """Rotate the pairs (m, m + d/2) of each head of x (B, T, H, d) by the table's angles.

        Su et al. 2021, https://arxiv.org/abs/2104.09864, in the halves layout of HF checkpoints.
        """

    @abstractmethod
    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> Array:
        """Return softmax attention of q (B, T, H, d) over k and v (B, S, K, d) -> (B, T, H, d).

        Key j is visible to query i iff `j >= 0 and 0 <= i - j < window` (None: no upper bound),
        i and j being the values in `q_positions` (B, T) and `k_positions` (B, S), -1 where there
        is nothing. Scores are scaled by d^-0.5; query head h reads key/value head h // (H/K).
        A query without visible keys yields zeros; what is not visible has no influence, even NaN.
        """

    @abstractmethod
    def silu_mul(self, gate: Array, up: Array) -> Array:
        """Return silu(gate) · up, silu(x) = x / (1 + exp(-x)) (https://arxiv.org/abs/2002.05202)."""

    @abstractmethod
    def scatter(self, cache: Array, slots: np.ndarray, new: Array) -> Array:
        """Write new (B, T, K, d) into cache (B, S, K, d) at slots (B, T); -1 writes nothing.

        The slots of a row are distinct. May work in place: only the result is used afterwards.
        (After an interrupt a cache still has the old array; if the backend destroys it, that cache
        cannot be continued.)
        """

    # Comes for free.

    def run_piece(
        self,
        forward: Callable[..., Array],
        ids: np.ndarray,
        weights: Any,
        positions: np.ndarray,
        cache: Any,
        config: MistralConfig,
    ) -> Array:
        """Embed ids (B, T), and run them through all layers by `model.forward` -> (B, T, D).

        May be overridden where a piece, such as a token of each row, is computed faster as a whole.
        The result and the cache are then the same, but for the rounding of other sums; the result
        is a new array, which no later call changes. Not called where stages are shown to a tap.
        """
        x = self.embedding(weights.embed_tokens.weight, ids)
        return forward(x, weights, positions, cache, config, self)

    # Optional, declared by `has_attention_weights`.

    def attention_weights(
        self,
        q: Array,
        k: Array,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        window: int | None,
    ) -> Array:
        """Return the softmax that `attention` applies to v, as (B, H, T, S)."""
        raise ValueError(f"backend {self.name!r} does not give attention weights; use numpy")
