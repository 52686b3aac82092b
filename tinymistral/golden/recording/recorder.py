"""Making the cases of a recording: the stages of a text, and its greedy continuation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tinymistral.config import MistralConfig
from tinymistral.golden.making.calls import inputs_of
from tinymistral.golden.recording.layerwise import Tensors
from tinymistral.golden.recording.parts import Parts
from tinymistral.golden.recording.recorded_suite import RecordedSuite
from tinymistral.golden.recording.selecting import select
from tinymistral.golden.recording.walking import Job, Step, Walk, tolerances
from tinymistral.heads import MistralForCausalLM
from tinymistral.numpy_backend import NumpyBackend

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
