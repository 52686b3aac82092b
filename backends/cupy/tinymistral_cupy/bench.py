"""Measure kernels, prompts and tokens of Mistral-7B on this GPU.

  python -m tinymistral_cupy.bench
  python -m tinymistral_cupy.bench --layers 2 --json

Weights are random, the window is 4096. Beside each time is the least that the
card could take, by its own rates for a copy and for a product of matrices, and
the time of torch (flex_attention) or transformers where they are installed.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import numpy as np

from tinymistral import MistralConfig, MistralForCausalLM
from tinymistral.backend import Array, BackendUnavailable
from tinymistral.bench.presets import of_one_layer
from tinymistral.commands.arguments import Parser, add_json, check_range, integer
from tinymistral.commands.console import Progress, print_json, say, settle_streams, write
from tinymistral.pretrained import random_tensors
from tinymistral.text import one_line, table
from tinymistral_cupy.backend import DTYPES, CupyBackend
from tinymistral_cupy.floors import Heads, Rates, decode_seconds, prefill_seconds
from tinymistral_cupy.peers import Torch, Transformers

PROGRAM = "tinymistral_cupy.bench"
EPILOG = """\
The first prompt is also the time to compile, or to load from CuPy's cache. A
step of 32 layers needs 17 GB; with fewer --layers it needs less.

