"""Mistakes about embeddings, linear maps, dtypes, and the arrays of a backend."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

from tinymistral.mistakes.mistake import BUT_FLOAT64, ENTRIES, HALVES, ROUNDING, Mistake, mistake
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.operations import NUMPY_DTYPES

TABLE = "embedding_is_rows_of_the_table"
DOT_PRODUCTS = "linear_is_dot_products"
AS_THEY_ARE = "arrays_come_and_go_as_they_are"
AS_NUMPY = "arrays_add_reshape_and_slice_as_numpys_do"
SLICES = "take_gathers_slices_in_any_order"
ARRAYS = "only backends of tinymistral have these arrays"


@mistake("embedding", law=TABLE)
def embedding_counts_from_1(self, right, table, ids):
    """Each id gets the row before its own, as if ids began at 1.
    Fix: Token id 0 is the first row of the table."""
    return right(table, ids - 1)


@mistake(
    "embedding",
    law=TABLE,
    dtypes=("float32", "float64", "float16"),
    not_diagnosed="unrounded numbers are nearer to the right ones",
)
def embedding_not_converted(self, _, table, ids):
    """Embeddings keep the dtype of the stored table. Later stages may keep it too: the whole model
    then computes in bfloat16 unasked.
    Fix: Convert the rows to the dtype of the activations."""
    return table[ids]


@mistake("embedding", law=TABLE)
def embedding_scaled(self, _, table, ids):
    """Embeddings are multiplied by sqrt(D), as Gemma's are.
    Fix: Use the rows of the table without a factor."""
    return self.round(self.widen(table[ids]) * self.compute_dtype.type(table.shape[1] ** 0.5))


@mistake("linear", law=DOT_PRODUCTS)
def weights_transposed(self, right, x, weight):
    """A weight's memory is read as (inputs, outputs), as Flax and GPT-2 store it. The numbers are
    wrong, but the shapes fit.
    Fix: A weight is stored as (outputs, inputs): multiply by its transpose."""
    return right(x, weight.reshape(weight.shape[::-1]).T)


@mistake("linear", law=DOT_PRODUCTS, dtypes=HALVES, of_a_dtype=HALVES)
def sums_in_16_bits(self, _, x, weight):
    """Dot products are added up in 16 bits: the longer they are, the larger the error.
    Fix: Add up the products in float32, and round only the sum."""
    total = np.zeros((*x.shape[:-1], len(weight)), dtype=self.activation_dtype)
    for n, column in enumerate(weight.T):
        total = self.round(total + self.widen(x[..., n, None]) * self.widen(column))
    return total


@mistake(
    "linear",
    law=DOT_PRODUCTS,
    dtypes=("float64",),
    not_diagnosed="there is no tolerance for float64",
)
def float64_by_name_only(self, _, x, weight):
    """float64 is computed in float32 and converted afterwards.
    Fix: With dtype float64 compute every intermediate result in it."""
    return self.round(NumpyBackend("float32").linear(x.astype(np.float32), weight))


@mistake("linear", law=DOT_PRODUCTS, of_a_dtype=("bfloat16",))
def bfloat16_read_as_float16(self, right, x, weight):
    """The bits of bfloat16 weights are read as float16: all weights are near 2 or tiny.
    Fix: bfloat16 is the upper half of a float32: widen it by a shift of 16 bits."""
    return right(x, weight.view(np.float16) if weight.dtype == ml_dtypes.bfloat16 else weight)


@mistake("linear", law=DOT_PRODUCTS, of_a_dtype=("bfloat16",))
def widened_in_the_wrong_order(self, right, x, weight):
    """bfloat16 weights are read two at a time, and the two are swapped.
    Fix: In a little-endian pair the lower half is the first number: << 16 gives the even ones."""
    if weight.dtype == ml_dtypes.bfloat16:
        m, n = weight.shape
        pairs = weight[:, : n // 2 * 2].reshape(m, -1, 2)[:, :, ::-1].reshape(m, -1)
        weight = np.concatenate([pairs, weight[:, n // 2 * 2 :]], axis=1)
    return right(x, weight)


@mistake("linear", law=DOT_PRODUCTS)
def odd_weight_forgotten(self, right, x, weight):
    """Rows are multiplied two numbers at a time, and the last of an odd number is left out.
    Fix: After the loop over pairs, add the remaining number."""
    paired = np.arange(x.shape[-1]) < x.shape[-1] // 2 * 2
    return right(np.where(paired, x, x.dtype.type(0)), weight)


@mistake("linear", law="linear_of_slices_is_a_slice")
def strides_ignored(self, right, x, weight):
    """A view is read as if it were contiguous: with the last token of each row, all rows but the
    first are wrong.
    Fix: Read x by its strides, or copy a view to contiguous memory first."""
    return right(as_strided(x, x.shape, np.empty_like(x, order="C").strides), weight)


@mistake("linear", law="rows_of_a_batch_are_independent", of_a_dtype=BUT_FLOAT64)
def one_scale_for_the_batch(self, right, x, weight):
    """Activations are rounded to 8 bits, with one scale for all tokens of a batch. An outlier in
    one row changes the others.
    Fix: If activations are quantized, give each token a scale of its own."""
    wide = self.widen(x)
    step = np.abs(wide).max() / 127
    return right(self.round(np.round(wide / step) * step), weight)


def _rounding_to(dtype):
    """Return changes of `linear`, `embedding` and `rms_norm` that round weights to a dtype."""

    def rounded(weight):
        return weight.astype(dtype).astype(weight.dtype)

    return (
        ("linear", lambda self, right, x, weight: right(x, rounded(weight))),
        ("embedding", lambda self, right, table, ids: right(rounded(table), ids)),
        ("rms_norm", lambda self, right, x, weight, eps: right(x, rounded(weight), eps)),
    )


ENTRIES.extend(
    Mistake(
        f"weights-rounded-to-{dtype}",
        f"Weights are rounded to {dtype} when they are read, though all else is float32. "
        f"It does not show if the checkpoint is in {dtype} itself.",
        "Keep weights in the dtype of their file; if you compute in 16 bits, use --dtype.",
        _rounding_to(NUMPY_DTYPES[dtype]),
        dtypes=("float32",),
    )
    for dtype in HALVES
)


# Arrays


@mistake(
    "asarray",
    law="asarray_rounds_to_nearest",
    dtypes=("bfloat16",),
    not_diagnosed="it costs two roundings at most, which the tolerances allow",
)
def bfloat16_truncated(self, right, array, dtype=None):
    """float32 becomes bfloat16 by dropping its lower 16 bits: all numbers move towards 0.
    Fix: Round to nearest, ties to even, before the lower 16 bits are dropped."""
    if dtype != "bfloat16" or array.dtype not in (np.float32, np.float64):
        return right(array, dtype)
    upper = (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return upper.view(ml_dtypes.bfloat16)


@mistake("asarray", law=AS_THEY_ARE, dtypes=("float32", "float64", "float16"), not_diagnosed=ARRAYS)
def weights_converted_unasked(self, right, array, dtype=None):
    """`asarray` converts everything to the dtype of the activations. Narrow weights take two or
    four times the memory.
    Fix: Without a dtype, keep that of the array."""
    return right(array, dtype or self.dtype)


@mistake("to_numpy", law=AS_THEY_ARE, not_diagnosed=ARRAYS)
def float32_on_the_host(self, _, array):
    """`to_numpy` returns float32 whatever the array's dtype is.
    Fix: Return the array's own dtype, bfloat16 as `ml_dtypes.bfloat16`."""
    return array.astype(np.float32)


