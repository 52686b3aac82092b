"""Bugs to plant: an edit of a file that applies exactly once, and the check that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import kernel_checks as check
import numpy as np

from tinymistral.conformance.cases import Attention
from tinymistral_cupy.kernels import Kernels

# Two key/value heads, so that they can be confused; padding, and slots in any order.
SPLIT = Attention(B=2, T=2, S=140, K=2, group=3, d=6, window=None, first=3, seed=1)
TILES = Attention(B=2, T=11, S=140, K=2, group=3, d=6, window=None, first=3, seed=2)
SPLIT_WINDOW = Attention(B=1, T=8, S=70, K=1, group=2, d=6, window=20, first=3, seed=5)
TILES_WINDOW = Attention(B=1, T=20, S=70, K=1, group=2, d=6, window=20, first=3, seed=5)
SPLIT_ALL_MASKED = Attention(B=2, T=5, S=40, K=1, group=2, d=6, window=2, first=0, seed=4)
TILES_ALL_MASKED = Attention(B=2, T=19, S=40, K=1, group=2, d=6, window=2, first=0, seed=4)
# For `attention_tensor_cores`, whose tiles have 128 rows and 64 keys. In TENSOR the last tile has
# 22 keys, and is visible in each row of the batch; one that no query sees is not fetched.
TENSOR = Attention(B=2, T=70, S=150, K=2, group=2, d=16, window=20, first=3, seed=3)
TENSOR_ALL_MASKED = Attention(B=2, T=70, S=40, K=1, group=2, d=16, window=2, first=0, seed=4)
TENSOR_FAR_TILES = Attention(B=1, T=9, S=2200, K=1, group=4, d=16, window=90, first=2100, seed=6)


def only_the_last_key_of_a_tile(kernels: Kernels, dtype: str, T: int) -> None:
    """Of 64 keys key 31 alone is visible to the queries."""
    q, k, v = (check.drawn(dtype, 1, n, 2, 6, seed=n) for n in (T, 64, 65))
    v, at = v[:, :64], np.full((1, 64), 1000)
    at[0, 31] = 0
    out = check.attend(kernels, q, k, v, (np.arange(T)[None], at, None))
    np.testing.assert_array_equal(out, np.broadcast_to(v[:, 31:32], out.shape))


CHECKS: dict[str, Callable[[Kernels, str], None]] = {
    "norms": lambda kernels, dtype: check.norms(kernels, dtype, 3, 4104),
    "products": lambda kernels, dtype: check.products(kernels, dtype, 17, 2056),
    "products at an odd address": lambda kernels, dtype: check.products(
        kernels, dtype, 33, 40, offset=1
    ),
    "roundings": check.roundings,
    "silu": lambda kernels, dtype: check.silu(kernels, dtype, 1000),
    "rope": lambda kernels, dtype: check.rotations(kernels, dtype, 3, 3, 12),
    "rope by NaN": check.keeps_nan,
    "writes": lambda kernels, dtype: check.writes(kernels, dtype, 5, 9, 2, 12),
    "at an odd address": lambda kernels, dtype: check.norms(kernels, dtype, 2, 40, offset=1),
    "split": lambda kernels, dtype: check.mixes(kernels, dtype, SPLIT),
    "split, d = 40": lambda kernels, dtype: check.mixes(
        kernels, dtype, Attention(1, 2, 40, 1, 2, 40, None, 0, 5)
    ),
    "split, part of a cache": lambda kernels, dtype: check.mixes(kernels, dtype, SPLIT, spare=3),
    "split, window": lambda kernels, dtype: check.window_of_positions(kernels, dtype, 1, 2),
    "split, hides": lambda kernels, dtype: check.hides(kernels, dtype, SPLIT_WINDOW, np.nan),
    "split, all masked": lambda kernels, dtype: check.zeros(kernels, dtype, SPLIT_ALL_MASKED),
    "split, far": lambda kernels, dtype: check.has_exact_far_positions(kernels, dtype, 1, 2),
    "split, in rounds": lambda kernels, dtype: check.goes_in_rounds(kernels, dtype, 1),
    "split, 34 parts": lambda kernels, dtype: check.has_34_parts(kernels, dtype),
    "split, last key": lambda kernels, dtype: only_the_last_key_of_a_tile(kernels, dtype, 3),
    "tiles": lambda kernels, dtype: check.mixes(kernels, dtype, TILES),
    "tiles, part of a cache": lambda kernels, dtype: check.mixes(kernels, dtype, TILES, spare=3),
    "tiles, window": lambda kernels, dtype: check.window_of_positions(kernels, dtype, 3, 11),
    "tiles, hides": lambda kernels, dtype: check.hides(kernels, dtype, TILES_WINDOW, np.nan),
    "tiles, all masked": lambda kernels, dtype: check.zeros(kernels, dtype, TILES_ALL_MASKED),
    "tiles, far": lambda kernels, dtype: check.has_exact_far_positions(kernels, dtype, 3, 11),
    "tiles, large scores": lambda kernels, dtype: check.large_scores(kernels, dtype, TILES),
    "tiles, last key": lambda kernels, dtype: only_the_last_key_of_a_tile(kernels, dtype, 35),
    "split, last query": lambda kernels, dtype: check.the_last_key_is_visible_to_the_last_query(
        kernels, dtype, 2
    ),
    "tiles, last query": lambda kernels, dtype: check.the_last_key_is_visible_to_the_last_query(
        kernels, dtype, 40
    ),
    "scatter, far slots": check.writes_far,
    "split, far rows": lambda kernels, dtype: check.in_far_rows(kernels, dtype, 1),
    "tiles, far rows": lambda kernels, dtype: check.in_far_rows(kernels, dtype, 40),
    "split, far slots": lambda kernels, dtype: check.in_far_slots(kernels, dtype, 1),
    "tiles, far slots": lambda kernels, dtype: check.in_far_slots(kernels, dtype, 33),
    "tensor": lambda kernels, dtype: check.mixes(kernels, dtype, TENSOR),
    "tensor, 35 tiles": lambda kernels, dtype: check.mixes(kernels, dtype, TENSOR_FAR_TILES),
    "tensor, window": lambda kernels, dtype: check.window_of_positions(kernels, dtype, 3, 11, 16),
    "tensor, hides": lambda kernels, dtype: check.hides(kernels, dtype, TENSOR, np.nan),
    "tensor, lets through": lambda kernels, dtype: check.lets_through(
        kernels, dtype, TENSOR, np.inf
    ),
    "tensor, all masked": lambda kernels, dtype: check.zeros(kernels, dtype, TENSOR_ALL_MASKED),
    "tensor, large scores": lambda kernels, dtype: check.large_scores(kernels, dtype, TENSOR),
    "tensor, rising scores": lambda kernels, dtype: check.rising_scores(kernels, dtype, TENSOR),
    "tensor, other positions": check.follows_positions,
    "tensor, at an odd address": lambda kernels, dtype: check.mixes(
        kernels, dtype, TENSOR, offset=4
    ),
    "tensor, far rows": lambda kernels, dtype: check.in_far_rows(kernels, dtype, 40, 16),
    "tensor, costs": lambda kernels, dtype: check.fetches(kernels, dtype, 511, 3, 2),
    "tensor, ends of tiles": check.fetches_at_ends_of_tiles,
    "tensor, empty": check.skips_what_is_empty,
    "tensor, conflicts": lambda kernels, dtype: check.is_free_of_conflicts(kernels, dtype, 64),
}


@dataclass(frozen=True)
class Bug:
    """A bug: its edit of a file, and the one of CHECKS that catches it."""

    name: str
    old: str
    new: str
    check: str
    file: str = "mistral.cu"
    dtype: str = "float32"


VISIBLE = "return j >= 0 && 0 <= i - j && i - j < window;"
BARRIERS = {
    "before the keys are used": "        __syncthreads();\n        if (any) {\n",
    "after the keys were used": "        __syncthreads();\n        fetch<KEYS>(tile, S - first",
    "before the values are used": "        __syncthreads();\n        if (all == ALL)\n",
}

# Each of `tensor_cores.cu` in float16: name, edit, check.
SYNC = "        __syncthreads();\n"
TENSOR_BUGS = [
    ("operands are swapped", '"r"(low), "r"(high)', '"r"(high), "r"(low)', "tensor"),
    (
        "rows of the left operand are swapped",
        '"r"(a[1]), "r"(a[2])',
        '"r"(a[2]), "r"(a[1])',
        "tensor",
    ),
    ("values are not transposed", "m8n8.x4.trans.shared", "m8n8.x4.shared", "tensor"),
    (
        "a pair is swapped",
        ': "f"(second), "f"(first));\n#else',
        ': "f"(first), "f"(second));\n#else',
        "tensor",
    ),
    # Waits and barriers
    ("no barrier in whole tiles", f"if (whole) {{\n    {SYNC}", "if (whole) {\n", "tensor, costs"),
    (
        "no wait for a tile",
        "        wait_for_copies();\n        bool special",
        "        bool special",
        "tensor, costs",
    ),
    (
        "no wait before the results",
        "    wait_for_copies();\n    __syncthreads();\n    UNROLL",
        "    __syncthreads();\n    UNROLL",
        "tensor, all masked",
    ),
    (
        "no barrier before the results",
        "    wait_for_copies();\n    __syncthreads();\n    UNROLL",
        "    wait_for_copies();\n    UNROLL",
        "tensor, all masked",
    ),
    ("one buffer for all tiles", "        parity ^= 1;\n", "", "tensor"),
    (
        "no barrier before values are zeroed",
        "            __syncthreads();\n            #pragma",
        "            #pragma",
        "tensor, hides",
    ),
    (
        "no barrier after values are zeroed",
        "0xffff);\n            }\n            __syncthreads();\n",
        "0xffff);\n            }\n",
        "tensor, hides",
    ),
    (
        "no barrier before the rows' span",
        "    __syncthreads();\n    if (warp == 0)",
        "    if (warp == 0)",
        "tensor",
    ),
    # Masks and tiles
    (
        "edge tiles are not masked",
        "        if (!whole)\n            UNROLL",
        "        if (false)\n            UNROLL",
        "tensor",
    ),
    (
        "inner tiles are masked",
        "        if (!whole)\n            UNROLL",
        "        if (true)\n            UNROLL",
        "tensor, costs",
    ),
    (
        "a tile that begins at the last query is left out",
        "keys.least <= queries.greatest",
        "keys.least < queries.greatest",
        "tensor, ends of tiles",
    ),
    (
        "a tile that ends at the window's first key is left out",
        "queries.least - keys.greatest < window",
        "queries.least - keys.greatest < window - 1",
        "tensor, window",
    ),
    (
        "tiles before the window are fetched",
        "           queries.least - keys.greatest < window;",
        "           true;",
        "tensor, costs",
    ),
    (
        "tiles of the future are fetched",
        "keys.least <= queries.greatest &&",
        "true &&",
        "tensor, ends of tiles",
    ),
    (
        "a tile one key in the future is whole",
        "keys.greatest <= queries.least &&",
        "keys.greatest - 1 <= queries.least &&",
        "tensor, ends of tiles",
    ),
    (
        "a tile one key before the window is whole",
        "queries.greatest - keys.least < window",
        "queries.greatest - keys.least <= window",
        "tensor, ends of tiles",
    ),
    (
        "empty slots do not matter",
        "queries.whole && keys.whole &&",
        "queries.whole &&",
        "tensor, empty",
    ),
    (
        "padding does not matter",
        "queries.whole && keys.whole &&",
        "keys.whole &&",
        "tensor, empty",
    ),
    (
        "slots past the last have positions",
        "slot < S ? k_positions[(int64)",
        "true ? k_positions[(int64)",
        "tensor",
    ),
    (
        "only 32 tiles are examined",
        "if (next_group * LANES >= tiles) return",
        "if (next_group > 0) return",
        "tensor, 35 tiles",
    ),
    (
        "the first 32 tiles are taken for all",
        "return (next_group - 1) * LANES + bit",
        "return bit",
        "tensor, 35 tiles",
    ),
    # Rows, heads, slots
    (
        "the wrong head of the keys",
        "    k += b * stride + kv_head * d;",
        "    k += b * stride;",
        "tensor",
    ),
    (
        "a row's place is of 32 bits",
        "    v += b * stride +",
        "    v += (int)(b * stride) +",
        "tensor, far rows",
    ),
    ("keys past the last", "min(first + n, S - 1)", "(first + n)", "tensor"),
    (
        "keys past the last are visible",
        "slot < S ? k_positions[slot]",
        "true ? k_positions[min(slot, S - 1)]",
        "tensor",
    ),
    (
        "values past the last have positions",
        "first + key < S ? k_positions[first + key]",
        "true ? k_positions[first + key]",
        "tensor, hides",
    ),
    ("rows past the last are stored", "if (first_row + row < rows)\n", "if (true)\n", "tensor"),
    ("queries past the last", "        row = min(row, rows - 1);\n", "", "tensor"),
    ("rows of a tile lie without a gap", "PITCH = d + VECTOR;", "PITCH = d;", "tensor, conflicts"),
    # Softmax
    ("the sum is not rescaled", "sum[r] *= shrink;", ";", "tensor, rising scores"),
    (
        "the mix is not rescaled",
        "[r % 2 * 2 + e] *= shrink;",
        "[r % 2 * 2 + e];",
        "tensor, rising scores",
    ),
    (
        "the largest of two lanes",
        "largest[r] = fmaxf(largest[r], __shfl_xor_sync(ALL, largest[r], 1));",
        "",
        "tensor, large scores",
    ),
    ("weights up to 2^32", "SLACK = 8;", "SLACK = 32;", "tensor, rising scores"),
    ("the sum of two lanes", "lanes_sum(sum[r], 1, 4)", "lanes_sum(sum[r], 1, 2)", "tensor"),
    (
        "-infinity is subtracted from itself",
        "base[r] = LOWEST;",
        "base[r] = minus_infinity();",
        "tensor, all masked",
    ),
    # Values that are not finite
    (
        "a masked NaN is multiplied by 0",
        "special = __syncthreads_or(special);",
        "special = __syncthreads_or(0);",
        "tensor, hides",
    ),
    (
        "a visible infinity is lost",
        "add_not_finite(mix, values",
        "if (false) add_not_finite(mix, values",
        "tensor, lets through",
    ),
    (
        "infinity is added to all rows",
        "sees |= visible(position(r), j, window) << r;",
        "sees |= 1 << r;",
        "tensor, lets through",
    ),
]

BUGS = [
    *(
        Bug(f"tensor cores: {name}", old, new, which, "tensor_cores.cu", "float16")
        for name, old, new, which in TENSOR_BUGS
    ),
    *(
        Bug(f"tensor cores: {name}", old, new, which, "kernels.py", "float16")
        for name, old, new, which in (
            (
                "spans are those of the first positions",
                "if k_positions is not self._spans[0]:",
                "if self._spans[0] is None:",
                "tensor, other positions",
            ),
            (
                "addresses are not looked at",
                "elif self.has_tensor_cores(d) and vector == TENSOR_VECTOR:",
                "elif self.has_tensor_cores(d) and (vector := TENSOR_VECTOR):",
                "tensor, at an odd address",
            ),
        )
    ),
    *(
        Bug(f"one row: {name}", old, new, "products")
        for name, old, new in (
            ("packs past the end", "min(begin + p * STEP, n - VECTOR)", "begin + p * STEP"),
            ("packs past the end count", "if (column >= n) continue;", ""),
            ("rows past the last", "min(first + r, m - 1)", "(first + r)"),
            ("rows past the last are stored", "lane == 0 && first + r < m", "lane == 0"),
            ("some packs twice", "begin += AT_ONCE * STEP", "begin += 4 * STEP"),
            (
                "the sum of a lane",
                "const float all = lanes_sum(sum[r])",
                "const float all = sum[r]",
            ),
        )
    ),
    Bug(
        "one row: addresses are not looked at",
        "self._vector(n, x, weight)",
        "self._vector(n)",
        "products at an odd address",
        "kernels.py",
    ),
    # The mask
    *(
        Bug(f"{name}, {how}", VISIBLE, new, f"{how}, window")
        for how in ("split", "tiles")
        for name, new in (
            ("a window of one more", VISIBLE.replace("< window", "<= window")),
            ("a window of one less", VISIBLE.replace("< window", "< window - 1")),
            ("the future is visible", VISIBLE.replace("0 <= i - j && ", "")),
        )
    ),
    *(
        Bug(f"padding is visible, {how}", VISIBLE, VISIBLE.replace("j >= 0 && ", ""), how)
        for how in ("split", "tiles")
    ),
    *(
        Bug(
            f"positions of 32 bits, {how}",
            "visible_keys(int64 i, int64 j, int64 window)",
            "visible_keys(int i, int j, int64 window)",
            f"{how}, far",
        )
        for how in ("split", "tiles")
    ),
    Bug(
        "no window is one of 2^31",
        "NO_WINDOW = 2**63 - 1",
        "NO_WINDOW = 2**31 - 1",
        "split, far",
        "kernels.py",
    ),
    Bug(
        "a tile is skipped by its first key, split",
        "if (any == 0) continue;",
        "if (!(any & 1)) continue;",
        "split, last key",
    ),
    Bug(
        "a tile is skipped by its first key, tiles",
        "__syncthreads_or(any)",
        "__syncthreads_or(any & 1)",
        "tiles, last key",
    ),
    Bug(
        "a masked value is multiplied by 0, split",
        "if (WHOLE || among(key, mask[r]))",
        "if (true)",
        "split, hides",
    ),
    Bug(
        "a masked value is multiplied by 0, tiles",
        "if (WHOLE || among(key + n, mask[r]))",
        "if (true)",
        "tiles, hides",
    ),
    *(
        Bug(
            f"a tile is whole if one query has no mask, {how}",
            f"if (all == ALL)\n            {call}",
            f"if (any == ALL)\n            {call}",
            f"{how}, last query",
        )
        for how, call in (("split", "add_columns"), ("tiles", "add_values"))
    ),
    *(
        Bug(
            f"-infinity is subtracted from itself, {how}",
            "const float base = largest == minus_infinity() ? 0 : largest;",
            "const float base = largest;",
            f"{how}, all masked",
        )
        for how in ("split", "tiles")
    ),
    # Which head, which row, which slot
    Bug(
        "the wrong head of the values, split",
        "    v += b * stride + kv_head * d;\n\n    int64 i[N];",
        "    v += b * stride + (K - 1 - kv_head) * d;\n\n    int64 i[N];",
        "split",
    ),
    Bug(
        "the wrong head of the keys, tiles",
        "    k += b * stride + kv_head * d;\n    v += b * stride + kv_head * d;\n\n    if (QUADS",
        "    k += b * stride;\n    v += b * stride + kv_head * d;\n\n    if (QUADS",
        "tiles",
    ),
    Bug(
        "the last head of a group is missed",
        "rows = T * group, first_row = blockIdx.x * WARPS * ROWS",
        "rows = T * group - 1, first_row = blockIdx.x * WARPS * ROWS",
        "tiles",
    ),
    Bug(
        "blocks are too few for the last rows",
        "grid = (_ceil(rows, tile.warps * tile.rows), K, B)",
        "grid = (rows // (tile.warps * tile.rows), K, B)",
        "tiles",
        "kernels.py",
    ),
    *(
        Bug(
            f"a cache's rows are taken to be as long as what is used, {how}",
            "stride = np.int64(k.strides[0] // k.itemsize)",
            "stride = np.int64(S * K * d)",
            f"{how}, part of a cache",
            "kernels.py",
        )
        for how in ("split", "tiles")
    ),
    Bug("new ones go to the slot modulo the tokens", "+ slot) * n;", "+ slot % T) * n;", "writes"),
    Bug(
        "slot -1 is written to",
        "    if (slot < 0) return;\n    const int64 from = token * n",
        "    const int64 from = token * n",
        "writes",
    ),
    # More than 2^31 numbers away
    *(
        Bug(
            f"a row's place is of 32 bits, {how}, {name}",
            f"{before}    {name} += b * stride + kv_head * d;\n{after}",
            f"{before}    {name} += (int)(b * stride) + kv_head * d;\n{after}",
            f"{how}, far rows",
            dtype="bfloat16",
        )
        for how, name, before, after in (
            ("split", "k", "blockIdx.y % blocks * N, b = blockIdx.z;\n", ""),
            ("split", "v", "", "\n    int64 i[N];"),
            ("tiles", "k", "row % group) * d;\n    };\n", ""),
            ("tiles", "v", "", "\n    if (QUADS"),
        )
    ),
    Bug(
        "a slot's place is of 32 bits, split",
        "return (int64)(first + (among(key, any) ? key : instead)) * K * d;",
        "return (int64)((first + (among(key, any) ? key : instead)) * K * d);",
        "split, far slots",
        dtype="bfloat16",
    ),
    *(
        Bug(
            f"a slot's place is of 32 bits, tiles, {name}",
            f"return {name} + (int64)(first + s) * K * d;",
            f"return {name} + (first + s) * K * d;",
            "tiles, far slots",
            dtype="bfloat16",
        )
        for name in ("k", "v")
    ),
    Bug(
        "a slot's place is of 32 bits, scatter",
        "to = ((int)token / T * (int64)S + slot) * n;",
        "to = (int)(((int)token / T * (int64)S + slot) * n);",
        "scatter, far slots",
        dtype="bfloat16",
    ),
    # Past the end
    Bug("keys past the last", "address(min(row, count - 1))", "address(row)", "tiles"),
    Bug("rows past the last, tiles", "if (row < rows && column < d)", "if (column < d)", "tiles"),
    Bug(
        "rows past the last, split", "n < N * d && first_row + n / d < rows;", "n < N * d;", "split"
    ),
    Bug("queries past the last", "min(first_row + r, rows - 1)", "first_row + r", "split"),
    Bug("columns past the last", "inside ? column : 0", "column", "split, d = 40"),
    Bug(
        "the last tile is dropped if it is not full",
        "KEYS; first < S;\n",
        "KEYS; first + KEYS <= S;\n",
        "split",
    ),
    Bug(
        "the last split is dropped",
        "x[n] = first + n < splits ?",
        "x[n] = first + n < splits - 1 ?",
        "split",
    ),
    Bug(
        "splits from the 33rd on are dropped",
        "for (int first = 0; first < splits; first += LANES) {",
        "for (int first = 0; first < 1; first += LANES) {",
        "split, 34 parts",
    ),
    Bug(
        "the largest score of the first 32 splits",
        "for (int p = lane; p < splits; p += LANES)\n",
        "for (int p = lane; p < min(splits, LANES); p += LANES)\n",
        "split, 34 parts",
    ),
    Bug(
        "sums of weights are read past the last split",
        "if (p < splits) sum += sums",
        "sum += sums",
        "split",
    ),
    Bug(
        "splits are added as if they had one largest score",
        "const float shrink = p < splits ? exp2f(largest[p] - base) : 0;",
        "const float shrink = p < splits ? 1 : 0;",
        "split",
    ),
    Bug(
        "a block of two warps goes on as one of four",
        "         first += gridDim.x * warps * KEYS) {",
        "         first += gridDim.x * SPLIT_WARPS * KEYS) {",
        "split, in rounds",
    ),
    Bug(
        "blocks of two warps are merged as four",
        "&warp_mix[0][r][column], warps, N, one_largest,",
        "&warp_mix[0][r][column], SPLIT_WARPS, N, one_largest,",
        "split, in rounds",
    ),
    Bug(
        "scratch memory without room for sums",
        "B * T * H * (d + 2))",
        "B * T * H * d)",
        "split",
        "kernels.py",
    ),
    Bug(
        "addresses are not looked at",
        "self._most, numbers, *addresses)",
        "self._most, numbers)",
        "at an odd address",
        "kernels.py",
    ),
    # Softmax over several parts
    Bug("the mix is not rescaled, split", "mix[r][c] *= shrink;", ";", "split, in rounds"),
    Bug("the mix is not rescaled, tiles", "mix[r][c][n] *= shrink;", ";", "tiles, large scores"),
    *(
        Bug(
            f"the sum is not rescaled, {how}",
            "sum = sum * shrink + weight;",
            "sum = sum + weight;",
            which,
        )
        for how, which in (("split", "split, in rounds"), ("tiles", "tiles"))
    ),
    Bug(
        "merging ignores the largest",
        "const float shrink = exp2f(largest[p * step] - base);",
        "const float shrink = 1;",
        "split",
    ),
    Bug(
        "the largest of half a warp",
        "step < LANES; step *= 2) x = f",
        "step < 16; step *= 2) x = f",
        "tiles",
    ),
    Bug(
        "scores are divided by a root of d rounded up",
        "sqrt((double)d)",
        "sqrt((d + 3) / 4 * 4.0)",
        "tiles",
    ),
    # Threads that do not wait for each other, or read memory that none wrote
    *(
        Bug(f"no barrier {name}", old, old.replace("__syncthreads();", ""), "tiles")
        for name, old in BARRIERS.items()
    ),
    Bug(
        "only warps without a visible key go on",
        "if (!__syncthreads_or(any)) continue;",
        "if (!any) continue;",
        "tiles, all masked",
    ),
    Bug(
        "no barrier before splits are merged",
        "    __syncthreads();\n    const int64 rows_of_all",
        "    const int64 rows_of_all",
        "split",
    ),
    Bug(
        "no barrier after the zeros",
        "        __syncthreads();\n    }\n    fetch",
        "    }\n    fetch",
        "tiles",
    ),
    Bug(
        "no barrier in the norm",
        "    __syncthreads();\n    squares = 0;",
        "    squares = 0;",
        "norms",
    ),
    Bug(
        "all warps put their weights in one place",
        "weights[warp][r][lane] =",
        "weights[0][r][lane] =",
        "tiles",
    ),
    Bug(
        "rows of keys are taken to lie without a gap",
        "tile[lane * STRIDE + quad]",
        "tile[lane * QUADS + quad]",
        "tiles",
    ),
    Bug(
        "a team's keys are taken for another's",
        "__shfl_sync(ALL, weights[r], key)",
        "__shfl_sync(ALL, weights[r], step)",
        "split",
    ),
    # Rounding, and formulas
    Bug(
        "bfloat16 is truncated",
        "(x != x ? bits | 0x400000 : rounded) >> 16",
        "bits >> 16",
        "roundings",
        dtype="bfloat16",
    ),
    Bug(
        "ties are always rounded up",
        "bits + 0x7fff + (bits >> 16 & 1)",
        "bits + 0x8000",
        "roundings",
        dtype="bfloat16",
    ),
    Bug(
        "NaN is rounded",
        "(x != x ? bits | 0x400000 : rounded)",
        "rounded",
        "rope by NaN",
        dtype="bfloat16",
    ),
    Bug(
        "squares are summed in float16",
        "squares += a[n] * a[n];",
        "squares = widen(narrow(squares + a[n] * a[n]));",
        "norms",
        dtype="float16",
    ),
    Bug(
        "epsilon outside of the root",
        "rsqrtf(squares / D + eps)",
        "rsqrtf(squares / D) + eps",
        "norms",
    ),
    Bug(
        "the norm is of half a row",
        "float squares = 0;\n    for (int column = threadIdx.x * VECTOR; column < D;",
        "float squares = 0;\n    for (int column = threadIdx.x * VECTOR; column < D / 2;",
        "norms",
    ),
    Bug(
        "heads are rotated the other way",
        "a[i] * c[i] - b[i] * s[i]",
        "a[i] * c[i] + b[i] * s[i]",
        "rope",
    ),
    Bug("silu without its gate", "__fdividef(g[n], 1", "__fdividef(1, 1", "silu"),
]
