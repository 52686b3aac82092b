"""Kernels: compiles `mistral.cu` and `tensor_cores.cu` as needed, and launches their kernels.

The module `cp` is cupy or its stand-in. The letters B, T, S, ... are explained at the top of
`mistral.cu`. All arrays are on the card and contiguous, except `k` and `v` of `attention`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tinymistral.backend import Array
from tinymistral.config import MistralConfig
from tinymistral_cupy.compiling import Modules

SOURCE = Path(__file__).with_name("mistral.cu")
TENSOR_SOURCE = Path(__file__).with_name("tensor_cores.cu")  # compiled behind the other

DTYPES = {  # the stored dtype, and the value of DTYPE in the source
    "float32": (np.dtype(np.float32), 32),
    "float16": (np.dtype(np.float16), 16),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), -16),
}

LANES = 32  # of a warp
KEYS = LANES  # of a tile
VECTOR_BYTES = 16  # the most that a thread loads at once
THREADS = 256  # of a block, at most, in kernels on single tokens
LINEAR_ROWS = 2  # of a matrix, that a warp of `linear` takes
# Of a block of `attention_split_4` and `_8`; the other where the card is nearly full of blocks
# without any split: at batch 32 two splits of 2 warps took an H100 241 µs, one of 4 took 317.
SPLIT_WARPS = 4
SPLIT_WARPS_OF_MANY = 2

# Up to this many rows (tokens times heads that share keys) `attention_split_4` or `_8` is used: it
# keeps the whole card busy, although it reads keys and values again for every 8 rows. More rows
# go to `attention`, which works in tiles.
MOST_SPLIT_ROWS = 32

MOST_BATCH = 65535  # the most blocks that a grid can have along its third axis, which is B

NO_WINDOW = 2**63 - 1


@dataclass(frozen=True)
class Tile:
    """The size of a block of `attention`: its warps, and the rows of each warp."""

    warps: int
    rows: int


def attention_tile(d: int) -> Tile:
    """Return the largest tile whose queries and keys, in float32, are within 48 KB."""
    return Tile(warps=8, rows=4) if d <= 128 else Tile(warps=4, rows=2)


# `attention_tensor_cores` is for 16 bits, these head widths, and arrays that can be loaded 16 bytes
# at a time, on cards from this compute capability on. `attention` takes everything else.
TENSOR_WIDTHS = (16, 32, 64, 128)
TENSOR_CAPABILITY = 80
TENSOR_VECTOR = 8
TENSOR_BLOCKS = 2  # that a multiprocessor should hold, so that one computes while the other waits


@dataclass(frozen=True)
class TensorTile:
    """The size of a block of `attention_tensor_cores`: its warps, their rows in 16s, and keys."""

    warps: int
    row_tiles: int
    keys: int

    @property
    def rows(self) -> int:
        """The rows of a block."""
        return self.warps * self.row_tiles * 16

    def shared_bytes(self, d: int) -> int:
        """Return the dynamic shared memory of a block: queries, and two tiles of keys and values.

        Each row of d numbers is followed by 16 unused bytes.
        """
        return (self.rows + 4 * self.keys) * (d + TENSOR_VECTOR) * 2


def tensor_tile(d: int, shared: int) -> TensorTile:
    """Return the tile of most keys of which a multiprocessor with `shared` bytes holds two."""
    tiles = [TensorTile(warps=4, row_tiles=2, keys=keys) for keys in (64, 32)]
    # Positions and what CUDA keeps for itself, 1 KB each, and some bytes more
    fitting = [t for t in tiles if TENSOR_BLOCKS * (t.shared_bytes(d) + 2304) <= shared]
    return [*fitting, tiles[-1]][0]


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of a kernel a multiprocessor holds, and what each may use at most for that.

    A multiprocessor has 65,536 registers. Of shared memory it has 228 KB (sm_90 and 100), 164
    (sm_80), 100 (sm_120) or 64 (sm_75); where that is too little, `blocks_sm_75` says what fits.
    """

    threads: int  # of a block
    registers: int  # of a thread
    shared: int  # bytes of a block
    blocks: int
    blocks_sm_75: int


