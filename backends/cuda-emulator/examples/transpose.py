"""Transpose a matrix through shared memory, with and without bank conflicts.

It runs on a GPU, and without one by `python -m cuda_emulator report examples/transpose.py`, which
shows that without the extra column of `padded` the banks conflict.
"""

import cupy as cp
import numpy as np

SOURCE = """
template <int WIDTH>
__device__ void transpose(const float* x, float* y)
{
    __shared__ float tile[32][WIDTH];
    for (int row = 0; row < 32; row++)
        tile[row][threadIdx.x] = x[32 * row + threadIdx.x];
    __syncthreads();
    for (int row = 0; row < 32; row++)
        y[32 * row + threadIdx.x] = tile[threadIdx.x][row];
}
extern "C" __global__ void conflicting(const float* x, float* y) { transpose<32>(x, y); }
extern "C" __global__ void padded(const float* x, float* y) { transpose<33>(x, y); }
"""

x = np.arange(1024, dtype=np.float32).reshape(32, 32)
module = cp.RawModule(code=SOURCE, options=("--std=c++17",))
for name in ("conflicting", "padded"):
    y = cp.empty((32, 32), dtype=np.float32)
    module.get_function(name)((1,), (32,), (cp.asarray(x), y))
    assert (y.get() == x.T).all()
