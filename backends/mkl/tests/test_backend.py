"""What is special to the backend; what it computes is in the laws too, `test_conformance.py`."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from fractions import Fraction
from importlib import metadata, util
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tinymistral_mkl
from tinymistral import DEMO, MistralForCausalLM
from tinymistral.backend import BackendUnavailable
from tinymistral.conformance.cases import Matrix
from tinymistral.conformance.test_operations import test_linear_is_dot_products as linear_law
from tinymistral.numpy_backend import NumpyBackend
from tinymistral_mkl import BFLOAT16, MklBackend, split

NARROW = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


# The parts of a number, in exact arithmetic


def bits_of(number: float) -> int:
    return int(np.float32(number).view(np.uint32))


@given(st.integers(0, 2**32 - 1))
@example(bits_of(np.finfo(np.float32).max))  # rounded to 8 bits it would be infinite
@example(bits_of(-np.finfo(np.float32).max))
@example(bits_of(2**-110 + 2**-133))
@example(bits_of(2**-110 - 2**-134))
@example(0x007FFFFF)  # the largest subnormal number
@example(0x80000001)  # the smallest
@example(0x80000000)  # -0
@example(0x7F800001)  # NaN, though its upper half is infinite
def test_three_parts_are_a_float32(bits):
    x = np.array([[bits]], dtype=np.uint32).view(np.float32)
    parts = split(x, 3)
    assert parts.dtype == BFLOAT16
    assert parts.shape == (3, 1, 1)
    numbers = [float(part) for part in parts.ravel()]
    if np.isfinite(x):
        exact, total = Fraction(float(x[0, 0])), sum(map(Fraction, numbers))
        if abs(exact) >= Fraction(2) ** -110:
            assert total == exact
        else:
            assert abs(total - exact) < Fraction(2) ** -133
        assert all(number == 0 or (number < 0) == (exact < 0) for number in numbers)
        assert all(abs(b) <= abs(a) / 2**7 for a, b in pairwise(numbers))
    else:
        with np.errstate(invalid="ignore"):  # a NaN that signals
            np.testing.assert_array_equal(numbers, [x[0, 0], 0, 0])


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_the_parts_of_what_is_not_finite_are_it_and_zeros(number):
    x = np.array([[1, number, 1 / 3]], dtype=np.float32)
    parts = split(x, 3).astype(np.float32)
    np.testing.assert_array_equal(parts[:, 0, 1], [number, 0, 0])
    np.testing.assert_array_equal(parts.sum(axis=0), x)


def test_a_product_with_ones_gives_every_bit_of_the_rows_back():
    """Up to the largest float32, and down to 2^-110."""
    rng = np.random.default_rng(0)
    size = np.exp2(rng.uniform(-110, 128, (60, 40))) * rng.choice([-1, 1], (60, 40))
    x = size.astype(np.float32)
    x[0, 0] = np.finfo(np.float32).max
    out = MklBackend("float32").linear(x, np.eye(40, dtype=BFLOAT16))
    np.testing.assert_array_equal(out, x)


# The products


@NARROW
@pytest.mark.parametrize(
    ("T", "m", "n"), [(1, 1, 1), (1, 4099, 576), (3, 130, 14_337), (33, 65, 5120), (1025, 97, 65)]
)
def test_a_bfloat16_weight_at_real_sizes(dtype, T, m, n):
    case = Matrix(T, m, n, stored="bfloat16", scale=1.0, seed=T)
    linear_law.tinymistral_law.check(MklBackend(dtype), case)


@NARROW
def test_in_pieces_of_any_size_on_several_threads(dtype, monkeypatch):
    monkeypatch.setattr(tinymistral_mkl, "threads", lambda: 3)
    for name in ("WEIGHTS_IN_PARALLEL", "PRODUCTS_IN_PARALLEL"):
        monkeypatch.setattr(tinymistral_mkl, name, 0)
    for numbers in (1, 3000):
        monkeypatch.setattr(tinymistral_mkl, "NUMBERS_A_CALL", numbers)
        case = Matrix(7, 500, 33, stored="bfloat16", scale=1.0, seed=numbers)
        linear_law.tinymistral_law.check(MklBackend(dtype), case)


@NARROW
def test_infinite_and_nan_activations_reach_their_row_alone(dtype):
    """Beside float64."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 50)).astype(dtype if dtype != "bfloat16" else BFLOAT16)
    weight = rng.standard_normal((70, 50)).astype(BFLOAT16)
    backend = MklBackend(dtype)
    before = backend.linear(x, weight)
    x[1, 3], x[2, 4], x[2, 5], x[3, 6] = np.inf, -np.inf, 1e4, np.nan
    out = backend.linear(x, weight)
    np.testing.assert_array_equal(out[0], before[0])
    with np.errstate(invalid="ignore"):
        exact = x.astype(np.float64) @ weight.astype(np.float64).T
    np.testing.assert_array_equal(out[1:].astype(np.float64), exact[1:])


def unaligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts on an odd address, as data in a file may."""
    raw = np.empty(array.nbytes + 1, dtype=np.uint8)
    raw[1:] = np.frombuffer(array.tobytes(), dtype=np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


def weights() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((40, 30)).astype(BFLOAT16)


@pytest.mark.parametrize(
    ("dtype", "x_dtype", "weight"),
    [
        ("float64", "float64", weights()),
        ("float32", "float32", weights().astype(np.float32)),
        ("float32", "float32", weights().astype(np.float16)),
        ("float16", "float16", weights()),
        ("bfloat16", BFLOAT16, weights().astype(np.float32)),
        ("float32", "float32", unaligned(weights())),
        ("float32", "float32", weights()[:, ::2]),
    ],
)
def test_numpy_computes_what_mkl_cannot(dtype, x_dtype, weight, monkeypatch):
    monkeypatch.setattr(tinymistral_mkl, "product", None)
    x = np.random.default_rng(3).standard_normal((2, 3, weight.shape[1])).astype(x_dtype)
    out = MklBackend(dtype).linear(x, weight)
    np.testing.assert_array_equal(out, NumpyBackend(dtype).linear(x, weight))
    assert out.dtype == x.dtype


def test_of_no_tokens_there_are_no_products():
    x = np.empty((2, 0, 30), dtype=np.float32)
    assert MklBackend("float32").linear(x, weights()).shape == (2, 0, 40)


def test_weights_are_read_where_they_lie_by_as_many_threads_as_there_are(monkeypatch):
    weight, met, call = weights().repeat(8, axis=0), threading.Barrier(3), tinymistral_mkl.product

    def product(rows, part):
        met.wait(60)  # until three threads are here, or it fails
        assert np.shares_memory(part, weight)
        return call(rows, part)

    monkeypatch.setattr(tinymistral_mkl, "product", product)
    monkeypatch.setattr(tinymistral_mkl, "WEIGHTS_IN_PARALLEL", 0)
    for module in (tinymistral_mkl, sys.modules["tinymistral.threads"]):
        monkeypatch.setattr(module, "threads", lambda: 3)
    x = np.ones((1, 30), dtype=np.float32)
    assert MklBackend("float32").linear(x, weight).shape == (1, 320)


def test_a_greedy_text_is_that_of_numpy(monkeypatch):
    monkeypatch.setattr("tinymistral.pretrained.WIDENED_AT_MOST", 0)
    calls, call = [], tinymistral_mkl.product
    monkeypatch.setattr(
        tinymistral_mkl, "product", lambda *given: calls.append(given) or call(*given)
    )
    texts = [
        MistralForCausalLM.from_pretrained(DEMO, backend=backend).generate(
            [[1, 5, 300], [1, 7, 900]], max_new_tokens=80, do_sample=False, eos_token_id=[]
        )
        for backend in ("numpy", "mkl")
    ]
    np.testing.assert_array_equal(*texts)
    assert len(calls) > 1000


# One process with other libraries

MULTIPLY = """
import ml_dtypes, numpy
from tinymistral_mkl import MklBackend
x = numpy.full((9, 2048), 3, dtype=ml_dtypes.bfloat16)
assert (MklBackend("bfloat16").linear(x, x) == 9 * 2048).all()
"""
TORCH = """
import torch
x = torch.full((300, 2048), 3, dtype=torch.bfloat16)
assert (x @ x.T == 9 * 2048).all()
"""


def run(program: str) -> str:
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("layer", ["", "INTEL", "GNU", "TBB"])
def test_mkl_loads_no_library_of_threads(layer, monkeypatch):
    """Also where the environment asks for one, and for 64-bit integers."""
    if layer:
        monkeypatch.setenv("MKL_THREADING_LAYER", layer)
        monkeypatch.setenv("MKL_INTERFACE_LAYER", "ILP64")
    loaded = run(MULTIPLY + "print(open('/proc/self/maps', encoding='utf-8').read())")
    assert "libmkl_sequential" in loaded
    for library in ("libiomp", "libgomp", "libtbb"):
        assert library not in loaded


@pytest.mark.skipif(util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize("program", [TORCH + MULTIPLY + TORCH, MULTIPLY + TORCH + MULTIPLY])
def test_pytorch_computes_in_the_same_process(program):
    run(program)


def test_bench_measures_it():
    arguments = "bench --backend mkl --dtype bfloat16 --lengths 4 --new-tokens 2 --rounds 1".split()
    command = [sys.executable, "-m", "tinymistral", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "weights bfloat16, backend mkl, dtype bfloat16" in done.stdout


# What `tinymistral backends` says


@pytest.fixture
def not_loaded():
    tinymistral_mkl.library.cache_clear()
    yield
    tinymistral_mkl.library.cache_clear()


def test_without_mkl_the_remedy_is_named(not_loaded, monkeypatch):
    def files(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)
    with pytest.raises(BackendUnavailable, match=r'^MKL is not .*; pip install "mkl>=.*numpy$'):
        MklBackend.device()


@pytest.mark.parametrize("files", [[], ["libmkl_rt.so.3"], ["libmkl_core.so.3"]])
def test_a_broken_installation_is_named(files, not_loaded, monkeypatch, tmp_path):
    (tmp_path / "libmkl_rt.so.3").write_text("no library", "utf-8")
    files = [metadata.PackagePath(name) for name in files]
    for file in files:
        file.dist = metadata.PathDistribution(tmp_path / "mkl.dist-info")
    monkeypatch.setattr(metadata, "files", lambda name: files)
    with pytest.raises(BackendUnavailable, match=r"^MKL cannot be loaded: .*; pip install --force"):
        MklBackend.device()


AVX512 = "Intel(R) Advanced Vector Extensions 512 (Intel(R) AVX-512)"


@pytest.mark.parametrize(
    ("processor", "says"),
    [  # what the library can say of a processor
        ("Intel(R) Architecture processors", "uses no bfloat16 units"),
        ("Intel(R) Advanced Vector Extensions 2 (Intel(R) AVX2) enabled processors", "uses no"),
        (f"{AVX512} enabled processors", "uses no bfloat16 units"),
        (f"{AVX512} with support for INT8, BF16, and FP16 (limited) instructions", "AVX-512 BF16$"),
        (
            f"{AVX512} with support for INT8, BF16, FP16 (limited) instructions, and Intel(R) "
            "Advanced Matrix Extensions (Intel(R) AMX) with INT8 and BF16",
            "AVX-512 BF16 and AMX$",
        ),
    ],
)
def test_the_units_that_mkl_uses_are_named(processor, says, monkeypatch):
    version, here = tinymistral_mkl.about()
    assert version.startswith("20")
    assert "processor" in here or "BF16" in here
    monkeypatch.setattr(tinymistral_mkl, "about", lambda: (version, processor))
    assert re.search(says, MklBackend.details())