OCCUPANCY = {
    "rms_norm": Occupancy(THREADS, 64, 128, blocks=4, blocks_sm_75=4),
    "linear": Occupancy(THREADS, 128, 0, blocks=2, blocks_sm_75=2),
    "silu_mul": Occupancy(THREADS, 64, 0, blocks=4, blocks_sm_75=4),
    "rope": Occupancy(THREADS, 64, 0, blocks=4, blocks_sm_75=4),
    "scatter": Occupancy(THREADS, 64, 0, blocks=4, blocks_sm_75=4),
    "attention": Occupancy(256, 128, 42 * 1024, blocks=2, blocks_sm_75=1),
    "attention_split_4": Occupancy(128, 255, 17 * 1024, blocks=2, blocks_sm_75=2),
    "attention_split_8": Occupancy(128, 255, 33 * 1024, blocks=2, blocks_sm_75=1),
    "attention_combine": Occupancy(256, 64, 0, blocks=4, blocks_sm_75=4),
}
TENSOR_OCCUPANCY = {
    "key_spans": Occupancy(THREADS, 64, 0, blocks=4, blocks_sm_75=0),
    "attention_tensor_cores": Occupancy(128, 255, 104 * 1024, TENSOR_BLOCKS, blocks_sm_75=0),
}


class Kernels:
    """The kernels for one storage dtype of activations, weights and cache.

    A source is compiled for a width of loads and of heads: ahead by `prepare`, or when it is first
    needed. `attention` reuses its scratch memory, so use one object for one stream only.
    """

    def __init__(self, cp: Any, dtype: str):
        """Compile the kernels on single tokens.

        `cp` is cupy or its stand-in; `dtype` is "float32", "float16" or "bfloat16". Raises
        ValueError for another.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: the kernels are for {', '.join(DTYPES)}")
        self._cp = cp
        self._dtype, self._number = DTYPES[dtype]
        self._modules = Modules(cp)
        self._functions: dict[tuple[str, int, int], Any] = {}
        card = cp.cuda.Device()
        self._multiprocessors = card.attributes["MultiProcessorCount"]
        self._shared = card.attributes["MaxSharedMemoryPerMultiprocessor"]
        self._capability = int(card.compute_capability)
        self._scratch = cp.empty(0, dtype=np.float32)
        self._spans: tuple[Array, Array] = (None, None)  # positions of keys, and their spans
        self._function("rms_norm", self._most)

    @property
    def _most(self) -> int:
        """The most numbers that are loaded at once."""
        return VECTOR_BYTES // self._dtype.itemsize

    def with_own_scratch(self) -> Kernels:
        """Return the same kernels, with scratch memory that nobody else uses."""
        new = copy.copy(self)
        new._scratch, new._spans = self._cp.empty(0, dtype=np.float32), (None, None)
        return new

    def prepare(self, config: MistralConfig) -> None:
        """Begin to compile what a model needs, side by side, and return at once."""
        D, d = config.hidden_size, config.head_dim
        self._begin("rms_norm", gcd(self._most, D))
        self._begin("rope", gcd(self._most, d // 2))
        self._begin("attention", gcd(self._most, d), d)
        if self.has_tensor_cores(d):
            self._begin("attention_tensor_cores", TENSOR_VECTOR, d)

    # A token by itself

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Return the RMS norm of x (..., D), times weight (D,); a block for each row."""
        self._check(x=x, weight=weight)
        out = self._cp.empty(x.shape, dtype=x.dtype)
        if x.size:
            D = x.shape[-1]
            vector = self._vector(D, x, weight)
            args = (x, weight, out, np.int32(D), np.float32(eps))
            self._launch("rms_norm", vector, (x.size // D,), _threads(D // vector), args)
        return out

    def linear(self, x: Array, weight: Array) -> Array:
        """Return x (1, n) times weight (m, n) transposed -> (1, m); a warp for LINEAR_ROWS of m."""
        self._check(x=x, weight=weight)
        m, n = weight.shape
        out = self._cp.empty((1, m), dtype=x.dtype)
        if m:
            vector = self._vector(n, x, weight)
            threads = _threads(_ceil(m, LINEAR_ROWS) * LANES)
            grid = (_ceil(m, LINEAR_ROWS * threads // LANES),)
            self._launch(
                "linear", vector, grid, threads, (x, weight, out, np.int32(n), np.int32(m))
            )
        return out

    def silu_mul(self, gate: Array, up: Array) -> Array:
        """Return silu(gate) · up, of any shape; a thread for each vector."""
        self._check(gate=gate, up=up)
        out = self._cp.empty(gate.shape, dtype=gate.dtype)
        if gate.size:
            vector = self._vector(gate.size, gate, up)
            threads = _threads(gate.size // vector)
            grid = (_ceil(gate.size // vector, threads),)
            self._launch("silu_mul", vector, grid, threads, (gate, up, out, np.int64(gate.size)))
        return out

    # Its position

    def rope(self, x: Array, cos: Array, sin: Array) -> Array:
        """Rotate x (B, T, H, d) by cos and sin (B, T, d/2), float32; a block for each token."""
        self._check(x=x)
        out = self._cp.empty(x.shape, dtype=x.dtype)
        if x.size:
            B, T, H, d = x.shape
            vector = self._vector(d // 2, x, cos, sin)
            args = (x, cos, sin, out, np.int32(H), np.int32(d // 2))
            self._launch("rope", vector, (B * T,), _threads(H * d // 2 // vector), args)
        return out

    def scatter(self, cache: Array, slots: Array, new: Array) -> None:
        """Write new (B, T, K, d) into slots (B, T) int64 of cache (B, S, K, d), in place.

        Slot -1 writes nothing. A block for each token.
        """
        self._check(cache=cache, new=new)
        if new.size:
            B, T, K, d = new.shape
            vector = self._vector(K * d, cache, new)
            sizes = (np.int32(T), np.int32(cache.shape[1]), np.int32(K * d))
            args = (cache, slots, new, *sizes)
            self._launch("scatter", vector, (B * T,), _threads(K * d // vector), args)

    # Tokens together

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        q_positions: Array,
        k_positions: Array,
        window: int | None,
    ) -> Array:
        """Attend: q (B, T, H, d), k and v (B, S, K, d), positions (B, T), (B, S) -> (B, T, H, d).

        k and v may be `cache[:, :used]` of a contiguous cache, with the same strides. If
        `k_positions` is the very array of the last call, its numbers must be the same. Which kernel
        is used depends on how many rows, tokens times heads, share a key, and on what tensor cores
        can do. Raises ValueError for a batch of more than 65535 rows.
        """
        self._check(q=q, k=k, v=v)
        (B, T, H, d), (S, K) = q.shape, k.shape[1:3]
        if B > MOST_BATCH:
            raise ValueError(
                f"a batch of {B} rows, of which a grid takes at most {MOST_BATCH}; "
                "pass fewer rows at once"
            )
        if q.size == 0 or S == 0:
            return self._cp.zeros(q.shape, dtype=q.dtype)
        out = self._cp.empty(q.shape, dtype=q.dtype)
        vector = self._vector(d, q, k, v)
        where = (k.data, v.data, q_positions, k_positions)  # CuPy takes no views with gaps
        sizes = (np.int32(T), np.int32(S), np.int32(H), np.int32(K))
        stride = np.int64(k.strides[0] // k.itemsize)
        last = (*sizes, stride, np.int64(NO_WINDOW if window is None else min(window, NO_WINDOW)))
        rows = T * (H // K)
        if rows <= MOST_SPLIT_ROWS:
            self._attention_split(q, where, last, out, vector, rows)
        elif self.has_tensor_cores(d) and vector == TENSOR_VECTOR:
            tensor = tensor_tile(d, self._shared)
            args = (q, *where, self._spans_of(k_positions, tensor.keys, d), out, *last)
            grid = (_ceil(rows, tensor.rows), K, B)
            self._launch("attention_tensor_cores", vector, grid, tensor.warps * LANES, args, d)
        else:
            tile = attention_tile(d)
            grid = (_ceil(rows, tile.warps * tile.rows), K, B)
            self._launch("attention", vector, grid, tile.warps * LANES, (q, *where, out, *last), d)
        return out

    def has_tensor_cores(self, d: int) -> bool:
        """Return whether tensor cores attend from many rows of heads of width d on this card."""
        narrow = self._dtype.itemsize == 2
        return narrow and d in TENSOR_WIDTHS and self._capability >= TENSOR_CAPABILITY

    def _spans_of(self, k_positions: Array, keys: int, d: int) -> Array:
        """Return the spans of positions of each tile of keys; all layers of a piece share them."""
        if k_positions is not self._spans[0]:
            B, S = k_positions.shape
            tiles, warps = _ceil(S, keys), THREADS // LANES
            spans = self._cp.empty((B, tiles, 3), dtype=np.int64)  # struct Span
            args = (k_positions, spans, np.int32(S))
            self._launch("key_spans", TENSOR_VECTOR, (_ceil(tiles, warps), B), THREADS, args, d)
            self._spans = (k_positions, spans)
        return self._spans[1]

    def _attention_split(
        self, q: Array, where: tuple, last: tuple, out: Array, vector: int, rows: int
    ) -> None:
        """Attend in two launches: all splits of the slots, then the merging of their results."""
        (B, T, H, d), (_, S, _, K) = q.shape, last[:4]
        name = "attention_split_4" if rows <= 4 else "attention_split_8"
        heads = K * _ceil(rows, 4 if rows <= 4 else 8)  # key/value heads times blocks of rows
        # As many warps as the card holds at once, but at least one tile for each warp of a block.
        all_warps = self._multiprocessors * OCCUPANCY[name].blocks * SPLIT_WARPS
        one_each = int(heads * B) * SPLIT_WARPS
        warps = SPLIT_WARPS if all_warps >= 2 * one_each else SPLIT_WARPS_OF_MANY
        splits = max(1, min(all_warps // (int(heads * B) * warps), _ceil(int(S), warps * KEYS)))
        parts = self._parts(splits * B * T * H * (d + 2))
        grid, threads = (splits, int(heads), B), warps * LANES
        self._launch(name, vector, grid, threads, (q, *where, parts, *last), d)
        args = (parts, out, np.int32(splits), np.int32(T), np.int32(H), np.int32(K))
        # A thread for each column, a block for each row; it loads single numbers.
        self._launch("attention_combine", vector, (B * T * H,), _ceil(d, LANES) * LANES, args, d)

    def _parts(self, numbers: int) -> Array:
        """Return scratch memory for at least so many float32; it never shrinks."""
        if self._scratch.size < numbers:
            self._scratch = self._cp.empty(max(numbers, 2 * self._scratch.size), dtype=np.float32)
        return self._scratch

    # Compiling and launching

    def _check(self, **arrays: Array) -> None:
        """Raise ValueError for an array of another dtype, whose bits would be misread."""
        for name, array in arrays.items():
            if array.dtype != self._dtype:
                raise ValueError(
                    f"{name} is {array.dtype}, but these kernels are for {self._dtype}; convert it"
                )

    def _vector(self, numbers: int, *arrays: Array) -> int:
        """Return how many numbers can be loaded at once from rows of `numbers` in the arrays.

        It divides a row and each array's address, counted in numbers of the array's dtype.
        """
        addresses = (array.data.ptr // array.itemsize for array in arrays)
        return gcd(self._most, numbers, *addresses)

    def _launch(
        self,
        name: str,
        vector: int,
        grid: tuple[int, ...],
        threads: int,
        args: tuple,
        head_width: int = 0,
    ) -> None:
        function = self._function(name, vector, head_width)
        shared = 0
        if name == "attention_tensor_cores":
            shared = tensor_tile(head_width, self._shared).shared_bytes(head_width)
        function(grid, (threads,), args, shared_mem=shared)

    def _function(self, name: str, vector: int, head_width: int = 0) -> Any:
        """Return a kernel, compiled with this VECTOR and HEAD_WIDTH (0: without attention)."""
        function = self._functions.get((name, vector, head_width))
        if function is None:
            function = self._modules.function(*self._compilation(name, vector, head_width), name)
            self._functions[name, vector, head_width] = function
            if name == "attention_tensor_cores":
                shared = tensor_tile(head_width, self._shared).shared_bytes(head_width)
                function.max_dynamic_shared_size_bytes = shared
                function.preferred_shared_memory_carveout = 100  # per cent, the rest being cache
        return function

    def _begin(self, name: str, vector: int, head_width: int = 0) -> None:
        self._modules.begin(*self._compilation(name, vector, head_width), name)

    def _compilation(self, name: str, vector: int, head_width: int) -> tuple[str, tuple[str, ...]]:
        """Return the source that has a kernel, and the options to compile it with."""
        tensor = tensor_tile(head_width, self._shared) if name in TENSOR_OCCUPANCY else None
        options = compile_options(self._number, vector, head_width, tensor)
        return source_text(tensor is not None), options


def source_text(tensor_cores: bool = False) -> str:
    """Return what is compiled: `mistral.cu`, with `tensor_cores.cu` behind it where asked for.

    #line names the files in errors of NVRTC and of the emulator.
    """
    files = (SOURCE, TENSOR_SOURCE) if tensor_cores else (SOURCE,)
    return "".join(f'#line 1 "{f.name}"\n{f.read_text(encoding="utf-8")}' for f in files)


def compile_options(
    number: int, vector: int, head_width: int = 0, tensor: TensorTile | None = None
) -> tuple[str, ...]:
    """Return the -D options of a compilation, for attention if `head_width` is set."""
    options: tuple[str, ...] = (f"-DDTYPE={number}", f"-DVECTOR={vector}")
    if not head_width:
        return options
    options += (f"-DHEAD_WIDTH={head_width}",)
    if tensor:
        rows = (f"-DWARPS={tensor.warps}", f"-DROW_TILES={tensor.row_tiles}")
        return (*options, "-DTENSOR_CORES", *rows, f"-DKEYS={tensor.keys}")
    tile = attention_tile(head_width)
    sizes = (f"-DWARPS={tile.warps}", f"-DROWS={tile.rows}", f"-DSPLIT_WARPS={SPLIT_WARPS}")
    return (*options, *sizes)


def _threads(items: int) -> int:
    """Return the threads of a block for so many items, in whole warps."""
    return min(THREADS, _ceil(items, LANES) * LANES)


def _ceil(number: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-number // divisor)