@mistake("zeros", law="zeros_are_zeros", not_diagnosed=ARRAYS)
def zeros_not_set(self, _, shape, dtype):
    """`zeros` only allocates: the memory still has its old contents.
    Fix: Write zeros to the memory that was allocated."""
    return np.full(shape, 3, dtype=NUMPY_DTYPES[dtype])


@mistake("take", law=SLICES, not_diagnosed=ARRAYS)
def take_along_the_first_axis(self, _, array, indices, axis):
    """`take` gathers rows whatever the axis is.
    Fix: Gather along the given axis."""
    return np.take(array, indices, axis=0, mode="clip")


@mistake("take", law=SLICES, not_diagnosed=ARRAYS)
def take_in_order(self, right, array, indices, axis):
    """`take` returns slices in rising order: rows of a reordered cache are in the wrong places.
    Fix: Gather slices in the order of the indices, and repeat those that are repeated."""
    return right(array, np.sort(indices), axis)


@mistake("take", law="what_is_taken_is_a_copy", not_diagnosed=ARRAYS)
def take_gives_a_view(self, right, array, indices, axis):
    """If all slices are taken in their order, `take` returns the array itself. A copy of a cache
    and its original then overwrite each other.
    Fix: Copy the slices even if the indices are all of them."""
    whole = np.array_equal(indices, np.arange(array.shape[axis]))
    return array if whole else right(array, indices, axis)


class ColumnMajor(np.ndarray):
    """An array whose first axis varies fastest."""

    def reshape(self, *shape: Any, **_: Any) -> Any:
        """Reshape in Fortran's order."""
        return super().reshape(*shape, order="F")


@mistake("asarray", law=AS_NUMPY)
def column_major_reshape(self, right, array, dtype=None):
    """`reshape` counts the first axis fastest, as in Fortran, R or Julia. Heads are mixed up.
    Fix: In `reshape` let the last axis vary fastest."""
    return right(array, dtype).view(ColumnMajor)


class WideSum(np.ndarray):
    """An array of 16 bits whose sums are float32."""

    def __add__(self, other: Any) -> Any:
        x, y = (np.asarray(array, dtype=np.float32) for array in (self, other))
        return x + y


@mistake("asarray", law=AS_NUMPY, dtypes=HALVES, not_diagnosed=ROUNDING)
def sums_not_rounded(self, right, array, dtype=None):
    """The sum of two arrays of 16 bits is float32, and so is all that follows from it.
    Fix: Round `x + y` to the dtype of its operands."""
    return right(array, dtype).view(WideSum)


@sums_not_rounded.also("to_numpy")
@column_major_reshape.also("to_numpy")
def _(self, _, array):
    return array.view(np.ndarray)
