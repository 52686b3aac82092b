"""The rolling cache against a list that keeps every token.

Keys and values are serial numbers here, so that a slot shows which token it holds. What a query
should find is read off the list by the oracle's rule of what is visible.
"""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from strategies import config, tiny_model

from tinymistral.cache import RollingCache
from tinymistral.conformance import oracle
from tinymistral.numpy_backend import NumpyBackend

BACKEND = NumpyBackend("float64")
LAYERS, HEADS, WIDTH = 2, 1, 2


def new_cache(rows, window, chunk, backend=BACKEND):
    shape = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": WIDTH}
    return RollingCache(
        config(sliding_window=window, num_hidden_layers=LAYERS, **shape), backend, rows, chunk
    )


def write(cache, slots, serials):
    """As a layer does: k is the serial number, v the same and a tenth, plus 1000 a layer."""
    new = np.broadcast_to(serials[..., None, None], (*serials.shape, HEADS, WIDTH)).astype(float)
    for n in range(LAYERS):
        cache.k[n] = BACKEND.scatter(cache.k[n], slots, new + 1000 * n)
        cache.v[n] = BACKEND.scatter(cache.v[n], slots, new + 1000 * n + 0.1)


def feed(cache, *pieces):
    """Take in pieces of positions, the same for all rows; each is its own serial number."""
    for piece in pieces:
        positions = np.tile(np.array(piece), (len(cache.count), 1))
        cache.admit(positions)
        write(cache, cache.slots, positions)


# Examples


def test_the_example_of_the_docstring():
    cache = new_cache(1, window=3, chunk=2)
    feed(cache, [0, 1], [2, 3], [4, 5])
    assert cache.capacity == 4
    assert cache.key_positions.tolist() == [[4, 5, 2, 3]]
    feed(cache, [6, 7])
    assert cache.key_positions.tolist() == [[4, 5, 6, 7]]
    feed(cache, [8])
    assert cache.key_positions.tolist() == [[8, 5, 6, 7]]
    k, v = cache.read(1)
    assert k[0, :, 0, 0].tolist() == [1008, 1005, 1006, 1007]
    assert v[0, :, 0, 0].tolist() == [1008.1, 1005.1, 1006.1, 1007.1]
    assert (cache.count.tolist(), cache.last.tolist()) == ([9], [8])


def test_a_new_cache_is_empty():
    cache = new_cache(3, window=None, chunk=5)
    assert cache.capacity is None
    assert (cache.count.tolist(), cache.last.tolist()) == ([0] * 3, [-1] * 3)
    assert cache.key_positions.shape == (3, 0)
    assert new_cache(1, 4, None).chunk == BACKEND.chunk


