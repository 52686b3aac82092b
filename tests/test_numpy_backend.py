"""What is special to the fast backend: tiles, blocks, and data as it lies in a file.

That it computes what it should is in `test_operations.py`, and in the conformance suite.
"""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

from tinymistral import numpy_backend, threads
from tinymistral.conformance import test_attention, test_operations
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.operations import NUMPY_DTYPES

EVERY_DTYPE = pytest.mark.parametrize("dtype", list(NUMPY_DTYPES))


def laws_of(module):
    return [test for test in vars(module).values() if hasattr(test, "tinymistral_law")]


@pytest.mark.parametrize("scores", [1, 50])
@pytest.mark.parametrize("law", laws_of(test_attention), ids=lambda test: test.tinymistral_law.name)
def test_attention_in_tiles_of_any_size(law, scores):
    with patch.object(numpy_backend, "SCORES_A_TILE", scores):
        law(NumpyBackend("float32"))


@EVERY_DTYPE
@pytest.mark.parametrize("weights", [1, 100])
def test_linear_in_blocks_of_any_size(dtype, weights):
    sizes = {"WEIGHTS_A_BLOCK": weights, "WEIGHTS_A_PRODUCT": 2 * weights}
    with patch.multiple(numpy_backend, **sizes):
        test_operations.test_linear_is_dot_products(NumpyBackend(dtype))


@pytest.fixture
def three_threads(monkeypatch):
    """Let three threads compute whatever is done in parallel, however little it is."""
    for module in (threads, numpy_backend):
        monkeypatch.setattr(module, "threads", lambda: 3)
    for name in ("WEIGHTS_IN_PARALLEL", "PRODUCTS_IN_PARALLEL", "SCORES_IN_PARALLEL"):
        monkeypatch.setattr(numpy_backend, name, 0)
    for name in ("WEIGHTS_A_BLOCK", "WEIGHTS_A_PRODUCT", "SCORES_A_TILE"):
        monkeypatch.setattr(numpy_backend, name, 30)


@pytest.mark.parametrize(
    "law",
    [*laws_of(test_attention), test_operations.test_linear_is_dot_products],
    ids=lambda test: test.tinymistral_law.name,
)
def test_on_several_threads(law, three_threads):
    law(NumpyBackend("bfloat16"))


def test_where_the_ring_goes_on_at_its_beginning_only_visible_keys_are_read():
    # Positions 4 to 13 in a ring of 10 slots; W = 4, so that 13 sees 10 to 13, in slots 0 to 3,
    # and 11 sees 8 to 11, in slots 8, 9, 0 and 1.
    ring = np.array([10, 11, 12, 13, 4, 5, 6, 7, 8, 9], dtype=np.int64)
    for queries, slots in (
        ([13], [0, 1, 2, 3]),
        ([11], [0, 1, 8, 9]),
        ([11, -1, 12], [0, 1, 2, 8, 9]),
    ):
        found = numpy_backend._visible_slots(np.array(queries, dtype=np.int64), ring, 4)
        np.testing.assert_array_equal(np.arange(10)[found], slots)
    nothing = numpy_backend._visible_slots(np.array([-1], dtype=np.int64), ring, 4)
    assert nothing is None


def unaligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts on an odd address, as data in a file may."""
    raw = np.empty(array.nbytes + 1, dtype=np.uint8)
    raw[1:] = np.frombuffer(array.tobytes(), dtype=np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


class Unaligned(NumpyBackend):
    def asarray(self, array, dtype=None):
        return unaligned(super().asarray(array, dtype))


@EVERY_DTYPE
@pytest.mark.parametrize(
    "law", laws_of(test_operations), ids=lambda test: test.tinymistral_law.name
)
def test_arrays_may_start_on_an_odd_address(law, dtype):
    law(Unaligned(dtype))
