// Attention of many queries on tensor cores, in 16 bits: to be read after `attention` in
// mistral.cu.
//
// A tensor core multiplies two small matrices that lie in the registers of a warp, some ten times
// as fast as its threads could. Cards of compute capability 8.0 and later have the instructions
// that are used here. This file is compiled behind mistral.cu, for heads of 16, 32, 64 or 128
// numbers:
//
//     TENSOR_CORES            leave out mistral.cu's own attention
//     WARPS, ROW_TILES, KEYS  the sizes of tiles, see kernels.py
//
// The contract is that of `attention`, and so are the rows: the queries of a key/value head, T
// tokens times the H/K heads that share it. The shape is that of FlashAttention-2 (Dao 2023,
// https://arxiv.org/abs/2307.08691). A block takes ROWS rows, a warp 16 · ROW_TILES of them; it
// goes through the tiles of KEYS keys that are visible to any of its rows, and while it computes
// with one tile, the next is on its way. Scores and mix stay in registers.

constexpr int THREADS = WARPS * LANES;
constexpr int WARP_ROWS = 16 * ROW_TILES;
constexpr int ROWS = WARPS * WARP_ROWS;

// In shared memory a row is followed by 16 unused bytes. So the 16 bytes at one column of 8 rows,
// one below the other, lie in different banks, for each width above.
constexpr int PITCH = d + VECTOR;       // numbers from a row to the next
constexpr int TILE = KEYS * PITCH;      // numbers of a tile of keys, or of values
constexpr unsigned BYTES = sizeof(storage);

// A thread fetches the same pack of every ROWS_AT_ONCE-th row.
constexpr int ROWS_AT_ONCE = THREADS / PACKS;
static_assert(VECTOR == 8 && THREADS % PACKS == 0 && KEYS % ROWS_AT_ONCE == 0, "see kernels.py");


// 1. Instructions that C++ has no words for
//
// From the PTX ISA manual, which calls what a lane has of a matrix its fragment; g is lane / 4, t
// is lane % 4. A register has two numbers, the first in the lower half.

// Two numbers, rounded to nearest.
__device__ unsigned pair(float first, float second)
{
    unsigned bits;
#if DTYPE == 16
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
#endif
    return bits;
}

// sum (16 × 8) += a (16 × 16) · b (16 × 8). A lane's fragments, element after element:
//
//     a    a[0]: row g,     columns 2t, 2t + 1     a[2]: row g,     columns 2t + 8, 2t + 9
//          a[1]: row g + 8, columns 2t, 2t + 1     a[3]: row g + 8, columns 2t + 8, 2t + 9
//     b    low: rows 2t, 2t + 1, column g          high: rows 2t + 8, 2t + 9, column g
//     sum  0, 1: row g, columns 2t, 2t + 1         2, 3: row g + 8, columns 2t, 2t + 1
__device__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned low, unsigned high)
{
#if DTYPE == 16
#define KIND "f16"
#else
#define KIND "bf16"
#endif
    asm("mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(low), "r"(high));
}

// Four matrices of 8 × 8 from shared memory. Lane 8m + r gives the address of row r of matrix m,
// and receives in to[m] of matrix m: row g, columns 2t, 2t + 1; by `load_transposed`: column g,
// rows 2t, 2t + 1.
__device__ void load_matrices(unsigned (&to)[4], unsigned address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address) : "memory");
}

__device__ void load_transposed(unsigned (&to)[4], unsigned address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address) : "memory");
}

// The address within shared memory, as these instructions take it.
__device__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// Copy 16 bytes to shared memory while the thread goes on. They are there, for this thread, after
// `wait_for_copies`, and for the others after a barrier that follows it.
__device__ void copy_16_bytes(unsigned to, const storage* from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
}

__device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }


// 2. Which tiles are visible

constexpr int64 FAR = 0x7fffffffffffffff;

// The least and the greatest position of some queries, or of some slots, and whether each of them
// has one, which is not -1. If none has: FAR and -1.
struct Span { int64 least, greatest, whole; };

