# %% [markdown]
# # 12. A GPU kernel: the same interface, seen from inside
#
# To run this chapter, besides `pip install ".[walkthrough]"` you need the two packages for GPUs:
# `pip install ./backends/cuda-emulator ./backends/cupy`. You do not need a GPU.
#
# The model of this package never multiplies anything itself. It calls some ten operations,
# `embedding`, `linear`, `rms_norm`, `rope`, `attention` and so on, of an object called the
# *backend*. So far NumPy was behind them. Another backend has the same functions with the same
# shapes, and computes them elsewhere, for example on a *GPU*, a processor with thousands of small
# arithmetic units. [tinymistral-cupy](../backends/cupy/README.md) does that. And since few people
# have a GPU at hand, an *emulator* in NumPy can take the GPU's place: it runs the very same GPU
# code, slowly, and watches every step.

# %%
import re
import textwrap

import numpy as np
from chapter import BLUE, GREY, ORANGE, PALE, RED, picture, say, show
from cuda_emulator import KernelFault, Launch, collecting
from cuda_emulator import cupy_stand_in as cp  # with a GPU: import cupy as cp
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from tinymistral_cupy.backend import CupyBackend

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.operations import PlainBackend

tokenizer = MistralTokenizer.from_pretrained(DEMO)
ids = [tokenizer.encode("Once upon a time")]
on_gpu = MistralForCausalLM.from_pretrained(DEMO, backend="cupy-emulated")(ids).logits
on_cpu = MistralForCausalLM.from_pretrained(DEMO, dtype="float64")(ids).logits
difference = np.abs(on_gpu - on_cpu).max()
print("shape of the logits:", on_gpu.shape, " differ by less than 1e-3:", bool(difference < 1e-3))
assert difference < 1e-3

# %% [markdown]
# Not one line of the model was changed, only the name of the backend. (What differs is rounding:
# the GPU computes in float32 here.) This is the same operation in both, once with NumPy, once with
# a call of the GPU's code:

# %% tags=["remove-input"]
show(PlainBackend.rms_norm, CupyBackend.rms_norm)

# %% [markdown]
# The rest of this chapter goes one level down, to that code.
#
# ## Threads
#
# A function that a GPU runs is called a *kernel*, and is written in CUDA, a kind of C++. It says
# what **one** *thread* does. Thousands of threads run the same function, and each asks for its
# number, to find its own piece of the work. There is no loop over the array. (`__global__` marks a
# kernel, `__device__` a function for kernels to call; `extern "C"` keeps the name for Python.)

# %%
TWICE = """
extern "C" __global__ void twice(const float* x, float* y)
{
    const int n = blockIdx.x * blockDim.x + threadIdx.x;
    y[n] = 2 * x[n];
}
"""


def launch(source: str, name: str, blocks: int, threads: int, *arguments: object) -> Launch:
    """Run a kernel -> what it cost."""
    kernel = cp.RawModule(code=source, options=("--std=c++17",)).get_function(name)
    with collecting() as launches:
        kernel((blocks,), (threads,), arguments)
    return launches[0]


x = cp.asarray(np.arange(128, dtype=np.float32))
y = cp.empty(128, dtype=np.float32)  # it holds NaN until something is written
launch(TWICE, "twice", 2, 64, x, y)
print(y.get()[:5], "...", y.get()[-1])
assert (y.get() == 2 * x.get()).all()

# %% [markdown]
# Threads are grouped. `blockDim.x` threads, here 64, form a *block*; its threads can share memory
# and wait for each other. All blocks together are the *grid*; they run in any order. Inside a
# block, every 32 threads form a *warp*, and this is the unit to think in: the 32 threads of a warp
# execute the same instruction at the same time, each with numbers of its own.
#
# ## From threads to memory
#
# When a warp reads, 32 threads ask for 32 numbers at once. The GPU's memory answers in *sectors* of
# 32 bytes, 8 numbers of float32 each. If thread n wants number n, the 32 numbers lie side by side
# in 4 sectors. If thread n wants number 32·n, a column of a matrix, each lies in another sector,
# and of every 8 numbers that travel 7 are thrown away. The emulator counts sectors:

# %%
READ = """
extern "C" __global__ void row(const float* x, float* y)
{
    y[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void column(const float* x, float* y)
{
    y[threadIdx.x] = x[32 * threadIdx.x];
}
"""
matrix, y = cp.asarray(np.arange(1024, dtype=np.float32)), cp.empty(32, dtype=np.float32)
sectors = {}
for name in ("row", "column"):
    sectors[name] = launch(READ, name, 1, 32, matrix, y).total.sectors - 4  # 4 are written
    print(f"{name:6}: 32 numbers are read in {sectors[name]} sectors")
assert sectors == {"row": 4, "column": 32}