--json prints one object: card, date, versions, dtype, layers; bandwidth in
bytes a second and operations a second; rows, each with what, seconds, least
(null: unknown) and peers, seconds by name; notes, on what was not measured.
"""
Measure = Callable[[Any, int], float]  # a peer's: for a size, the seconds
DISTRIBUTIONS = ("tinymistral-cupy", "cupy-cuda13x", "cupy-cuda12x", "torch", "transformers")


@dataclass(frozen=True)
class Sizes:
    """What is measured: that of Mistral-7B, of which tests need less."""

    config: MistralConfig
    matrix: int = 8192  # rows and columns of the product that shows the card's rate
    copied: int = 1 << 28  # numbers of the copy
    tokens: int = 4096  # of kernels on single tokens
    attended: tuple[int, ...] = (8192, 32768)  # tokens of a prompt, for attention alone
    prompts: tuple[int, ...] = (512, 4096, 8192)
    batches: tuple[int, ...] = (1, 8, 32)

    @property
    def heads(self) -> Heads:
        """The heads of a layer, and its window."""
        c = self.config
        window = c.sliding_window or c.max_position_embeddings
        return Heads(c.num_attention_heads, c.num_key_value_heads, c.head_dim, window)


@dataclass
class Row:
    """What was measured, its seconds, the least possible, and the seconds of peers by name."""

    what: str
    seconds: float
    least: float | None
    peers: dict[str, float]


class Bench:
    """The measurements of one backend, in order; `rows` and `notes` are what came out."""

    def __init__(self, backend: CupyBackend, sizes: Sizes, progress: Callable[[str], None]):
        """Measure the card's rates, which the rest is compared with."""
        self.backend, self.sizes, self.progress = backend, sizes, progress
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._random = np.random.default_rng(0)
        self.rates = self._rates()

    def _rates(self) -> Rates:
        self.progress("the card")
        cp, n, copied = self.backend.module(), self.sizes.matrix, self.sizes.copied
        from_, to = (self.backend.zeros((copied,), self.backend.dtype) for _ in range(2))
        copy = self._on_card(lambda: cp.copyto(to, from_))
        matrix = self.backend.zeros((n, n), self.backend.dtype)
        product = self._on_card(lambda: self.backend.linear(matrix, matrix))
        return Rates(bandwidth=2 * from_.nbytes / copy, operations=2 * n**3 / product)

    def attention(self, torch: Torch) -> None:
        """Measure attention of one layer: of a prompt, and of a token past the window."""
        heads, attend = self.sizes.heads, self.backend.attention
        for T in self.sizes.attended:
            what = f"attention, prompt of {T}"
            self.progress(what)
            q, k, v = (self._drawn(1, T, n, heads.d) for n in (heads.H, heads.K, heads.K))
            at = np.arange(T, dtype=np.int64)[None]
            took = self._on_card(lambda: attend(q, k, v, at, at, heads.W), calls=3)  # noqa: B023
            self._add(what, took, prefill_seconds(self.rates, T, heads))
            self._compare(self.rows[-1], torch, Torch.prompt, T)
        W = heads.W
        for B in self.sizes.batches:
            what = f"attention, a token of {B}"
            self.progress(what)
            q = self._drawn(B, 1, heads.H, heads.d)
            k, v = (self._drawn(B, W, heads.K, heads.d) for _ in range(2))
            last = np.full((B, 1), W - 1, dtype=np.int64)
            keys = np.tile(np.arange(W, dtype=np.int64), (B, 1))
            took = self._on_card(lambda: attend(q, k, v, last, keys, W))  # noqa: B023
            self._add(what, took, decode_seconds(self.rates, B, heads))

    def single_tokens(self) -> None:
        """Measure the kernels that read and write each token once."""
        backend, T, heads = self.backend, self.sizes.tokens, self.sizes.heads
        D = heads.H * heads.d
        x, y, weight = self._drawn(T, D), self._drawn(T, D), self._drawn(D)
        by_head, at = x.reshape(1, T, heads.H, heads.d), np.arange(T, dtype=np.int64)[None]
        angles = backend.rope_table(at, 1e4, heads.d)
        cache = backend.zeros(by_head.shape, backend.dtype)
        for what, arrays, call in (
            ("rms_norm", 2, lambda: backend.rms_norm(x, weight, 1e-5)),
            ("add", 3, lambda: x + y),
            ("silu_mul", 3, lambda: backend.silu_mul(x, y)),
            ("rope", 2, lambda: backend.rope(by_head, angles)),
            ("scatter", 2, lambda: backend.scatter(cache, at, by_head)),
        ):
            self.progress(what)
            least = arrays * x.nbytes / self.rates.bandwidth
            self._add(f"{what}, {T} tokens", self._on_card(call), least)

    def model(self, transformers: Transformers) -> None:
        """Measure prompts, and a token of a batch, of the whole model; what does not fit is noted.

        The peer comes after, when our weights have left the card.
        """
        try:
            peers = self._our_model()
        except BackendUnavailable as error:
            self.notes.append(f"the model was not measured: {error}; or take fewer --layers")
            return
        gc.collect()
        self.backend.module().get_default_memory_pool().free_all_blocks()
        for row, measure, size in peers:
            self._compare(row, transformers, measure, size)

    def _our_model(self) -> list[tuple[Row, Measure, int]]:
        """Add our rows; return each with what the peer does for it, and its size."""
        config = self.sizes.config
        out: list[tuple[Row, Measure, int]] = []
        self.progress("the weights")
        model = MistralForCausalLM(config, backend=self.backend, tensors=same_layers(config))
        unread = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        matrices = model.num_parameters() - unread
        self.progress("the first prompt")
        first = wall(lambda: self._run(model, self._ids(1, 64)), calls=1, warm=0)
        self._add("first prompt of the process, 64", first, None)
        for T in self.sizes.prompts:
            what = f"prompt of {T}"
            self.progress(what)
            ids = self._ids(1, T)
            took = wall(lambda: self._run(model, ids), calls=2)  # noqa: B023
            products = 2 * T * matrices / self.rates.operations
            attention = prefill_seconds(self.rates, T, self.sizes.heads)
            self._add(what, took, products + config.num_hidden_layers * attention)
            out.append((self.rows[-1], Transformers.prompt, T))
        for B in self.sizes.batches:
            what = f"a token of {B}"
            self.progress(what)
            cache, token = model.new_cache(B), self._ids(B, 1)
            model(self._ids(B, 64), past_key_values=cache, logits_to_keep=1)
            nbytes = matrices * DTYPES[self.backend.dtype].itemsize
            step = partial(model, token, past_key_values=cache)
            # The second step captures a graph, unless that is turned off.
            self._add(what, wall(step, calls=20, warm=3), nbytes / self.rates.bandwidth)
            out.append((self.rows[-1], Transformers.token, B))
            if self.backend.graphs.enabled:
                self.backend.graphs.enabled = False
                took = wall(step, calls=20)
                self.backend.graphs.enabled = True
                self._add(f"{what}, without a graph", took, self.rows[-1].least)
        return out

    @staticmethod
    def _run(model: MistralForCausalLM, ids: np.ndarray) -> None:
        model(ids, past_key_values=model.new_cache(len(ids)), logits_to_keep=1)

    def _add(self, what: str, took: float, least: float | None) -> None:
        self.rows.append(Row(what, took, least, {}))

    def _compare(self, row: Row, peer: Any, measure: Measure, size: int) -> None:
        """Add a peer's seconds to a row; why it has none is noted, once for each reason."""
        self.progress(f"{peer.name}, {row.what}")
        try:
            row.peers[peer.name] = measure(peer, size)
        except Exception as error:  # another program, which may fail in any way
            note = f"{peer.name} was not measured: {one_line(error) or type(error).__name__}"
            if note not in self.notes:
                self.notes.append(note)

    def _drawn(self, *shape: int) -> Array:
        numbers = self._random.standard_normal(shape, dtype=np.float32)
        return self.backend.asarray(numbers, self.backend.dtype)

    def _ids(self, B: int, T: int) -> np.ndarray:
        return self._random.integers(0, self.sizes.config.vocab_size, (B, T))

    def _on_card(self, call: Callable[[], Any], calls: int = 20) -> float:
        """Return the seconds that a call takes on the card, of many in a row."""
        cp = self.backend.module()
        for _ in range(3):
            call()
        start, stop = cp.cuda.Event(), cp.cuda.Event()
        start.record()
        for _ in range(calls):
            call()
        stop.record()
        stop.synchronize()
        return float(cp.cuda.get_elapsed_time(start, stop)) / 1000 / calls