// Add a position to a span.
__device__ void add(Span& span, int64 position)
{
    if (position < 0) {
        span.whole = false;
    } else {
        span.least = position < span.least ? position : span.least;
        span.greatest = position > span.greatest ? position : span.greatest;
    }
}

// The span of all that the lanes of a warp have.
__device__ Span lanes_span(Span span)
{
    for (int step = 1; step < LANES; step *= 2) {
        const int64 least = __shfl_xor_sync(ALL, span.least, step);
        const int64 greatest = __shfl_xor_sync(ALL, span.greatest, step);
        span.least = least < span.least ? least : span.least;
        span.greatest = greatest > span.greatest ? greatest : span.greatest;
    }
    span.whole = __all_sync(ALL, span.whole != 0);
    return span;
}

// Whether any key may be visible to any query. If positions between the least and the greatest are
// missing, perhaps none is; then a tile is computed for nothing.
__device__ bool any_visible(const Span& queries, const Span& keys, int64 window)
{
    return keys.greatest >= 0 && keys.least <= queries.greatest &&
           queries.least - keys.greatest < window;
}

// Whether each key is visible to each query.
__device__ bool all_visible(const Span& queries, const Span& keys, int64 window)
{
    return queries.whole && keys.whole && keys.greatest <= queries.least &&
           queries.greatest - keys.least < window;
}

// The span of each tile of KEYS slots: spans (B, tiles). A warp takes a tile, blockIdx.y is the row
// of the batch. All layers have the same positions, so this is computed once for all.
extern "C" __global__ void key_spans(const int64* k_positions, Span* spans, int S)
{
    const int tiles = (S + KEYS - 1) / KEYS, lane = threadIdx.x % LANES;
    const int tile = (blockIdx.x * blockDim.x + threadIdx.x) / LANES;
    if (tile >= tiles) return;
    Span span = {FAR, -1, true};
    for (int slot = tile * KEYS + lane; slot < (tile + 1) * KEYS; slot += LANES)
        add(span, slot < S ? k_positions[(int64)blockIdx.y * S + slot] : -1);
    span = lanes_span(span);
    if (lane == 0) spans[(int64)blockIdx.y * tiles + tile] = span;
}


// 3. Values that are not finite
//
// A value must have no influence on a row that does not see it, and 0 · NaN is NaN. In a tile that
// some row does not see as a whole, values that are infinite or NaN are therefore added by
// themselves to the rows that do see them, and then replaced by 0. That is rare, and may take long.

// For two numbers in a register, the highest bit of each half that is not finite: the exponent of
// such a number has all bits set.
__device__ unsigned not_finite(unsigned two)
{
    constexpr unsigned EXPONENT = DTYPE == 16 ? 0x7c00 : 0x7f80, BOTH = 0x10001;
    return (two & EXPONENT * BOTH) + (0x8000 - EXPONENT) * BOTH & 0x8000 * BOTH;
}

__device__ unsigned two_at(const storage* p) { return *reinterpret_cast<const unsigned*>(p); }

// Add those of a row of values, to each row of the mix that sees its key; `sees` has a bit for
// each.
__device__ void add_not_finite(float (&mix)[ROW_TILES][d / 8][4], const storage* row, unsigned sees)
{
    UNROLL for (int n = 0; n < d / 8; n++) {
        const unsigned two = two_at(row + n * 8), which = not_finite(two);
        if (which == 0) continue;
        UNROLL for (int r = 0; r < 2 * ROW_TILES; r++) {
            float* const sum = &mix[r / 2][n][r % 2 * 2];
            if (sees >> r & 1 && which & 0x8000) sum[0] += widen(two);
            if (sees >> r & 1 && which >> 31) sum[1] += widen(two >> 16);
        }
    }
}


// 4. Attention