# %% tags=["remove-input"]
figure = Figure(figsize=(8, 3.5))
axes = figure.subplots()


def sector(left: float, top: float, used: int, threads: str) -> None:
    """Draw a sector of 8 numbers, of which the first `used` are wanted, by these threads."""
    for n in range(8):
        colour = BLUE if n < used else PALE
        axes.add_patch(Rectangle((left + n, top), 1, 1, fc=colour, ec="white"))
    axes.add_patch(Rectangle((left, top), 8, 1, fill=False, ec=GREY, lw=1))
    inside = (left + 4.6, top + 0.45) if used == 1 else (left + 4, top - 0.55)
    axes.text(*inside, threads, size=8, ha="center", va="center", color="#555555")


for n in range(4):
    sector(8.6 * n, 8, 8, f"threads {8 * n}–{8 * n + 7}")
for n in range(32):
    sector(8.6 * (n % 8), 4.6 - 1.5 * (n // 8), 1, f"thread {n}")
axes.text(0, 9.4, "a row: x[n]", weight="bold")
axes.text(35.4, 8.25, f"{sectors['row']} sectors, and all that travels is used", color=BLUE)
axes.text(0, 6.0, "a column: x[32·n]", weight="bold")
axes.text(18.5, 6.0, f"{sectors['column']} sectors, and one number in eight is used", color=BLUE)
axes.set(xlim=(-0.3, 68.7), ylim=(-0.2, 10.2))
axes.set_title("32 threads read 32 numbers (blue). What travels is whole sectors of 8")
axes.axis("off")
picture(
    figure, "12_memory", "Sectors of memory: 4 full ones for a row, 32 nearly empty for a column"
)

# %% [markdown]
# ## Shared memory, and its banks
#
# A block has a small memory of its own, some ten times faster: *shared memory*. One copies a piece
# there, in rows, and then all threads of the block use it, also by columns. But this memory has a
# trap too. It consists of 32 *banks*; number n lies in bank n % 32, and a bank hands out one number
# at a time. In a tile of 32 columns a whole column lies in a single bank, and 32 threads that read
# it must queue: a *bank conflict*. The remedy is a column that nobody uses. With rows of 33
# numbers, each row begins one bank further. (A `template` is compiled once for each number in
# angle brackets.)

# %%
BANKS = """
template <int WIDTH> __device__ void read_column(const float* x, float* y)
{
    __shared__ float tile[32][WIDTH];
    for (int row = 0; row < 32; row++) tile[row][threadIdx.x] = x[32 * row + threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x][5];  // each thread has a row; all want its number 5
}
extern "C" __global__ void plain(const float* x, float* y) { read_column<32>(x, y); }
extern "C" __global__ void padded(const float* x, float* y) { read_column<33>(x, y); }
"""
waits = {}
for name in ("plain", "padded"):
    waits[name] = launch(BANKS, name, 1, 32, matrix, y).total.conflicts
    print(f"{name}: the read waits {waits[name]} times")
    assert (y.get() == np.arange(5, 1024, 32)).all()  # both are right
assert waits == {"plain": 31, "padded": 0}

# %% tags=["remove-input"]
figure = Figure(figsize=(8, 3.9))
for axes, width, title in zip(
    figure.subplots(1, 2, sharey=True),
    (32, 33),
    (f"rows of 32: all in one bank, {waits['plain']} waits", "rows of 33: 32 banks, no waiting"),
    strict=True,
):
    for thread in range(32):
        place = thread * width + 5
        axes.add_patch(Rectangle((place % 32, thread), 1, 1, color=RED if width == 32 else BLUE))
    for line in range(33):
        axes.axvline(line, color=PALE, lw=0.6)
    axes.set(xlim=(0, 32), ylim=(32, 0), xlabel="bank", xticks=[0.5, 5.5, 15.5, 31.5])
    axes.set_xticklabels([0, 5, 15, 31])
    axes.set_title(title)
    axes.set_aspect("equal")
figure.axes[0].set_ylabel("thread, which reads number 5 of its row")
figure.axes[0].set_yticks([0.5, 15.5, 31.5], [0, 15, 31])
picture(
    figure, "12_banks", "Which bank each thread reads: a vertical line, and with padding a diagonal"
)

# %% [markdown]
# The package's attention does exactly this: a thread has a key, and all of them read the same
# number of their keys at the same time. In
# [mistral.cu](../backends/cupy/tinymistral_cupy/mistral.cu) the rows of keys are padded for this
# reason.
#
# ## Attention in tiles
#
# Now a whole kernel, simpler than the package's: attention of one head, with a window. Here a
# thread has one query. The keys and values come in *tiles* of 32, each fetched into shared memory
# once for all 64 queries of the block. A thread never sees all scores at once, so softmax is
# computed on the way: `largest` is the largest score so far, and weights are exp(score − largest).
# If it grows, all that was summed before is multiplied by `shrink` = exp(before − largest), as if
# it had been the largest from the start.
#
# `__syncthreads()` is a *barrier*: no thread goes past it before all of the block have arrived. The
# first makes sure that the tile is complete before anyone uses it, the second that nobody still
# needs it when the next is fetched. (The kernel could be better: see how neighbouring threads read
# numbers of `q` that are 32 apart, as in `column` above.)

# %%
ATTEND = """
constexpr int d = 32, KEYS = 32;  // the width of a head, the keys of a tile

extern "C" __global__ void attend(const float* q, const float* k, const float* v, float* out,
                                  int* fetched, int T, int window)
{
    __shared__ float keys[KEYS][d], values[KEYS][d];
    const int first_query = blockIdx.x * blockDim.x, last_query = first_query + blockDim.x - 1;
    const int i = first_query + threadIdx.x;
    float x[d], mix[d] = {}, largest = -1e30, sum = 0;
    for (int c = 0; c < d; c++) x[c] = q[i * d + c] / sqrtf(d);

    for (int first = 0; first < T; first += KEYS) {
        const int last = first + KEYS - 1;
        if (first > last_query || first_query - last >= window) continue;  // nobody sees it
        for (int n = threadIdx.x; n < KEYS * d; n += blockDim.x) {
            keys[n / d][n % d] = k[first * d + n];
            values[n / d][n % d] = v[first * d + n];
        }
        if (threadIdx.x == 0) fetched[blockIdx.x * (T / KEYS) + first / KEYS] = 1;
        __syncthreads();  // the tile is complete

        for (int n = 0; n < KEYS; n++) {
            const int j = first + n;
            if (i < j || i - j >= window) continue;
            float score = 0;
            for (int c = 0; c < d; c++) score += x[c] * keys[n][c];
            const float before = largest;
            largest = fmaxf(before, score);
            const float weight = expf(score - largest), shrink = expf(before - largest);
            sum = sum * shrink + weight;
            for (int c = 0; c < d; c++) mix[c] = mix[c] * shrink + weight * values[n][c];
        }
        __syncthreads();  // nobody needs the tile any more
    }
    for (int c = 0; c < d; c++) out[i * d + c] = mix[c] / sum;
}
"""
random = np.random.default_rng(1)


def attend(source: str, T: int, window: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Run the kernel on random queries -> output, tiles fetched by each block, largest error."""
    q, k, v = random.standard_normal((3, T, 32)).astype(np.float32)
    out, fetched = cp.empty((T, 32), dtype=np.float32), cp.zeros((T // 64, T // 32), dtype=np.int32)
    arguments = (*map(cp.asarray, (q, k, v)), out, fetched, np.int32(T), np.int32(window))
    launch(source, "attend", T // 64, 64, *arguments)
    wide = (each.astype(np.float64).reshape(1, T, 1, 32) for each in (q, k, v))
    positions = np.arange(T)[None]
    expected = PlainBackend("float64").attention(*wide, positions, positions, window)
    return out.get(), fetched.get(), float(np.abs(out.get() - expected.reshape(T, 32)).max())


T, W = 512, 128
_, fetched, error = attend(ATTEND, T, W)
print("error below 1e-5:", error < 1e-5)
assert error < 1e-5

# %% tags=["remove-input"]
causal = sum(2 * (block + 1) for block in range(T // 64))
figure = Figure(figsize=(8, 4.6))
axes = figure.subplots()
for block, row in enumerate(fetched):
    for tile, loaded in enumerate(row):
        style = {"fc": "#BBD9EE" if loaded else "white", "ec": GREY if loaded else PALE}
        axes.add_patch(Rectangle((32 * tile, 64 * block), 32, 64, lw=0.8, **style))
band = [(0, 0), (T, T), (T - W, T), (0, W)]
axes.add_patch(Polygon(band, color=ORANGE, alpha=0.55, lw=0))
axes.set(xlim=(0, T), ylim=(T, 0), xlabel="keys, in tiles of 32", ylabel="queries, a block has 64")
axes.set_xticks(range(0, T + 1, 64))
axes.set_yticks(range(0, T + 1, 64))
axes.text(360, 110, "the future:\nnot fetched", color=GREY, ha="center", va="center")
axes.text(80, 430, "outside the window:\nnot fetched", color=GREY, ha="center", va="center")
axes.text(300, 365, f"what a query sees (W = {W})", rotation=-27, ha="center", va="center", size=9)
axes.set_title(
    f"Only tiles that touch the band are fetched (blue): {fetched.sum()} of {fetched.size}"
)
picture(
    figure, "12_tiles", "Tiles of keys by block of queries: only those along the band are fetched"
)

# %% tags=["remove-input"]
long, window = 32768, 4096
all_tiles = sum(2 * (block + 1) for block in range(long // 64))
in_window = sum(min(2 * (block + 1), (window + 64) // 32) for block in range(long // 64))
assert fetched.sum() < causal and 4 < all_tiles / in_window < 5
say(f"""
The kernel itself notes in `fetched` which tiles it loads. Those that no query of the block can see
are skipped, and cost neither time nor memory traffic: {fetched.sum()} are fetched, where it would
be {causal} without a window. The longer the text, the more is saved. For {long:,} tokens and the
window of Mistral-7B, {window:,}, it is {all_tiles / in_window:.1f} times fewer tiles.
""")

# %% [markdown]
# ## Experiment: a planted race
#
# Leave out the first barrier. Now the threads of one warp may begin with the scores while another
# warp is still copying: a *race*. On a GPU the result would depend on which warp is faster. It may
# be right a million times, on your card. The emulator does not wait for bad luck. For every number
# it knows who wrote it, and whether a barrier lies between that and each read:


# %%
def fault_of(source: str) -> str:
    """Return what the emulator finds, with the lines that it names; "" for nothing."""
    try:
        attend(source, T=128, window=40)
    except KernelFault as fault:
        lines = [fault.line, *map(int, re.findall(r"on line (\d+)", fault.what))]
        text = [f"  line {n}: {source.splitlines()[n - 1].strip()}" for n in lines]
        return "\n".join([type(fault).__name__, *text])
    return ""


without_barrier = ATTEND.replace("__syncthreads();  // the tile is complete", "")
print(fault_of(without_barrier))
assert fault_of(without_barrier).startswith("Race")
assert fault_of(ATTEND) == ""

# %% [markdown]
# First the line that reads, then the line that wrote; nothing orders the two. Other faults that it
# finds: an access beyond the end of an array, memory that is read before anything was written to
# it, a barrier that some threads never reach.
#
# ## Exercise: repair the kernel
#
# Here is the kernel's loop over the tiles once more, with two mistakes in it. `check` runs it and
# tests its *law*: there is no fault, and the result is the attention of `PlainBackend`, within
# 1e-5. Return the source with the mistakes repaired.

# %% tags=["remove-input"]
BROKEN = ATTEND.replace("  // nobody needs the tile any more", "").replace(
    "  // the tile is complete", ""
)
second = BROKEN.rindex("        __syncthreads();\n")
BROKEN = BROKEN[:second] + BROKEN[second:].replace("        __syncthreads();\n", "")
BROKEN = BROKEN.replace("i - j >= window", "i - j > window")
loop = BROKEN[
    BROKEN.index("    for (int first") : BROKEN.index("    for (int c = 0; c < d; c++) out")
]
say(f"```c\n{textwrap.dedent(loop)}```")


# %%
def repaired(source: str) -> str:
    """Return the source without mistakes."""
    return source.replace("what is wrong", "what is right")  # your turn


def check(answer) -> str:
    """Say whether the law holds for the kernel."""
    source = answer(BROKEN)
    try:
        _, _, error = attend(source, 192, 40)
    except KernelFault as fault:
        line = source.splitlines()[fault.line - 1].strip()
        return f"Not yet: {type(fault).__name__} in “{line}”. Hint: who waits for whom?"
    except cp.cuda.compiler.CompileException as problem:
        return f"Not yet: it does not compile: {str(problem).splitlines()[0]}"
    if not error < 1e-5:
        return f"Not yet: no fault, but off by {error:.2f}. Hint: how many keys does a query see?"
    return "Right."


print(check(repaired))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The second barrier is missing: without it a warp fetches the next tile while another still works
# with this one. And `i - j > window` lets a query see W + 1 keys (chapter 6).


# %%
def solution(source: str) -> str:
    """Put the barrier back, and set the window right."""
    source = source.replace("i - j > window", "i - j >= window")
    end = "weight * values[n][c];\n        }\n"
    return source.replace(end, end + "        __syncthreads();\n")


print(check(solution))
assert check(solution) == "Right."
assert check(lambda source: source.replace("> window", ">= window")) != "Right."
inclusive = solution(BROKEN).replace("i - j >= window", "i - j > window")
assert check(lambda source: inclusive).startswith("Not yet: no fault")

# %% [markdown]
# </details>
#
# ## What to remember
#
# A backend is the same few operations computed elsewhere; the model does not notice. A kernel says
# what one thread does. Neighbouring threads should read neighbouring numbers; in shared memory they
# should meet different banks; and where threads share something, a barrier has to stand between
# writing and reading. With a window, most tiles need not be fetched at all. The package's kernels
# are [mistral.cu](../backends/cupy/tinymistral_cupy/mistral.cu), and
# [cuda-emulator](../backends/cuda-emulator/README.md) counts and checks kernels of your own.
#
# Next: [13. Golden outputs](13_golden_outputs.md)
