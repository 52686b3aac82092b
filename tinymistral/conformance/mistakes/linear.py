"""Mistakes about embeddings and linear maps."""

# ruff: noqa: D102 (backend.py says what the methods do)

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

from tinymistral.conformance.mistakes.catalogue import HALVES, mistake
from tinymistral.numpy_backend import NumpyBackend


@mistake(
    "embedding-counts-from-1",
    law="embedding_is_rows_of_the_table",
    fix="Token id 0 is the first row of the table.",
)
class EmbeddingCountsFrom1(NumpyBackend):
    """Each id is given the row before its own, as if ids began at 1."""

    def embedding(self, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return super().embedding(table, ids - 1)


@mistake(
    "embedding-not-converted",
    law="embedding_is_rows_of_the_table",
    fix="Convert the rows to the dtype of the activations.",
    dtypes=("float32", "float64", "float16"),
)
class EmbeddingNotConverted(NumpyBackend):
    """Embeddings keep the dtype that the table is stored in.

    What follows may keep it too: a whole model then computes in bfloat16 unasked.
    """

    def embedding(self, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return table[ids]


@mistake(
    "embedding-scaled",
    law="embedding_is_rows_of_the_table",
    fix="Mistral's embeddings are the rows of the table as they are.",
)
class EmbeddingScaled(NumpyBackend):
    """Embeddings are multiplied by sqrt(D), as Gemma's are."""

    def embedding(self, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return self.round(self.widen(table[ids]) * self.compute_dtype.type(table.shape[1] ** 0.5))


@mistake(
    "weights-transposed",
    law="linear_is_dot_products",
    fix="A weight is stored as (outputs, inputs): multiply by its transpose.",
)
class WeightsTransposed(NumpyBackend):
    """A weight's memory is read as (inputs, outputs), as Flax and GPT-2 store it.

    Shapes fit, for square weights even without a reshape; the numbers are nonsense.
    """

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return super().linear(x, weight.reshape(weight.shape[::-1]).T)


@mistake(
    "sums-in-16-bits",
    law="linear_is_dot_products",
    fix="Add up the products in float32, and round the sum alone.",
    dtypes=HALVES,
)
class SumsIn16Bits(NumpyBackend):
    """Dot products are added up in 16 bits: the longer they are, the less is left of them."""

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        total = np.zeros((*x.shape[:-1], len(weight)), dtype=self.activation_dtype)
        for n, column in enumerate(weight.T):
            total = self.round(total + self.widen(x[..., n, None]) * self.widen(column))
        return total


@mistake(
    "float64-by-name-only",
    law="linear_is_dot_products",
    fix="Where float64 is asked for, keep every intermediate in it.",
    dtypes=("float64",),
)
class Float64ByNameOnly(NumpyBackend):
    """float64 is computed in float32 and converted afterwards."""

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return self.round(NumpyBackend("float32").linear(x.astype(np.float32), weight))


@mistake(
    "bfloat16-read-as-float16",
    law="linear_is_dot_products",
    fix="bfloat16 is the upper half of a float32: widen it by a shift of 16 bits.",
)
class Bfloat16ReadAsFloat16(NumpyBackend):
    """The bits of bfloat16 weights are read as float16: all weights are near 2 or tiny."""

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        narrow = weight.dtype == ml_dtypes.bfloat16
        return super().linear(x, weight.view(np.float16) if narrow else weight)


@mistake(
    "widened-in-the-wrong-order",
    law="linear_is_dot_products",
    fix="On a little-endian machine the lower half of two is the first: << 16 gives the even ones.",
)
class WidenedInTheWrongOrder(NumpyBackend):
    """bfloat16 weights are read two at a time, and the two change places."""

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        if weight.dtype == ml_dtypes.bfloat16:
            m, n = weight.shape
            pairs = weight[:, : n // 2 * 2].reshape(m, -1, 2)[:, :, ::-1].reshape(m, -1)
            weight = np.concatenate([pairs, weight[:, n // 2 * 2 :]], axis=1)
        return super().linear(x, weight)


@mistake(
    "odd-weight-forgotten",
    law="linear_is_dot_products",
    fix="After the loop over whole vectors add what is left of the row.",
)
class OddWeightForgotten(NumpyBackend):
    """Rows are multiplied two numbers at a time, and the last of an odd number is left out."""

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        paired = np.arange(x.shape[-1]) < x.shape[-1] // 2 * 2
        return super().linear(np.where(paired, x, x.dtype.type(0)), weight)


@mistake(
    "strides-ignored",
    law="linear_of_slices_is_a_slice",
    fix="Read x by its strides, or copy a view to contiguous memory first.",
)
class StridesIgnored(NumpyBackend):
    """A view is read as if it were contiguous.

    Of the last token of each row, only the first row's is right. One row alone is, too.
    """

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return super().linear(as_strided(x, x.shape, np.empty_like(x, order="C").strides), weight)


@mistake(
    "one-scale-for-the-batch",
    law="rows_of_a_batch_are_independent",
    fix="If activations are quantized, give each token a scale of its own.",
)
class OneScaleForTheBatch(NumpyBackend):
    """Activations are rounded to 8 bits, with one scale for all tokens of a batch.

    An outlier in one row changes the others.
    """

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        wide = self.widen(x)
        step = np.abs(wide).max() / 127
        return super().linear(self.round(np.round(wide / step) * step), weight)
