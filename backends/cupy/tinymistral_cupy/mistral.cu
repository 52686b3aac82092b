// The CUDA kernels of Mistral: all but gathers, additions, and products of matrices. Read from the
// top.
//
// The letters are those of tinymistral's model.py:
//
//     B  batch: rows of tokens              d  width of a head
//     T  new tokens of a row                D  width of the model
//     S  slots of the cache, of a row       W  window: keys visible to a query, its own included
//     H  query heads                        K  key/value heads; H/K query heads share one
//
// Arrays are laid out as in NumPy, the last index fastest. A kernel is a function that a grid of
// blocks executes; a block is a few warps that share fast memory and can wait for each other; a
// warp is 32 threads, its lanes, that run in step. `blockIdx` tells a block which part to compute.
//
// A compilation is for one choice of these, given by -D:
//
//     DTYPE          32, 16 or -16: float32, float16 or bfloat16 is stored
//     VECTOR         how many numbers are loaded at once: 16 bytes of them, or fewer where the
//                    width of a row, or an address, is not a multiple of 16 bytes
//     HEAD_WIDTH     d; without it there is no attention
//     TENSOR_CORES   attention is that of tensor_cores.cu, which follows in the same compilation
//     WARPS, ROWS, SPLIT_WARPS    the sizes of attention's tiles, and the most warps of a split's
//                    block, see kernels.py
//
// In every dtype, everything is computed in float32, and a result is rounded once.

typedef long long int64;

constexpr int LANES = 32;             // threads in a warp
constexpr unsigned ALL = 0xffffffff;  // all lanes of a warp

// Registers have no addresses. So an array can be in registers only if the compiler unrolls the
// loops over it. It does so by itself with short loops; UNROLL asks for it.
#define UNROLL _Pragma("unroll")


// 1. Numbers in memory: loads that widen to float32, stores that round back

#if DTYPE == 32
typedef float storage;
__device__ float widen(storage x) { return x; }
__device__ storage narrow(float x) { return x; }