def test_a_backend_may_limit_the_tokens_of_all_rows_together(monkeypatch):
    monkeypatch.setattr(type(BACKEND), "chunk_for", lambda backend, rows: 12 // rows)
    cache = new_cache(3, 5, None)
    assert (cache.chunk, cache.capacity) == (4, 5 + 4 - 1)
    assert new_cache(3, 5, 2).chunk == 2  # as it was asked for


def test_padding_takes_no_slot():
    cache = new_cache(2, window=3, chunk=3)
    cache.admit(np.array([[-1, -1, 0], [0, -1, 1]]))
    assert cache.slots.tolist() == [[-1, -1, 0], [0, -1, 1]]
    assert cache.key_positions.tolist() == [[0, -1], [0, 1]]
    cache.admit(np.array([[-1, -1, -1], [2, 3, 4]]))
    assert cache.slots.tolist() == [[-1, -1, -1], [2, 3, 4]]
    assert cache.count.tolist() == [1, 5]
    assert cache.last.tolist() == [0, 4]


def test_room_grows_to_the_ring_and_no_further():
    cache = new_cache(2, window=3, chunk=2)
    cache.reserve(3)
    assert [array.shape for array in cache.k + cache.v] == [(2, 3, HEADS, WIDTH)] * 2 * LAYERS
    cache.reserve(100)
    assert cache.positions.shape == (2, 4)
    k = list(map(id, cache.k))
    feed(cache, *([n] for n in range(20)))
    assert list(map(id, cache.k)) == k
    assert cache.positions.shape == (2, 4)


def test_room_without_a_window_keeps_what_it_holds():
    cache = new_cache(1, window=None, chunk=2)
    feed(cache, [0, 1], [2, 3], [4])
    cache.reserve(50)
    assert cache.positions.shape[1] >= 55
    assert cache.key_positions.tolist() == [[0, 1, 2, 3, 4]]
    assert cache.read(0)[0][0, :, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_no_memory_for_more_room_leaves_the_cache_usable():
    class Full(NumpyBackend):
        left = 4  # the empty arrays

        def zeros(self, shape, dtype):
            self.left -= 1
            if self.left < 0:
                raise MemoryError
            return super().zeros(shape, dtype)

    backend = Full("float64")
    cache = new_cache(1, None, 8, backend)
    for room in (4, 8):
        backend.left = 1  # room for one of four arrays
        with pytest.raises(MemoryError):
            cache.reserve(room)
        backend.left = 100
        feed(cache, list(range(room - 4, room)))
        assert cache.key_positions.tolist() == [list(range(room))]
        assert [array.shape[:2] for array in cache.k + cache.v] == [cache.positions.shape] * 4
        assert cache.read(1)[0][0, :, 0, 0].tolist() == [1000 + n for n in range(room)]


def test_a_draft_is_taken_back():
    cache = new_cache(1, window=3, chunk=2)
    feed(cache, [0, 1], [2, 3], [4, 5])
    feed(cache, [4])
    assert cache.key_positions.tolist() == [[4, -1, 2, 3]]
    assert (cache.count.tolist(), cache.last.tolist()) == ([5], [4])


def test_back_by_more_than_the_chunk_is_refused():
    cache = new_cache(2, window=3, chunk=2)
    feed(cache, [0, 1], [2, 3], [4, 5])
    refusal = r"^position_ids: row 1 goes back .*3, .*; go back by at most 2 tokens, [^\n]*$"
    with pytest.raises(ValueError, match=refusal):
        cache.admit(np.array([[6], [3]]))
    assert cache.key_positions.tolist() == [[4, 5, 2, 3]] * 2
    assert cache.count.tolist() == [6, 6]


def test_weights_are_put_in_the_order_of_tokens():
    cache = new_cache(2, window=3, chunk=2)
    cache.admit(np.array([[0, 1], [-1, 0]]))
    cache.admit(np.array([[2, 3], [-1, 1]]))
    cache.admit(np.array([[4, -1], [-1, 2]]))  # slots hold 4 1 2 3 and 0 1 2 -
    weights = np.array([[[[0.4, 0.1, 0.2, 0.3]]], [[[0.5, 0.6, 0.7, 0.0]]]])
    np.testing.assert_array_equal(
        cache.in_token_order(weights),
        [[[[0.0, 0.1, 0.2, 0.3, 0.4]]], [[[0.5, 0.6, 0.7, 0.0, 0.0]]]],
    )


def test_selected_rows_are_copies():
    cache = new_cache(3, window=3, chunk=2)
    cache.admit(np.array([[0, 1], [-1, 0], [-1, -1]]))
    chosen = cache.select(np.array([1, 0, 1]))
    assert chosen.key_positions.tolist() == [[0, -1], [0, 1], [0, -1]]
    assert chosen.count.tolist() == [1, 2, 1]
    assert chosen.mask.tolist() == [[False, True], [True, True], [False, True]]
    chosen.admit(np.array([[1], [2], [3]]))
    assert cache.count.tolist() == [2, 1, 0]
    assert cache.key_positions.tolist() == [[0, 1], [0, -1], [-1, -1]]


def test_the_mask_is_remembered_up_to_its_last_zero():
    # As many columns as there are tokens would be 32,000 times B, for a text without padding.
    cache = tiny_model(config())([[1, 2, 3]], [[0, 1, 1]]).past_key_values
    assert (cache.columns, cache.mask.tolist()) == (3, [[False]])


# A list that keeps everything


class Row:
    """The tokens of a row, (position, serial number), and the most there have been."""

    def __init__(self, tokens=(), most=0):
        self.tokens, self.most = list(tokens), most

    def copy(self):
        return Row(self.tokens, self.most)

    def add(self, positions, serials):
        new = [(i, n) for i, n in zip(positions, serials, strict=True) if i >= 0]
        if new:
            self.tokens = [token for token in self.tokens if token[0] < new[0][0]] + new
            self.most = max(self.most, len(self.tokens))

    @property
    def last(self):
        return self.tokens[-1][0] if self.tokens else -1


class CacheAgainstList(RuleBasedStateMachine):
    """Pieces, rejected drafts, interrupted pieces; branches that go on side by side."""

    @initialize(
        rows=st.integers(1, 3),
        window=st.sampled_from([1, 2, 3, 4, None]),
        chunk=st.integers(1, 4),
        reserved=st.integers(0, 9),
    )
    def start(self, rows, window, chunk, reserved):
        self.window, self.chunk, self.serial = window, chunk, 0
        cache = new_cache(rows, window, chunk)
        cache.reserve(reserved)
        self.branches = [(cache, [Row() for _ in range(rows)], np.empty((rows, 0), dtype=bool))]

    def draw_piece(self, data, starts):
        """Positions that rise from these starts, with padding and gaps, and serial numbers."""
        T = data.draw(st.integers(1, self.chunk))
        step = st.sampled_from([1, 1, 1, 1, 2, 5])
        positions = np.full((len(starts), T), -1, dtype=np.int64)
        for row, i in zip(positions, starts, strict=True):
            i -= 1
            for t in range(T):
                if data.draw(st.integers(0, 5)):
                    i += data.draw(step)
                    row[t] = i
        serials = self.serial + np.arange(positions.size).reshape(positions.shape)
        self.serial += positions.size
        return positions, serials

    def draw_branch(self, data):
        return data.draw(st.integers(0, len(self.branches) - 1))

    def take_in(self, n, positions, serials):
        cache, rows, mask = self.branches[n]
        cache.reserve(positions.shape[1])
        call = cache.begin()
        call.admit(positions)
        write(call, call.slots, serials)
        call.commit()
        for row, *new in zip(rows, positions, serials, strict=True):
            row.add(*new)
        self.branches[n] = cache, rows, np.hstack([mask, positions >= 0])
        self.check_queries(cache, rows, positions)

    def check_queries(self, cache, rows, positions):
        """Each query of a piece finds the keys and values of the tokens visible to it."""
        for b, row in enumerate(rows):
            at = cache.key_positions[b]
            for i in positions[b][positions[b] >= 0]:
                due = [n for j, n in row.tokens if oracle.visible(i, j, self.window)]
                visible = [s for s in range(len(at)) if oracle.visible(i, at[s], self.window)]
                assert sorted(at[visible]) == [
                    j for j, _ in row.tokens if oracle.visible(i, j, self.window)
                ]
                for layer in range(LAYERS):
                    for array, mark in zip(cache.read(layer), (0, 0.1), strict=True):
                        found = sorted(array[b, visible, 0, 0])
                        assert found == [n + 1000 * layer + mark for n in sorted(due)]

    @rule(data=st.data())
    def a_piece(self, data):
        n = self.draw_branch(data)
        starts = [row.last + 1 for row in self.branches[n][1]]
        self.take_in(n, *self.draw_piece(data, starts))

    @rule(data=st.data())
    def a_piece_that_goes_back(self, data):
        n = self.draw_branch(data)
        cache, rows, _ = self.branches[n]
        starts, safe = [], True
        for row in rows:
            back = data.draw(st.integers(0, min(len(row.tokens), self.chunk + 2)))
            starts.append(row.tokens[-back][0] if back else row.last + 1)
            lost = cache.capacity is not None and row.most > cache.capacity
            safe &= not back or not lost or row.most - (len(row.tokens) - back) <= self.chunk
        piece = self.draw_piece(data, starts)
        before = self.state(cache)
        try:
            self.take_in(n, *piece)
        except ValueError as error:
            assert not safe, error
            for now, then in zip(self.state(cache), before, strict=True):
                np.testing.assert_array_equal(now, then)

    @rule(data=st.data())
    def an_interrupted_piece(self, data):
        n = self.draw_branch(data)
        cache, rows, _ = self.branches[n]
        positions, serials = self.draw_piece(data, [row.last + 1 for row in rows])
        call = cache.begin()
        call.admit(positions)
        if data.draw(st.booleans()):
            write(call, call.slots, -serials)
        for row, new in zip(rows, positions, strict=True):
            row.most = max(row.most, len(row.tokens) + np.count_nonzero(new >= 0))

    @precondition(lambda self: len(self.branches) < 3)
    @rule(data=st.data())
    def a_branch(self, data):
        cache, rows, mask = self.branches[self.draw_branch(data)]
        chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=3))
        branch = cache.select(np.array(chosen, dtype=np.int64))
        self.branches.append((branch, [rows[row].copy() for row in chosen], mask[chosen]))

    @rule(data=st.data(), tokens=st.integers(0, 9))
    def room(self, data, tokens):
        self.branches[self.draw_branch(data)][0].reserve(tokens)

    @staticmethod
    def state(cache):
        arrays = [array for n in range(len(cache.k)) for array in cache.read(n)]
        return [array.copy() for array in (cache.key_positions, cache.count, *arrays)]

    @invariant()
    def the_books_are_right(self):
        for cache, rows, mask in self.branches:
            assert cache.count.tolist() == [len(row.tokens) for row in rows]
            assert cache.last.tolist() == [row.last for row in rows]
            assert all(array.shape[:2] == cache.positions.shape for array in cache.k + cache.v)
            assert cache.capacity is None or cache.positions.shape[1] <= cache.capacity
            assert cache.columns == mask.shape[1]
            np.testing.assert_array_equal(mask[:, : cache.mask.shape[1]], cache.mask)
            assert mask[:, cache.mask.shape[1] :].all()

    @invariant()
    def the_next_token_will_find_its_predecessors(self):
        for cache, rows, _ in self.branches:
            self.check_queries(cache, rows, cache.last[:, None] + 1)

    @invariant()
    def every_slot_holds_a_token_of_its_row_or_nothing(self):
        for cache, rows, _ in self.branches:
            by_slot = cache.key_positions
            by_token = cache.in_token_order(by_slot[:, None, None] + 1)[:, 0, 0] - 1
            for b, row in enumerate(rows):
                held = sorted(j for j in cache.positions[b] if j >= 0)
                positions = [j for j, _ in row.tokens]
                assert held == positions[len(positions) - len(held) :]
                gone = len(positions) - len(held)
                wanted = [-1] * gone + held
                assert by_token[b].tolist() == wanted + [-1] * (len(by_token[b]) - len(wanted))


CacheAgainstList.TestCase.settings = settings(stateful_step_count=25)
TestTheCacheHoldsWhatAListHolds = CacheAgainstList.TestCase