def same_layers(config: MistralConfig) -> dict[str, np.ndarray]:
    """Draw the weights of one layer, which is all of them on the host; the card has each apart."""
    one = dataclasses.replace(config, num_hidden_layers=1)
    drawn = random_tensors(MistralForCausalLM.parameter_shapes(one), one, seed=0)
    return {name: drawn[of_one_layer(name)] for name in MistralForCausalLM.parameter_shapes(config)}


def wall(call: Callable[[], Any], calls: int, warm: int = 1) -> float:
    """Return the median of the seconds that a call takes, Python included."""
    took = []
    for n in range(warm + calls):
        start = time.perf_counter()
        call()
        if n >= warm:
            took.append(time.perf_counter() - start)
    return median(took)


def as_json(bench: Bench) -> dict[str, Any]:
    """Return the object that --json prints."""
    return {
        "card": type(bench.backend).device(),
        "date": datetime.date.today().isoformat(),
        "versions": dict(installed()),
        "dtype": bench.backend.dtype,
        "layers": bench.sizes.config.num_hidden_layers,
        "bandwidth": bench.rates.bandwidth,
        "operations": bench.rates.operations,
        "rows": [dataclasses.asdict(row) for row in bench.rows],
        "notes": bench.notes,
    }


def installed() -> Iterator[tuple[str, str]]:
    """Yield the name and version of each distribution that matters and is installed."""
    for name in DISTRIBUTIONS:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def as_text(report: dict[str, Any]) -> str:
    """Return what is printed without --json."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    rates = (
        f"{report['bandwidth'] / 1e12:.2f} TB/s for a copy, "
        f"{report['operations'] / 1e12:.0f} TFLOP/s for a product in {report['dtype']}"
    )
    rows = [(f"ms, {report['layers']} layers", "took", "least", "times", "peer", "ratio", "")]
    for row in report["rows"]:
        took, least = row["seconds"], row["least"]
        name, peer = next(iter(row["peers"].items()), ("", None))
        rows.append(
            (
                row["what"],
                milliseconds(took),
                milliseconds(least) if least else "",
                f"{took / least:.2f}" if least else "",
                milliseconds(peer) if peer else "",
                f"{peer / took:.2f}" if peer else "",
                name,
            )
        )
    head = [f"{report['card']}, {report['date']}; {versions}", rates, ""]
    return "\n".join([*head, *table(rows, str.rjust), *report["notes"]]) + "\n"


def milliseconds(seconds: float) -> str:
    """Return four digits, without an exponent."""
    return np.format_float_positional(seconds * 1e3, precision=4, fractional=False, trim="-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 2 after an error, which is reported in one line."""
    try:
        settle_streams()
        return _run(arguments)
    except (ValueError, OSError, MemoryError) as error:
        say(f"{PROGRAM}: error: {one_line(error, 500)}")
        return 2


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog=f"python -m {PROGRAM}", description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "--layers", type=integer, default=32, metavar="N", help="of the model (default: 32)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float16", metavar="TYPE", help="float16 by default"
    )
    add_json(parser)
    try:
        options = parser.parse_args(arguments)
    except SystemExit:  # after --help
        return 0
    check_range("--layers", options.layers, 1, 10_000)
    CupyBackend.device()  # or say why there is none
    sizes = Sizes(MistralConfig(num_hidden_layers=options.layers))
    with Progress("measuring {}") as progress:
        report = as_json(measure(CupyBackend(options.dtype), sizes, progress))
    if options.json:
        print_json(report)
    else:
        write(as_text(report))
    return 0


def measure(backend: CupyBackend, sizes: Sizes, progress: Callable[[str], None]) -> Bench:
    """Measure all there is."""
    bench = Bench(backend, sizes, progress)
    bench.attention(Torch(sizes.heads, backend.dtype))
    bench.single_tokens()
    bench.model(Transformers(sizes.config, backend.dtype))
    return bench


if __name__ == "__main__":
    sys.exit(main())