#elif DTYPE == 16
typedef unsigned short storage;  // the bits of a float16
__device__ float widen(storage x)
{
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
    return wide;
}
__device__ storage narrow(float x)  // to nearest, ties to even
{
    storage bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

#else
typedef unsigned short storage;  // the bits of a bfloat16: the upper half of a float32
__device__ float widen(storage x) { return __uint_as_float((unsigned)x << 16); }
__device__ storage narrow(float x)
{
    const unsigned bits = __float_as_uint(x);
    // Add half of the last place that is kept, less one bit if that place is even: so a tie goes
    // to the even number. A carry goes into the exponent, up to infinity, as it should.
    const unsigned rounded = bits + 0x7fff + (bits >> 16 & 1);
    // A NaN's payload may be all in the half that is dropped, so a bit that is kept is set.
    return (x != x ? bits | 0x400000 : rounded) >> 16;
}
#endif

// N numbers side by side, aligned to their size in bytes, or to 16 if that is more. VECTOR is
// chosen so that rows begin at such addresses.
template <typename Number, int N>
struct alignas(N * sizeof(Number) < 16 ? N * sizeof(Number) : 16) Pack { Number at[N]; };

// They are moved as a whole, 16 bytes at a time or all at once. The compiler has to be told their
// alignment: where it cannot prove it, it moves the parts one by one.
template <int BYTES> struct Whole { uint4 words[BYTES / 16]; };
template <> struct Whole<8> { uint2 words; };
template <> struct Whole<4> { unsigned words; };
template <> struct Whole<2> { unsigned short words; };

template <int BYTES>
__device__ Whole<BYTES>& whole(void* p)
{
    return *static_cast<Whole<BYTES>*>(__builtin_assume_aligned(p, BYTES < 16 ? BYTES : 16));
}

template <int BYTES>
__device__ const Whole<BYTES>& whole(const void* p) { return whole<BYTES>(const_cast<void*>(p)); }

template <int N>
__device__ void load(float (&to)[N], const storage* from)
{
    Pack<storage, N> x;
    reinterpret_cast<Whole<sizeof(x)>&>(x) = whole<sizeof(x)>(from);
    for (int n = 0; n < N; n++) to[n] = widen(x.at[n]);
}

template <int N>
__device__ void store(storage* to, const float (&from)[N])
{
    // All are narrowed before the first is packed. The compiler must assume that `asm` touches
    // memory; between writes to the pack, that would keep it out of registers.
    storage narrowed[N];
    for (int n = 0; n < N; n++) narrowed[n] = narrow(from[n]);
    Pack<storage, N> x;
    for (int n = 0; n < N; n++) x.at[n] = narrowed[n];
    whole<sizeof(x)>(to) = whole<sizeof(x)>(&x);
}

// The same for numbers that are always float32: angles, and those in shared memory. If the stored
// dtype has 16 bits, VECTOR float32 are 32 bytes, moved by two instructions. Each of them uses half
// of every 32-byte sector of global memory, or half of the banks of shared memory, and takes twice
// as long as it could. That is little beside the rest.
template <int N>
__device__ void load_floats(float (&to)[N], const float* from)
{
    Pack<float, N> x;
    reinterpret_cast<Whole<sizeof(x)>&>(x) = whole<sizeof(x)>(from);
    for (int n = 0; n < N; n++) to[n] = x.at[n];
}

template <int N>
__device__ void store_floats(float* to, const float (&from)[N])
{
    Pack<float, N> x;
    for (int n = 0; n < N; n++) x.at[n] = from[n];
    whole<sizeof(x)>(to) = whole<sizeof(x)>(&x);
}

// Copy VECTOR numbers unchanged.
__device__ void copy(storage* to, const storage* from)
{
    constexpr int BYTES = VECTOR * sizeof(storage);
    whole<BYTES>(to) = whole<BYTES>(from);
}

// The sum, or the maximum, over lanes; every lane gets it. In each step a lane adds the value of
// the lane `step` away: pairs, fours, ..., all. `from` and `until` choose groups of lanes.
__device__ float lanes_sum(float x, int from = 1, int until = LANES)
{
    for (int step = from; step < until; step *= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}

__device__ float lanes_max(float x)
{
    for (int step = 1; step < LANES; step *= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}


// 2. A token by itself

// x / sqrt(mean(x²) + eps) · weight for each row of D numbers; a block takes one row.
extern "C" __global__ void rms_norm(const storage* x, const storage* weight, storage* out, int D,
                                    float eps)
{
    const int64 row = (int64)blockIdx.x * D;
    float squares = 0;
    for (int column = threadIdx.x * VECTOR; column < D; column += blockDim.x * VECTOR) {
        float a[VECTOR];
        load(a, x + row + column);
        for (int n = 0; n < VECTOR; n++) squares += a[n] * a[n];
    }

    // Each warp's sum goes through shared memory, where every thread adds up all of them.
    __shared__ float sums[LANES];  // a block has at most 32 warps
    squares = lanes_sum(squares);
    if (threadIdx.x % LANES == 0) sums[threadIdx.x / LANES] = squares;
    __syncthreads();
    squares = 0;
    for (int warp = 0; warp < blockDim.x / LANES; warp++) squares += sums[warp];
    const float scale = rsqrtf(squares / D + eps);

    // A thread reads the same numbers again; they are still in the cache.
    for (int column = threadIdx.x * VECTOR; column < D; column += blockDim.x * VECTOR) {
        float a[VECTOR], w[VECTOR];
        load(a, x + row + column);
        load(w, weight + column);
        for (int n = 0; n < VECTOR; n++) a[n] = a[n] * scale * w[n];
        store(out + row + column, a);
    }
}

// One token, alone: out (m) = weight (m, n) · x (n). What takes time is to read the matrix, each row
// once. A warp takes LINEAR_ROWS rows; of each, its lanes ask for AT_ONCE packs before they use the
// first. Past the end of a row, or of the matrix, they ask for the last pack or row again.
constexpr int LINEAR_ROWS = 2;

extern "C" __global__ void __launch_bounds__(256, 2)
linear(const storage* x, const storage* weight, storage* out, int n, int m)
{
    constexpr int STEP = LANES * VECTOR, AT_ONCE = 8;
    typedef Pack<storage, VECTOR> Numbers;
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int first = (blockIdx.x * (blockDim.x / LANES) + warp) * LINEAR_ROWS;
    if (first >= m) return;

    float sum[LINEAR_ROWS] = {};
    for (int begin = lane * VECTOR; begin < n; begin += AT_ONCE * STEP) {
        Numbers pack[AT_ONCE][LINEAR_ROWS];
        UNROLL for (int p = 0; p < AT_ONCE; p++)
            UNROLL for (int r = 0; r < LINEAR_ROWS; r++) {
                const int64 row = (int64)min(first + r, m - 1) * n;
                const int column = min(begin + p * STEP, n - VECTOR);
                reinterpret_cast<Whole<sizeof(Numbers)>&>(pack[p][r]) =
                    whole<sizeof(Numbers)>(weight + row + column);
            }
        UNROLL for (int p = 0; p < AT_ONCE; p++) {
            const int column = begin + p * STEP;
            if (column >= n) continue;
            float y[VECTOR];
            load(y, x + column);
            UNROLL for (int r = 0; r < LINEAR_ROWS; r++)
                for (int i = 0; i < VECTOR; i++) sum[r] += widen(pack[p][r].at[i]) * y[i];
        }
    }
    UNROLL for (int r = 0; r < LINEAR_ROWS; r++) {
        const float all = lanes_sum(sum[r]);
        if (lane == 0 && first + r < m) out[first + r] = narrow(all);
    }
}

// exp(x) = 2^(x · log2(e)): the hardware has powers of 2.
#define LOG2_E 1.4426950408889634

// silu(gate) · up of `size` numbers, silu(x) = x / (1 + exp(-x)). Where exp(-x) is infinite, or
// nearly, __fdividef gives 0, as it should; its error is at most 2 units in the last place.
extern "C" __global__ void silu_mul(const storage* gate, const storage* up, storage* out,
                                    int64 size)
{
    const int64 at = ((int64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (at >= size) return;
    float g[VECTOR], u[VECTOR];
    load(g, gate + at);
    load(u, up + at);
    for (int n = 0; n < VECTOR; n++)
        g[n] = __fdividef(g[n], 1 + exp2f(-g[n] * (float)LOG2_E)) * u[n];
    store(out + at, g);
}


// 3. Its position, and writes to the cache

// Rotate pairs (m, m + half) of each head by the angles of its position: x (tokens, heads,
// 2 · half) -> out; cos and sin (tokens, half). A block takes a token, a thread VECTOR pairs at a
// time.
extern "C" __global__ void rope(const storage* x, const float* cos, const float* sin, storage* out,
                                int heads, int half)
{
    const int64 token = blockIdx.x;
    const int packs = half / VECTOR;  // of a half head
    for (int n = threadIdx.x; n < heads * packs; n += blockDim.x) {
        const int m = n % packs * VECTOR;
        const int64 first = token * heads * 2 * half + n / packs * 2 * half + m;
        float a[VECTOR], b[VECTOR], c[VECTOR], s[VECTOR];
        load(a, x + first);
        load(b, x + first + half);
        load_floats(c, cos + token * half + m);
        load_floats(s, sin + token * half + m);
        float rotated[VECTOR];
        for (int i = 0; i < VECTOR; i++) rotated[i] = a[i] * c[i] - b[i] * s[i];
        store(out + first, rotated);
        for (int i = 0; i < VECTOR; i++) rotated[i] = b[i] * c[i] + a[i] * s[i];
        store(out + first + half, rotated);
    }
}

// Write rows of n numbers, fresh (B, T, n), to slots (B, T) of cache (B, S, n). A row with slot -1
// is not written. A block takes a row.
extern "C" __global__ void scatter(storage* cache, const int64* slots, const storage* fresh, int T,
                                   int S, int n)
{
    const int64 token = blockIdx.x, slot = slots[token];
    if (slot < 0) return;
    const int64 from = token * n, to = ((int)token / T * (int64)S + slot) * n;
    for (int column = threadIdx.x * VECTOR; column < n; column += blockDim.x * VECTOR)
        copy(cache + to + column, fresh + from + column);
}


// 4. Attention

// The one rule for masks, windows, caches and padding: whether the key at position j is visible to
// the query at position i. Padding and empty slots have position -1; "no window" is a window of
// 2^63 - 1. With positions up to 2^62 no difference overflows.
__device__ bool visible(int64 i, int64 j, int64 window)
{
    return j >= 0 && 0 <= i - j && i - j < window;
}

#ifdef HEAD_WIDTH

constexpr int d = HEAD_WIDTH;
constexpr int PACKS = d / VECTOR;  // of a row of d numbers

__device__ float minus_infinity() { return __int_as_float(0xff800000); }  // a masked score

// Scores are divided by sqrt(d), and softmax uses powers of 2 in place of exp: queries are
// multiplied by both factors at once, 1 / sqrt(d) and log2(e).
__device__ float query_scale() { return LOG2_E / sqrt((double)d); }

// 1 / (sum of the weights); 0 for a row with no visible key, whose result is then zeros.
__device__ float inverse(float sum) { return sum == 0 ? 0 : 1 / sum; }

#ifndef TENSOR_CORES

constexpr int KEYS = LANES;  // a tile of keys: one for each lane

// The mask of a tile of keys for one query, a bit for each key: every lane computes its own bit.
__device__ unsigned visible_keys(int64 i, int64 j, int64 window)
{
    return __ballot_sync(ALL, visible(i, j, window));
}

__device__ bool among(int key, unsigned mask) { return mask & 1u << key; }

// Softmax in one pass (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867): weights are
// 2^(score - largest), so that none overflows; `largest` is the largest score so far. When it
// grows, all sums so far are multiplied by `shrink`, 2^(before - after).
//
// Called once for each tile: every lane passes the score of one key, -infinity where it is masked,
// and gets its weight. `sum` is over this lane's keys only; lanes are added at the end. While a row
// has had no visible key, its largest score is -infinity, which must not be subtracted from itself
// (that gives NaN).
__device__ float weigh(float score, float& largest, float& sum, float& shrink)
{
    const float before = largest;
    largest = fmaxf(before, lanes_max(score));
    const float base = largest == minus_infinity() ? 0 : largest;
    shrink = exp2f(before - base);
    const float weight = exp2f(score - base);
    sum = sum * shrink + weight;
    return weight;
}

// 4a. Many queries: prefill
//
// In 16 bits, and on cards of compute capability 8.0 and later, for the usual widths of heads,
// tensor_cores.cu does the same several times as fast.
//
// The rows of a key/value head are its queries: T tokens times the H/K heads that share it, row
// t · (H/K) + g. A block takes WARPS · ROWS rows and goes through all keys, a tile of 32 at a time:
// it fetches the tile once for all of its rows, unless no key of it is visible to any of them. Each
// warp has ROWS rows of its own, and keeps their whole state:
//
//     scores     a lane has one key, and multiplies it with every row
//     softmax    across the lanes
//     mix        a lane has four columns of the values, and sums them over the keys
//
// In shared memory a row of a tile is QUADS quads of 4 floats, plus an unused quad if QUADS is
// even. When 8 lanes each read a quad of another key, the odd distance between keys puts them in
// different banks, which can be read at once.
constexpr int QUADS = (d + 3) / 4;
constexpr int STRIDE = QUADS | 1;
constexpr int QUADS_A_LANE = (QUADS + LANES - 1) / LANES;
constexpr int THREADS = WARPS * LANES;

// Fetch N rows of d numbers, the n-th at address(n), into shared memory. If there are only `count`
// rows, the last one is repeated. Neighbouring lanes take neighbouring packs.
template <int N, typename Address>
__device__ void fetch(float4* tile, int count, float scale, Address address)
{
    for (int n = threadIdx.x; n < N * PACKS; n += THREADS) {
        const int row = n / PACKS, column = n % PACKS * VECTOR;
        float x[VECTOR];
        load(x, address(min(row, count - 1)) + column);
        for (int m = 0; m < VECTOR; m++) x[m] *= scale;
        store_floats(reinterpret_cast<float*>(tile + row * STRIDE) + column, x);
    }
}

// Add the weighted values of a tile to the mix of each row. A masked value must not even be
// multiplied by 0, since 0 · NaN is NaN; where all keys are visible to all rows (WHOLE), as in
// most tiles, the mask is not tested.
template <bool WHOLE>
__device__ void add_values(float (&mix)[ROWS][QUADS_A_LANE][4], const float4* tile,
                           const float (&weights)[ROWS][KEYS], const unsigned (&mask)[ROWS])
{
    const int lane = threadIdx.x % LANES;
    for (int key = 0; key < KEYS; key += 4) {
        float w[ROWS][4];
        UNROLL for (int r = 0; r < ROWS; r++) load_floats(w[r], &weights[r][key]);
        UNROLL for (int n = 0; n < 4; n++)
            for (int c = 0; c < QUADS_A_LANE; c++) {
                const int quad = c * LANES + lane;
                if (QUADS % LANES != 0 && quad >= QUADS) continue;
                const float4 v = tile[(key + n) * STRIDE + quad];
                UNROLL for (int r = 0; r < ROWS; r++) {
                    const float weight = w[r][n];
                    if (WHOLE || among(key + n, mask[r])) {
                        mix[r][c][0] += weight * v.x;
                        mix[r][c][1] += weight * v.y;
                        mix[r][c][2] += weight * v.z;
                        mix[r][c][3] += weight * v.w;
                    }
                }
            }
    }
}

// q (B, T, H, d), k and v (B, S, K, d) with `stride` numbers from one row of the batch to the next,
// q_positions (B, T), k_positions (B, S) -> out (B, T, H, d). __launch_bounds__: a block has
// THREADS threads, with so few registers each that a multiprocessor can hold two blocks.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
attention(const storage* q, const storage* k, const storage* v, const int64* q_positions,
          const int64* k_positions, storage* out, int T, int S, int H, int K, int64 stride,
          int64 window)
{
    __shared__ float4 queries[WARPS * ROWS * STRIDE];
    __shared__ float4 tile[KEYS * STRIDE];  // of keys, then of values
    __shared__ alignas(16) float weights[WARPS][ROWS][KEYS];

    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int kv_head = blockIdx.y, b = blockIdx.z;
    const int group = H / K, rows = T * group, first_row = blockIdx.x * WARPS * ROWS;
    const auto query = [&](int row) {  // the offset of a row's query, and of its result
        return (((int64)b * T + row / group) * H + kv_head * group + row % group) * d;
    };
    k += b * stride + kv_head * d;
    v += b * stride + kv_head * d;

    if (QUADS * 4 != d) {  // zero the columns from d on: they are multiplied too, and not written
        for (int n = threadIdx.x; n < WARPS * ROWS * STRIDE; n += THREADS) queries[n] = {};
        for (int n = threadIdx.x; n < KEYS * STRIDE; n += THREADS) tile[n] = {};
        __syncthreads();
    }
    fetch<WARPS * ROWS>(queries, rows - first_row, query_scale(),
                        [&](int row) { return q + query(first_row + row); });

    int64 i[ROWS];  // the rows' positions; past the last row, the last one's
    float largest[ROWS], sum[ROWS], mix[ROWS][QUADS_A_LANE][4] = {};
    UNROLL for (int r = 0; r < ROWS; r++) {
        const int row = min(first_row + warp * ROWS + r, rows - 1);
        i[r] = q_positions[(int64)b * T + row / group];
        largest[r] = minus_infinity();
        sum[r] = 0;
    }

    for (int first = 0; first < S; first += KEYS) {
        const int64 j = first + lane < S ? k_positions[(int64)b * S + first + lane] : -1;
        unsigned mask[ROWS], any = 0, all = ALL;
        UNROLL for (int r = 0; r < ROWS; r++) {
            mask[r] = visible_keys(i[r], j, window);
            any |= mask[r];
            all &= mask[r];
        }
        // This is also a barrier: until it, the values of the last tile are still in use.
        if (!__syncthreads_or(any)) continue;  // no key of it is visible: it is not fetched
        const auto key = [&](int s) { return k + (int64)(first + s) * K * d; };
        const auto value = [&](int s) { return v + (int64)(first + s) * K * d; };

        fetch<KEYS>(tile, S - first, 1, key);
        __syncthreads();
        if (any) {
            float score[ROWS] = {};
            #pragma unroll 4
            for (int quad = 0; quad < QUADS; quad++) {
                const float4 y = tile[lane * STRIDE + quad];
                UNROLL for (int r = 0; r < ROWS; r++) {
                    const float4 x = queries[(warp * ROWS + r) * STRIDE + quad];
                    score[r] += x.x * y.x;
                    score[r] += x.y * y.y;
                    score[r] += x.z * y.z;
                    score[r] += x.w * y.w;
                }
            }
            UNROLL for (int r = 0; r < ROWS; r++) {
                float shrink;
                if (!among(lane, mask[r])) score[r] = minus_infinity();  // even if it is NaN
                weights[warp][r][lane] = weigh(score[r], largest[r], sum[r], shrink);
                for (int c = 0; c < QUADS_A_LANE; c++)
                    for (int n = 0; n < 4; n++) mix[r][c][n] *= shrink;
            }
        }
        __syncthreads();
        fetch<KEYS>(tile, S - first, 1, value);
        __syncthreads();
        if (all == ALL)
            add_values<true>(mix, tile, weights[warp], mask);
        else if (any)
            add_values<false>(mix, tile, weights[warp], mask);
    }

    constexpr int N = VECTOR < 4 ? VECTOR : 4;  // numbers that a lane stores at once
    UNROLL for (int r = 0; r < ROWS; r++) {
        const int row = first_row + warp * ROWS + r;
        const float scale = inverse(lanes_sum(sum[r]));
        for (int c = 0; c < QUADS_A_LANE; c++)
            for (int n = 0; n < 4; n += N) {
                const int column = (c * LANES + lane) * 4 + n;
                float x[N];
                for (int m = 0; m < N; m++) x[m] = mix[r][c][n + m] * scale;
                if (row < rows && column < d) store(out + query(row) + column, x);
            }
    }
}

// 4b. One token or a few: decoding
//
// There is little to compute here; the time goes into reading the keys and values once. So they are
// loaded straight into registers. To keep the whole card reading, the slots are split between
// blocks, whose results are merged afterwards.
//
// A row of d numbers is read by TEAM neighbouring lanes, 16 bytes each, so that LANES / TEAM keys
// are read at a time and each lane has its columns of every query and of every mix. A warp takes 32
// keys a round; for softmax, each lane needs the score of one key:
//
//     d = 128 in 16 bits: TEAM = 16, two teams. Team 0 reads key 0, 1, ..., 15, team 1 key 16, ...
//
// so key TEAM · team + step belongs to the lane of that number, in the team that has its score.
constexpr int power_of_2(int least) { int n = 1; while (n < least && n < LANES) n *= 2; return n; }
constexpr int TEAM = power_of_2(PACKS);
constexpr int PACKS_A_LANE = (PACKS + TEAM - 1) / TEAM;
constexpr int COLUMNS = PACKS_A_LANE * VECTOR;  // of a lane

// So many keys of N rows are loaded at once, as there are registers for. With 8 in place of 4 an H100
// took 11.6 µs in place of 13.5 for one text.
template <int N> constexpr int KEYS_AT_ONCE = N > 4 ? 2 : 8;

// The column where the n-th pack of a member of a team begins.
__device__ int pack_column(int n, int member) { return (n * TEAM + member) * VECTOR; }

// Load a lane's columns of a row; where it has none, zeros.
__device__ void load_columns(float (&to)[COLUMNS], const storage* row, int member)
{
    for (int n = 0; n < PACKS_A_LANE; n++) {
        const int column = pack_column(n, member);
        const bool inside = PACKS % TEAM == 0 || column < d;
        float x[VECTOR];
        load(x, row + (inside ? column : 0));
        for (int m = 0; m < VECTOR; m++) to[n * VECTOR + m] = inside ? x[m] : 0;
    }
}

// Add the values of a tile to a lane's columns of each row's mix; see `add_values` above.
// Each lane has the weights of its own key, and the others read them from it.
template <bool WHOLE, int N, typename Address>
__device__ void add_columns(float (&mix)[N][COLUMNS], const float (&weights)[N],
                            const unsigned (&mask)[N], Address address)
{
    const int lane = threadIdx.x % LANES, team = lane / TEAM, member = lane % TEAM;
    #pragma unroll (KEYS_AT_ONCE<N>)
    for (int step = 0; step < TEAM; step++) {
        const int key = team * TEAM + step;
        float x[COLUMNS];
        load_columns(x, address(key), member);
        UNROLL for (int r = 0; r < N; r++) {
            const float weight = __shfl_sync(ALL, weights[r], key);
            if (WHOLE || among(key, mask[r]))
                for (int c = 0; c < COLUMNS; c++) mix[r][c] += weight * x[c];
        }
    }
}

// Merge the results of several warps, for one column of one row. A warp's weights are relative to
// its own largest score; relative to the largest of all they shrink, as in `weigh`. Warp p has
// largest[p · step], sum[p · step] and mix[p · step · d].
__device__ void merge(const float* largest, const float* sum, const float* mix, int parts, int step,
                      float& all_largest, float& all_sum, float& all_mix)
{
    all_largest = minus_infinity();
    for (int p = 0; p < parts; p++) all_largest = fmaxf(all_largest, largest[p * step]);
    const float base = all_largest == minus_infinity() ? 0 : all_largest;
    all_sum = all_mix = 0;
    for (int p = 0; p < parts; p++) {
        const float shrink = exp2f(largest[p * step] - base);
        all_sum += sum[p * step] * shrink;
        all_mix += mix[(int64)p * step * d] * shrink;
    }
}

// As `attention`, for up to N rows a block; blockIdx.x is the split, and blockIdx.y a key/value
// head and N of its rows. All rows of the batch are numbered in the order (B, K, T · H/K). For each
// row a split writes d mixed columns, not divided yet, its largest score, and the sum of its
// weights. `parts` has the columns first, (splits, rows, d), then the largest scores, and then the
// sums, both (rows, splits), so that neighbouring lanes of `attention_combine` read neighbours.
template <int N>
__device__ void split(const storage* q, const storage* k, const storage* v,
                      const int64* q_positions, const int64* k_positions, float* parts, int T,
                      int S, int H, int K, int64 stride, int64 window)
{
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int warps = blockDim.x / LANES;  // at most SPLIT_WARPS
    const int team = lane / TEAM, member = lane % TEAM;
    const int group = H / K, rows = T * group, blocks = (rows + N - 1) / N;
    const int kv_head = blockIdx.y / blocks, first_row = blockIdx.y % blocks * N, b = blockIdx.z;
    k += b * stride + kv_head * d;
    v += b * stride + kv_head * d;

    int64 i[N];  // positions; past the last row, the last one's
    float queries[N][COLUMNS], mix[N][COLUMNS] = {}, largest[N], sum[N];
    UNROLL for (int r = 0; r < N; r++) {
        const int row = min(first_row + r, rows - 1);
        const int64 token = (int64)b * T + row / group, head = kv_head * group + row % group;
        i[r] = q_positions[token];
        load_columns(queries[r], q + (token * H + head) * d, member);
        for (int c = 0; c < COLUMNS; c++) queries[r][c] *= query_scale();
        largest[r] = minus_infinity();
        sum[r] = 0;
    }

    for (int first = (blockIdx.x * warps + warp) * KEYS; first < S;
         first += gridDim.x * warps * KEYS) {
        const int64 j = first + lane < S ? k_positions[(int64)b * S + first + lane] : -1;
        unsigned mask[N], any = 0, all = ALL;
        UNROLL for (int r = 0; r < N; r++) {
            mask[r] = visible_keys(i[r], j, window);
            any |= mask[r];
            all &= mask[r];
        }
        if (any == 0) continue;
        // In place of a masked key, or one past the end, the last visible one is read again: that
        // costs nothing, and all loads can be under way at once.
        const int instead = LANES - 1 - __clz(any);
        const auto offset = [&](int key) {
            return (int64)(first + (among(key, any) ? key : instead)) * K * d;
        };

        float score[N];
        #pragma unroll (KEYS_AT_ONCE<N>)
        for (int step = 0; step < TEAM; step++) {
            const int key = team * TEAM + step;
            float x[COLUMNS];
            load_columns(x, k + offset(key), member);
            UNROLL for (int r = 0; r < N; r++) {
                float product = 0;
                for (int c = 0; c < COLUMNS; c++) product += queries[r][c] * x[c];
                product = lanes_sum(product, 1, TEAM);
                if (lane == key) score[r] = product;
            }
        }
        float weights[N];
        UNROLL for (int r = 0; r < N; r++) {
            float shrink;
            if (!among(lane, mask[r])) score[r] = minus_infinity();
            weights[r] = weigh(score[r], largest[r], sum[r], shrink);
            for (int c = 0; c < COLUMNS; c++) mix[r][c] *= shrink;
        }
        const auto value = [&](int key) { return v + offset(key); };
        if (all == ALL)
            add_columns<true>(mix, weights, mask, value);
        else
            add_columns<false>(mix, weights, mask, value);
    }

    // The teams of a warp share the largest score, so their sums are added; warps are merged.
    __shared__ alignas(16) float warp_mix[SPLIT_WARPS][N][d];
    __shared__ float warp_largest[SPLIT_WARPS][N], warp_sum[SPLIT_WARPS][N];
    UNROLL for (int r = 0; r < N; r++) {
        const float warps_sum = lanes_sum(sum[r]);
        if (lane == 0) {
            warp_largest[warp][r] = largest[r];
            warp_sum[warp][r] = warps_sum;
        }
        for (int n = 0; n < PACKS_A_LANE; n++) {
            const int column = pack_column(n, member);
            float x[VECTOR];
            for (int m = 0; m < VECTOR; m++)
                x[m] = lanes_sum(mix[r][n * VECTOR + m], TEAM, LANES);
            if (team == 0 && column < d) store_floats(&warp_mix[warp][r][column], x);
        }
    }
    __syncthreads();
    const int64 rows_of_all = (int64)gridDim.z * K * rows, in_all = gridDim.x * rows_of_all;
    float* const largest_parts = parts + in_all * d;
    float* const sum_parts = largest_parts + in_all;
    for (int n = threadIdx.x; n < N * d && first_row + n / d < rows; n += warps * LANES) {
        const int r = n / d, column = n % d;
        float one_largest, one_sum, one_mix;
        merge(&warp_largest[0][r], &warp_sum[0][r], &warp_mix[0][r][column], warps, N, one_largest,
              one_sum, one_mix);
        const int64 row = ((int64)b * K + kv_head) * rows + first_row + r;
        parts[(blockIdx.x * rows_of_all + row) * d + column] = one_mix;
        if (column == 0) {
            largest_parts[row * gridDim.x + blockIdx.x] = one_largest;
            sum_parts[row * gridDim.x + blockIdx.x] = one_sum;
        }
    }
}

extern "C" __global__ void __launch_bounds__(SPLIT_WARPS * LANES, 2)
attention_split_4(const storage* q, const storage* k, const storage* v, const int64* q_positions,
                  const int64* k_positions, float* parts, int T, int S, int H, int K,
                  int64 stride, int64 window)
{
    split<4>(q, k, v, q_positions, k_positions, parts, T, S, H, K, stride, window);
}

extern "C" __global__ void __launch_bounds__(SPLIT_WARPS * LANES, 2)
attention_split_8(const storage* q, const storage* k, const storage* v, const int64* q_positions,
                  const int64* k_positions, float* parts, int T, int S, int H, int K,
                  int64 stride, int64 window)
{
    split<8>(q, k, v, q_positions, k_positions, parts, T, S, H, K, stride, window);
}

// Merge the splits of a row, and divide: a block a row, in the order (B, K, T · H/K), a thread for
// each column. It does what `merge` does, but reads 32 parts at once, since there may be as many,
// and one after the other they would take as long as the attention itself.
extern "C" __global__ void __launch_bounds__(256, 4)
attention_combine(const float* parts, storage* out, int splits, int T, int H, int K)
{
    const int group = H / K, rows = T * group;
    const int row = blockIdx.x % rows, kv_head = blockIdx.x / rows % K;
    const int64 b = blockIdx.x / rows / K, step = gridDim.x, in_all = splits * step;
    const int lane = threadIdx.x % LANES, column = min(threadIdx.x, d - 1);
    const float* const mixes = parts + (int64)blockIdx.x * d + column;
    const float* const largest = parts + in_all * d + (int64)blockIdx.x * splits;
    const float* const sums = largest + in_all;

    float all_largest = minus_infinity();
    for (int p = lane; p < splits; p += LANES)
        all_largest = fmaxf(all_largest, largest[p]);
    all_largest = lanes_max(all_largest);
    const float base = all_largest == minus_infinity() ? 0 : all_largest;

    float sum = 0, mix = 0;
    for (int first = 0; first < splits; first += LANES) {
        // Each lane has the factor of one part, and the others read it from there.
        const int p = first + lane;
        const float shrink = p < splits ? exp2f(largest[p] - base) : 0;
        if (p < splits) sum += sums[p] * shrink;
        float x[LANES];
        UNROLL for (int n = 0; n < LANES; n++)
            x[n] = first + n < splits ? mixes[(first + n) * step * d] : 0;
        UNROLL for (int n = 0; n < LANES; n++) mix += x[n] * __shfl_sync(ALL, shrink, n);
    }
    const float scale = inverse(lanes_sum(sum));
    const int64 token = b * T + row / group, head = kv_head * group + row % group;
    if (threadIdx.x < d) out[(token * H + head) * d + column] = narrow(mix * scale);
}

#endif  // TENSOR_CORES
#endif  // HEAD_WIDTH