constexpr float LOWEST = -3.40282347e38f;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
attention_tensor_cores(const storage* q, const storage* k, const storage* v,
                       const int64* q_positions, const int64* k_positions, const Span* spans,
                       storage* out, int T, int S, int H, int K, int64 stride, int64 window)
{
    // Queries (ROWS, PITCH), then twice a tile of keys and one of values, (2, 2, KEYS, PITCH)
    extern __shared__ __align__(16) storage shared[];
    __shared__ int64 at[ROWS];  // the rows' positions; past the last row, the last one's
    __shared__ Span rows_span;

    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int g = lane / 4, t = lane % 4;
    const int kv_head = blockIdx.y, b = blockIdx.z;
    const int group = H / K, rows = T * group;
    // The last tokens see most keys, so they come first: what is left for the end is short.
    const int first_row = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const int tiles = (S + KEYS - 1) / KEYS;
    const auto query = [&](int row) {  // the offset of a row's query, and of its result
        row = min(row, rows - 1);
        return (((int64)b * T + row / group) * H + kv_head * group + row % group) * d;
    };
    k += b * stride + kv_head * d;
    v += b * stride + kv_head * d;
    k_positions += (int64)b * S;
    spans += (int64)b * tiles;

    const unsigned queries = shared_address(shared), buffers = queries + ROWS * PITCH * BYTES;
    for (int n = threadIdx.x; n < ROWS * PACKS; n += THREADS) {
        const int row = n / PACKS, column = n % PACKS * VECTOR;
        copy_16_bytes(queries + (row * PITCH + column) * BYTES,
                      q + query(first_row + row) + column);
    }

    for (int n = threadIdx.x; n < ROWS; n += THREADS)
        at[n] = q_positions[(int64)b * T + min(first_row + n, rows - 1) / group];
    __syncthreads();
    if (warp == 0) {
        Span span = {FAR, -1, true};
        for (int n = lane; n < ROWS; n += LANES) add(span, at[n]);
        span = lanes_span(span);
        if (lane == 0) rows_span = span;
    }
    __syncthreads();

    // The tiles are examined 32 at a time, each by a lane: `some` has a bit for each of them that
    // is still to come, `all` for each that is visible to all rows.
    int next_group = 0;
    unsigned some = 0, all = 0;
    const auto advance = [&]() {  // to the next tile; -1 after the last
        while (some == 0) {
            const int tile = next_group * LANES + lane;
            if (next_group * LANES >= tiles) return -1;
            const Span span = tile < tiles ? spans[tile] : Span{FAR, -1, false};
            some = __ballot_sync(ALL, any_visible(rows_span, span, window));
            all = __ballot_sync(ALL, all_visible(rows_span, span, window));
            next_group++;
        }
        const int bit = LANES - 1 - __clz(some & -some);  // the lowest
        some &= some - 1;
        return (next_group - 1) * LANES + bit;
    };

    // Fetch a tile of keys and one of values; past the last slot, the last one again.
    const int my_row = threadIdx.x / PACKS, my_column = threadIdx.x % PACKS * VECTOR;
    const int my_place = my_row * PITCH + my_column;
    const auto fetch = [&](int tile, unsigned to) {
        const int first = tile * KEYS + my_row;
        to += my_place * BYTES;
        if ((tile + 1) * KEYS <= S) {
            const int64 offset = (int64)first * K * d + my_column;
            const storage *key = k + offset, *value = v + offset;
            UNROLL for (int n = 0; n < KEYS; n += ROWS_AT_ONCE) {
                copy_16_bytes(to + n * PITCH * BYTES, key);
                copy_16_bytes(to + (TILE + n * PITCH) * BYTES, value);
                key += ROWS_AT_ONCE * K * d;
                value += ROWS_AT_ONCE * K * d;
            }
        } else {
            UNROLL for (int n = 0; n < KEYS; n += ROWS_AT_ONCE) {
                const int64 offset = (int64)min(first + n, S - 1) * K * d + my_column;
                copy_16_bytes(to + n * PITCH * BYTES, k + offset);
                copy_16_bytes(to + (TILE + n * PITCH) * BYTES, v + offset);
            }
        }
    };

    // A lane has parts of 2 · ROW_TILES rows: 16m + g and 16m + g + 8 of the warp's, in this order.
    const int my_rows = warp * WARP_ROWS;
    const auto position = [&](int r) { return at[my_rows + r * 8 + g]; };
    float base[2 * ROW_TILES], sum[2 * ROW_TILES], mix[ROW_TILES][d / 8][4] = {};
    UNROLL for (int r = 0; r < 2 * ROW_TILES; r++) {
        base[r] = LOWEST;
        sum[r] = 0;
    }

    // Where this lane's row begins, for `load_matrices`. The four matrices lie, with the first at
    // the top left: of queries and values, the second below, the third to the right; of keys, the
    // second to the right, the third below.
    const unsigned query_at =
        queries + ((my_rows + lane % 16) * PITCH + lane / 16 * 8) * BYTES;
    const unsigned key_at = ((lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 8) * BYTES;
    const unsigned value_at = (TILE + lane % 16 * PITCH + lane / 16 * 8) * BYTES;

    int next = advance(), parity = 0;
    bool next_whole = all >> (next & LANES - 1) & 1;
    if (next >= 0) fetch(next, buffers);
    while (next >= 0) {
        const int first = next * KEYS;
        const bool whole = next_whole;
        const unsigned tile = buffers + parity * (2 * TILE * BYTES);
        storage* const values = shared + (ROWS * PITCH + parity * (2 * TILE) + TILE);
        next = advance();
        next_whole = all >> (next & LANES - 1) & 1;
        parity ^= 1;

        // After this barrier all have fetched their part of the tile, and have done with the last
        // tile, whose buffer the next one gets.
        wait_for_copies();
        bool special = false;  // whether a value is not finite and some row does not see its key
        if (whole) {
            __syncthreads();
        } else {
            UNROLL for (int n = 0; n < KEYS; n += ROWS_AT_ONCE)
                UNROLL for (int m = 0; m < VECTOR; m += 2)
                    special |= not_finite(two_at(values + my_place + n * PITCH + m)) != 0;
            special = __syncthreads_or(special);
        }
        if (next >= 0) fetch(next, buffers + parity * (2 * TILE * BYTES));

        float score[ROW_TILES][KEYS / 8][4] = {};
        UNROLL for (int c = 0; c < d / 16; c++) {
            unsigned x[ROW_TILES][4];
            UNROLL for (int m = 0; m < ROW_TILES; m++)
                load_matrices(x[m], query_at + (m * 16 * PITCH + c * 16) * BYTES);
            UNROLL for (int n = 0; n < KEYS / 8; n += 2) {
                unsigned y[4];
                load_matrices(y, tile + key_at + (n * 8 * PITCH + c * 16) * BYTES);
                UNROLL for (int m = 0; m < ROW_TILES; m++) {
                    multiply(score[m][n], x[m], y[0], y[1]);
                    multiply(score[m][n + 1], x[m], y[2], y[3]);
                }
            }
        }

        if (!whole)
            UNROLL for (int n = 0; n < KEYS / 8; n++)
                UNROLL for (int e = 0; e < 2; e++) {
                    const int slot = first + n * 8 + t * 2 + e;
                    const int64 j = slot < S ? k_positions[slot] : -1;
                    UNROLL for (int r = 0; r < 2 * ROW_TILES; r++)
                        if (!visible(position(r), j, window))
                            score[r / 2][n][r % 2 * 2 + e] = minus_infinity();
                }

        // Softmax in one pass, as in `weigh`, with weights 2^(score - base). The base is the
        // largest score, but it follows only when that is more than SLACK larger: so most tiles
        // need no rescaling, and weights, which are up to 2^SLACK, do not overflow in 16 bits. At
        // first it is the lowest finite number, from which a masked score, -infinity, can be
        // subtracted.
        constexpr float SLACK = 8;
        float largest[2 * ROW_TILES];
        bool grew = false;
        UNROLL for (int r = 0; r < 2 * ROW_TILES; r++) {
            largest[r] = minus_infinity();
            UNROLL for (int n = 0; n < KEYS / 8; n++)
                UNROLL for (int e = 0; e < 2; e++)
                    largest[r] = fmaxf(largest[r], score[r / 2][n][r % 2 * 2 + e]);
            // Four lanes have parts of the row.
            largest[r] = fmaxf(largest[r], __shfl_xor_sync(ALL, largest[r], 1));
            largest[r] = fmaxf(largest[r], __shfl_xor_sync(ALL, largest[r], 2)) * query_scale();
            grew |= largest[r] > base[r] + SLACK;
        }
        if (__any_sync(ALL, grew))
            UNROLL for (int r = 0; r < 2 * ROW_TILES; r++) {
                float shrink = 1;
                if (largest[r] > base[r] + SLACK) {
                    shrink = exp2f(base[r] - largest[r]);
                    base[r] = largest[r];
                }
                sum[r] *= shrink;
                UNROLL for (int n = 0; n < d / 8; n++)
                    UNROLL for (int e = 0; e < 2; e++) mix[r / 2][n][r % 2 * 2 + e] *= shrink;
            }

        if (special) {
            #pragma unroll 1
            for (int key = 0; key < KEYS; key++) {
                const int64 j = first + key < S ? k_positions[first + key] : -1;
                unsigned sees = 0;
                UNROLL for (int r = 0; r < 2 * ROW_TILES; r++)
                    sees |= visible(position(r), j, window) << r;
                add_not_finite(mix, values + key * PITCH + t * 2, sees);
            }
            __syncthreads();
            #pragma unroll 1
            for (int n = threadIdx.x; n < KEYS * d / 2; n += THREADS) {
                storage* const two = values + n / (d / 2) * PITCH + n % (d / 2) * 2;
                const unsigned halves = not_finite(two_at(two)) >> 15;  // a 1 in each to be zeroed
                *reinterpret_cast<unsigned*>(two) &= ~(halves * 0xffff);
            }
            __syncthreads();
        }

        // Two tiles of 8 keys of scores are, rounded, just what `multiply` needs as one of 16.
        UNROLL for (int c = 0; c < KEYS / 16; c++) {
            unsigned x[ROW_TILES][4];
            UNROLL for (int r = 0; r < 2 * ROW_TILES; r++) {
                UNROLL for (int half = 0; half < 2; half++) {
                    const float* const s = &score[r / 2][2 * c + half][r % 2 * 2];
                    const float even = exp2f(s[0] * query_scale() - base[r]);
                    const float odd = exp2f(s[1] * query_scale() - base[r]);
                    sum[r] += even + odd;
                    x[r / 2][2 * half + r % 2] = pair(even, odd);
                }
            }
            UNROLL for (int n = 0; n < d / 8; n += 2) {
                unsigned y[4];
                load_transposed(y, tile + value_at + (c * 16 * PITCH + n * 8) * BYTES);
                UNROLL for (int m = 0; m < ROW_TILES; m++) {
                    multiply(mix[m][n], x[m], y[0], y[1]);
                    multiply(mix[m][n + 1], x[m], y[2], y[3]);
                }
            }
        }
    }

    // Results take the place of the warp's queries, so that 16 bytes can be stored at once. If no
    // tile is visible, the queries may still be on their way.
    wait_for_copies();
    __syncthreads();
    UNROLL for (int r = 0; r < 2 * ROW_TILES; r++) {
        const float scale = inverse(lanes_sum(sum[r], 1, 4));
        storage* const row = shared + (my_rows + r * 8 + g) * PITCH + t * 2;
        UNROLL for (int n = 0; n < d / 8; n++) {
            const float* const x = &mix[r / 2][n][r % 2 * 2];
            *reinterpret_cast<unsigned*>(row + n * 8) = pair(x[0] * scale, x[1] * scale);
        }
    }
    __syncwarp();
    for (int n = lane; n < WARP_ROWS * PACKS; n += LANES) {
        const int row = my_rows + n / PACKS, column = n % PACKS * VECTOR;
        if (first_row + row < rows)
            copy(out + query(first_row + row) + column, shared + row * PITCH + column);
    }
}
