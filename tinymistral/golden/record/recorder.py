"""Recording: the golden outputs of any checkpoint, a suite whose weights stay where they are.

Expected numbers are the numpy backend's in float64, computed layer by layer. A recording that was
interrupted goes on after the last layer that it finished, and comes to the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.checkpoint import find_checkpoint, load_checkpoint
from tinymistral.config import MistralConfig
from tinymistral.golden.calls import inputs_of
from tinymistral.golden.models import describe
from tinymistral.golden.record.files import Parts, RecordedSuite, slug
from tinymistral.golden.record.layerwise import Tensors
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


def record(
    out: Path, checkpoint: str | Path, request: Request, hashed: bool, progress: Progress
) -> list[str]:
    """Add to the suite in `out`, or begin one; return the ids of the cases of the request.

    `hashed`: read all of the checkpoint's files for their sha256. Raises ValueError.
    """
    folder = find_checkpoint(checkpoint)
    config, tensors = load_checkpoint(folder)
    check(request, config)
    weights = sum(tensor.size for tensor in tensors.values())
    ways = request.ways if request.ways is not None else MANY if weights <= SMALL else FEW
    suite = RecordedSuite(out, HOW.format(ways=ways, dtype=request.dtype))
    name = slug(folder.resolve().name if Path(checkpoint).is_dir() else str(checkpoint))

    def tell(done: int, total: int) -> None:
        progress("bytes hashed", done, total)

    suite.add_model(
        {
            "id": name,
            "says": "a checkpoint that is no part of this suite",
            "config": config.to_dict() | {"architectures": ["MistralForCausalLM"]},
            "layout": "hf",
            "dtype": stored_dtype(tensors),
        },
        lambda last: describe(folder, tensors, tell if hashed and last else None),
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


def stored_dtype(tensors: Tensors) -> str:
    """Return the dtype that weights are stored in; the widest of several."""
    found = {tensor.dtype.name for tensor in tensors.values()}
    return next(dtype for dtype in ("float32", "float16", "bfloat16") if dtype in found)


Progress = Callable[[str, int, int], None]  # what is counted, how many are done, of how many


@dataclass(frozen=True)
class Request:
    """What is to be recorded of a checkpoint."""

    case: str  # the id
    says: str
    ids: tuple[int, ...]
    stages: Sequence[str] | None = None  # patterns, see `selecting.select`
    layers: Sequence[int] | None = None
    new: int = 0  # tokens to continue the text by, greedily
    dtype: str = "float64"  # in which the expected numbers are computed
    ways: int | None = None  # by which tolerances are measured; None: MANY or FEW, by its size


class Recorder:
    """Makes the cases of a request that a suite does not have yet."""

    def __init__(
        self,
        suite: RecordedSuite,
        model: str,
        config: MistralConfig,
        tensors: Tensors,
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
        about = self._about(self.request.case, "model", self.request.says, calls=1)
        T = self.row.shape[1]
        positions = np.arange(T, dtype=np.int64)[None]
        inputs = inputs_of(self.row, positions, [T], self.config.sliding_window)
        parts = Parts(self.suite.folder, about["id"])
        if not self.suite.has(about, inputs, {f"calls.0.{name}" for name in self.job.stages}):
            done = self._walk(self._begin(parts), self.job)
            near = tolerances(done.expected, done.errors)
            self.suite.add_case(
                about,
                inputs,
                {f"calls.0.{name}": done.expected[name] for name in self.job.stages},
                {f"calls.0.{name}": {"tolerance": near[name]} for name in self.job.stages},
            )
        parts.remove()  # also where a recording ended before it could
        return str(about["id"])

    def _continuation(self) -> str:
        """Tokens are drafted in float32, and must be those that the expected logits choose."""
        says = f"{self.request.says}; continued by the likeliest token each time"
        parameters = {"max_new_tokens": self.request.new}
        about = self._about(f"{self.request.case}-greedy", "generate", says, parameters=parameters)
        inputs = {"input_ids": self.row, "attention_mask": np.ones_like(self.row)}
        parts = Parts(self.suite.folder, about["id"])
        if not self.suite.has(about, inputs, {"sequences", "logprobs"}):
            tokens, done = self._draft(self._begin(parts)), None
            while done is None:
                job = replace(self.job, ids=(*self.job.ids, *tokens), stages=(), new=len(tokens))
                done = self._walk(parts, job)
                chosen = done.expected["scores"][0].argmax(axis=-1)
                if wrong := np.flatnonzero(chosen != tokens).tolist():
                    done = None
                    parts.restart()
                    parts.keep_tokens(chosen[: wrong[0] + 1].tolist())
                    tokens = self._draft(parts)
            logprobs = {"logprobs": done.expected["logprobs"]}
            near = tolerances(logprobs, done.errors)["logprobs"]
            self.suite.add_case(
                about,
                inputs,
                {**logprobs, "sequences": np.array([[*self.job.ids, *tokens]], dtype=np.int64)},
                {
                    "logprobs": {"tolerance": near},
                    "sequences": {"exact": True, "dtypes": safe_dtypes(done)},
                },
            )
        parts.remove()  # also where a recording ended before it could
        return str(about["id"])

    def _about(self, case: str, kind: str, says: str, **of_kind: Any) -> dict[str, Any]:
        entry = {"id": case, "kind": kind, "model": self.model, **of_kind}
        return {**entry, "says": says, "catches": []}

    def _begin(self, parts: Parts) -> Parts:
        weights = next(m for m in self.suite.fields["models"] if m["id"] == self.model)["weights"]
        parts.begin({**asdict(self.job), "new": self.request.new, "of": weights["fingerprint"]})
        return parts

    def _walk(self, parts: Parts, job: Job) -> Step:
        walk = Walk(job, self.config, self.tensors)
        steps = job.steps(self.config)
        for number in range(parts.resume(walk), steps):
            self.progress("layers", max(0, number - 1), self.config.num_hidden_layers)
            parts.keep(number, walk.step(number), walk)
        return parts.collect(steps)

    def _draft(self, parts: Parts) -> list[int]:
        """Continue the text, or go on with what was drafted, a token at a time."""
        tokens = parts.tokens()
        if left := self.request.new - len(tokens):
            backend = NumpyBackend("float32")
            model = MistralForCausalLM(self.config, backend=backend, tensors=self.tensors)
            text = [[*self.request.ids, *tokens]]
            for step in model.generate_stream(
                text, max_new_tokens=left, do_sample=False, eos_token_id=[]
            ):
                tokens.append(int(step.tokens[0]))
                parts.keep_tokens(tokens)
                self.progress("tokens", len(tokens), self.request.new)
        return tokens


def safe_dtypes(done: Step) -> list[str]:
    """Return the dtypes in which no two logits can change places by the errors that there were."""
    best = np.sort(done.expected["scores"], axis=-1)[..., -2:]
    gap = float((best[..., 1] - best[..., 0]).min())
    return [dtype for dtype, error in done.errors["scores"].items() if gap > 2 * error]
