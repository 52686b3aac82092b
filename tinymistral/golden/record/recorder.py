"""Recording golden outputs of any checkpoint: a suite that only refers to the weights.

Expected numbers are the numpy backend's in float64, computed layer by layer. An interrupted
recording continues after the last layer that it finished, and leads to the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.checkpoint import find_checkpoint, load_checkpoint
from tinymistral.config import MistralConfig
from tinymistral.files import make_folder, only_writer
from tinymistral.golden.calls import inputs_of
from tinymistral.golden.files import Arrays
from tinymistral.golden.models import describe
from tinymistral.golden.record.files import RecordedSuite, UnfinishedCase, slug
from tinymistral.golden.record.stages import select
from tinymistral.golden.record.steps import FEW, MANY, SMALL, Job, Step, Walk, tolerances
from tinymistral.heads import MistralForCausalLM
from tinymistral.numpy_backend import NumpyBackend

MOST_WAYS = 1000
HOW = (
    "Absolute, for each tensor and dtype: factor times the largest error that tinymistral's numpy "
    "backend makes on it in the dtype, weights rounded to it, in {ways} ways (dimensions of the "
    "weights in other orders, a text whole or in two pieces, rotary angles in float64 or float32, "
    "operations that round their result alone or each step); at least one unit roundoff of the "
    "largest expected magnitude. A dtype that does not hold the numbers has none. Expected "
    "numbers: the numpy backend's in {dtype}."
)


Progress = Callable[[str, int, int], None]  # what is counted, done, total


@dataclass(frozen=True)
class Request:
    """What to record of a checkpoint."""

    case: str  # the id
    says: str
    ids: tuple[int, ...]
    stages: Sequence[str] | None = None  # patterns, see `stages.select`
    layers: Sequence[int] | None = None
    new: int = 0  # tokens to continue the text by, greedily
    dtype: str = "float64"  # of the expected numbers
    ways: int | None = None  # variants in each dtype; None: MANY or FEW, by the model's size


def record(out: Path, checkpoint: str | Path, request: Request, progress: Progress) -> list[str]:
    """Add to the suite in `out`, or begin one; return the ids of the cases of the request.

    Raises ValueError, also if another process is recording into `out`.
    """
    folder = find_checkpoint(checkpoint)
    config, tensors = load_checkpoint(folder)
    check(request, config)
    weights = sum(tensor.size for tensor in tensors.values())
    ways = request.ways if request.ways is not None else MANY if weights <= SMALL else FEW
    name = slug(folder.resolve().name if Path(checkpoint).is_dir() else str(checkpoint))
    make_folder(out)
    with only_writer(out):
        suite = RecordedSuite(out, HOW.format(ways=ways, dtype=request.dtype))
        suite.add_model(
            {
                "id": name,
                "says": "a checkpoint that is no part of this suite",
                "config": config.to_dict() | {"architectures": ["MistralForCausalLM"]},
                "layout": "hf",
                "dtype": stored_dtype(tensors),
                "weights": describe(folder, tensors),
            }
        )
        return Recorder(suite, name, config, tensors, request, ways, progress).run()


def check(request: Request, config: MistralConfig) -> None:
    """Raise a ValueError for a request that the model cannot meet."""
    if not request.ids:
        raise ValueError("the text has no tokens; expected at least one")
    for token in request.ids:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"token {token} is not in the vocabulary of {config.vocab_size}")
    if request.ways is not None and not 1 <= request.ways <= MOST_WAYS:
        raise ValueError(f"--ways: expected 1 to {MOST_WAYS}, got {request.ways}")
    if request.new < 0:
        raise ValueError(f"--new: expected 0 or more tokens, got {request.new}")
    proper = slug(request.case)[:80].strip("-")
    if proper != request.case:
        raise ValueError(f"--case: expected a name like {proper!r}, got {request.case!r:.90}")


def stored_dtype(tensors: Arrays) -> str:
    """Return the dtype that weights are stored in; the widest of several."""
    found = {tensor.dtype.name for tensor in tensors.values()}
    return next(dtype for dtype in ("float32", "float16", "bfloat16") if dtype in found)


class Recorder:
    """Makes the cases of a request that a suite does not have yet."""

    def __init__(
        self,
        suite: RecordedSuite,
        model: str,
        config: MistralConfig,
        tensors: Arrays,
        request: Request,
        ways: int,
        progress: Progress,
    ):
        self.suite, self.model, self.request, self.progress = suite, model, request, progress
        self.config, self.tensors = config, tensors
        self.row = np.array([request.ids], dtype=np.int64)
        stages = select(config, len(request.ids), request.stages, request.layers)
        self.job = Job(request.ids, stages, request.dtype, ways)

    def run(self) -> list[str]:
        """Make them; return their ids."""
        made = [self._stages()]
        return [*made, self._continuation()] if self.request.new else made

    def _stages(self) -> str:
        positions = np.arange(self.row.shape[1], dtype=np.int64)[None]
        widths = [self.row.shape[1]]
        inputs = inputs_of(self.row, positions, widths, self.config.sliding_window)
        names = {f"calls.0.{name}": name for name in self.job.stages}

        def compute(unfinished: UnfinishedCase) -> tuple[Arrays, dict[str, Any]]:
            done = self._walk(unfinished, self.job)
            near = tolerances(done.expected, done.errors)
            return (
                {full: done.expected[name] for full, name in names.items()},
                {full: {"tolerance": near[name]} for full, name in names.items()},
            )

        entry = {"id": self.request.case, "kind": "model", "model": self.model, "calls": 1}
        return self._make(entry, self.request.says, inputs, set(names), compute)

    def _continuation(self) -> str:
        """Tokens are drafted in float32, and must be those that the expected logits choose."""
        inputs = {"input_ids": self.row, "attention_mask": np.ones_like(self.row)}

        def compute(unfinished: UnfinishedCase) -> tuple[Arrays, dict[str, Any]]:
            tokens, done = self._draft(unfinished), None
            while done is None:
                job = replace(self.job, ids=(*self.job.ids, *tokens), stages=(), new=len(tokens))
                done = self._walk(unfinished, job)
                chosen = done.expected["scores"][0].argmax(axis=-1)
                if wrong := np.flatnonzero(chosen != tokens).tolist():
                    done = None
                    unfinished.restart()
                    unfinished.keep_tokens(chosen[: wrong[0] + 1].tolist())
                    tokens = self._draft(unfinished)
            logprobs = {"logprobs": done.expected["logprobs"]}
            near = tolerances(logprobs, done.errors)["logprobs"]
            sequences = np.array([[*self.job.ids, *tokens]], dtype=np.int64)
            return (
                {**logprobs, "sequences": sequences},
                {
                    "logprobs": {"tolerance": near},
                    "sequences": {"exact": True, "dtypes": safe_dtypes(done)},
                },
            )

        entry = {
            "id": f"{self.request.case}-greedy",
            "kind": "generate",
            "model": self.model,
            "parameters": {"max_new_tokens": self.request.new},
        }
        says = f"{self.request.says}; continued by the likeliest token each time"
        return self._make(entry, says, inputs, {"sequences", "logprobs"}, compute)

    def _make(
        self,
        entry: dict[str, Any],
        says: str,
        inputs: Arrays,
        names: set[str],
        compute: Callable[[UnfinishedCase], tuple[Arrays, dict[str, Any]]],
    ) -> str:
        """Compute a case, unless it is there: its expected arrays and how they are compared."""
        entry = {**entry, "says": says, "catches": []}
        unfinished = UnfinishedCase(self.suite.folder, entry["id"])
        if not self.suite.has(entry, inputs, names):
            models = self.suite.fields["models"]
            weights = next(m for m in models if m["id"] == self.model)["weights"]
            job = {**asdict(self.job), "new": self.request.new, "of": weights["fingerprint"]}
            unfinished.begin(job)
            self.suite.add_case(entry, inputs, *compute(unfinished))
        unfinished.remove()  # also if an earlier run was interrupted just before this
        return str(entry["id"])

    def _walk(self, unfinished: UnfinishedCase, job: Job) -> Step:
        walk = Walk(job, self.config, self.tensors)
        steps = job.steps(self.config)
        for number in range(unfinished.resume(walk), steps):
            self.progress("layers", max(0, number - 1), self.config.num_hidden_layers)
            unfinished.keep(number, walk.step(number), walk)
        return unfinished.collect(steps)

    def _draft(self, unfinished: UnfinishedCase) -> list[int]:
        """Continue the text a token at a time, from what was drafted before."""
        tokens = unfinished.tokens()
        if left := self.request.new - len(tokens):
            backend = NumpyBackend("float32")
            model = MistralForCausalLM(self.config, backend=backend, tensors=self.tensors)
            text = [[*self.request.ids, *tokens]]
            for step in model.generate_stream(
                text, max_new_tokens=left, do_sample=False, eos_token_id=[]
            ):
                tokens.append(int(step.tokens[0]))
                unfinished.keep_tokens(tokens)
                self.progress("tokens", len(tokens), self.request.new)
        return tokens


def safe_dtypes(done: Step) -> list[str]:
    """Return the dtypes whose measured errors cannot change which token is the likeliest."""
    best = np.sort(done.expected["scores"], axis=-1)[..., -2:]
    gap = float((best[..., 1] - best[..., 0]).min())
    return [dtype for dtype, error in done.errors["scores"].items() if gap > 2 * error]
