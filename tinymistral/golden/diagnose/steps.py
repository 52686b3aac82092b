"""The steps of a computation, each with its input and its result as the candidate dumped them.

A step is judged by its own input: what it should give for that input is computed here, in float64.
So a step is right or wrong by itself, whatever went wrong before it. A stage that the dump does not
have is computed from those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from tinymistral.golden.calls import at_positions, calls_of
from tinymistral.golden.compare.tensors import errors_of
from tinymistral.golden.diagnose.evidence import Evidence
from tinymistral.golden.diagnose.predictions import Model, Predictions
from tinymistral.golden.rounding import UNIT
from tinymistral.mistakes.planting import faulty
from tinymistral.numpy_backend import NumpyBackend

Array = np.ndarray
NONE: Mapping[str, Array] = MappingProxyType({})
ROUNDINGS = 16  # as many roundoffs of the inputs are no mistake


@dataclass(frozen=True, eq=False)
class Step:
    """One step of one case: what went in, what came out, and what is accepted as right."""

    kind: str  # embedding, norm, linear, rope, weights, mix, silu, sum or cache
    stage: str  # such as q_rotated; of an operation by itself its result
    case: str
    call: int
    layer: int  # -1 outside the layers
    x: Mapping[str, Any]  # inputs and settings by name
    out: Array
    right: Array  # what should come out
    counts: Array  # which numbers are compared
    tolerance: float
    unit: float  # roundoff of the candidate's dtype
    others: Mapping[str, Array] = field(default_factory=dict)  # all stages so far, by name
    model: Model | None = None  # None of an operation by itself
    filled: tuple[str, ...] = ()  # inputs that the dump does not have
    positions: Array | None = None  # of the tokens (B, T)

    def errors(self, guess: Array | None) -> Array:
        """Return how far what came out is from a guess, where numbers are compared."""
        if guess is None or guess.shape != self.out.shape:
            return np.full(self.out.shape, np.inf)
        return np.where(self.counts, errors_of(self.out, guess), 0.0)

    def off(self, guess: Array | None) -> float:
        """Return the largest error of a guess."""
        return float(self.errors(guess).max(initial=0.0))

    @cached_property
    def limit(self) -> float:
        """The largest error of a right result; more than the suite's if the numbers are larger."""
        if self.kind == "mask":
            return self.tolerance
        noisy = compute(self.kind, _noisy(self.x, self.unit))
        moved = np.where(self.counts, errors_of(noisy, self.right), 0.0)
        moved[~np.isfinite(moved)] = 0.0
        return max(self.tolerance, ROUNDINGS * float(moved.max(initial=0.0)))

    @cached_property
    def wrong(self) -> bool:
        """Whether it is wrong."""
        error = self.off(self.right)
        return error > self.tolerance and error > self.limit


Plant = Callable[[Step], Array | None]
Touches = Callable[[str, str, int], bool]  # kind, stage, layer


def _noisy(x: Mapping[str, Any], unit: float) -> dict[str, Any]:
    """Return inputs that differ by a roundoff, up or down."""
    draw = np.random.Generator(np.random.PCG64(1))
    return {
        name: a * (1 + unit * draw.choice([-1.0, 1.0], a.shape))
        if isinstance(a, np.ndarray) and a.dtype.kind == "f"
        else a
        for name, a in x.items()
    }


# What each kind of step gives

RIGHT = faulty(NumpyBackend, True)("float64")


def compute(kind: str, x: Mapping[str, Any], b: Any = RIGHT) -> Array:
    """Return what a step should give, or with a backend that makes a mistake what it gives."""
    if kind == "embedding":
        found = b.embedding(x["table"], x["ids"])
    elif kind == "norm":
        found = b.rms_norm(x["x"], x["weight"], x["eps"])
    elif kind == "linear":
        found = b.linear(x["x"].reshape(*x["x"].shape[:2], -1), x["weight"]).reshape(x["shape"])
    elif kind == "rope":
        found = b.rope(x["x"], b.rope_table(x["positions"], x["theta"], x["x"].shape[-1]))
    elif kind == "mask":
        found = b.visible(x["q_positions"][:, :, None], x["k_positions"][:, None, :], x["window"])
        found = np.broadcast_to(found[:, None], shape_of_weights(x)).astype(np.float64)
    elif kind == "weights":
        found = b.masked_softmax(scores_of(x, b), mask_of(x, b))
    elif kind == "mix":
        w = x["weights"] if "weights" in x else compute("weights", x, b)
        found = b.mix(w, b.repeat(x["v"], w.shape[1]), (w != 0).any(axis=1))
    elif kind == "silu":
        found = b.silu_mul(x["gate"], x["up"])
    else:
        found = b.add(x["x"], x["y"]) if kind == "sum" else x["tokens"]  # of a cache
    return np.asarray(found)


def shape_of_weights(x: Mapping[str, Any]) -> tuple[int, ...]:
    """Return (B, H, T, S)."""
    return x["q"].shape[0], x["q"].shape[2], x["q"].shape[1], x["k"].shape[1]


def mask_of(x: Mapping[str, Any], b: Any = RIGHT) -> Array:
    """Return which keys each query sees, (B, H, T, S)."""
    return np.asarray(x["mask"]) if "mask" in x else compute("mask", x, b) > 0


def scores_of(x: Mapping[str, Any], b: Any = RIGHT) -> Array:
    """Return the scaled scores (B, H, T, S)."""
    H, d = x["q"].shape[2:]
    k = b.repeat(x["k"], H).transpose(0, 2, 3, 1)
    return np.asarray(x["q"].swapaxes(1, 2) @ k * b.scale(H, d))


# The steps of a case


def steps_of(each: Evidence, predictions: Predictions) -> Iterator[Step]:
    """Yield the steps whose results the candidate has, in the order of computation."""
    if each.case.kind in ("operation", "model") and not each.another_length:
        with np.errstate(all="ignore"):
            if each.case.kind == "model":
                yield from _Model(each, predictions).steps()
            else:
                yield from _of_operation(each, predictions)


def _of_operation(each: Evidence, predictions: Predictions) -> Iterator[Step]:
    case, operation = each.case, str(each.case.operation)
    inputs = predictions.arrays(case).inputs
    wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in inputs.items()}
    kinds = {"rms_norm": "norm", "silu_mul": "silu", "weights": "weights", "attention": "mix"}
    for name, out in each.output.items():
        x = {**wide, **(case.parameters or {}), "shape": out.shape}
        kind = kinds.get(name if name == "weights" else operation, operation)
        if kind == "mix" and "weights" in each.output:
            x["weights"] = each.output["weights"]
        stage = {"weights": "attention_weights", "mix": "attention_mix"}.get(kind, operation)
        limits = (each.counts[name], each.parts[name].tolerance, UNIT[each.dtype])
        yield Step(kind, stage, case.id, 0, -1, x, out, compute(kind, x), *limits)


class _Model:
    """The steps of a case of kind model."""

    def __init__(
        self,
        each: Evidence,
        predictions: Predictions,
        plant: Plant | None = None,
        touches: Touches = lambda kind, stage, layer: True,
    ) -> None:
        self.each, self.case, self.plant, self.touches = each, each.case, plant, touches
        self.clean, self.known = True, predictions.right.setdefault(each.case.id, {})
        self.results: dict[str, Array] = {}  # of a mistake that is planted
        self.caches = any(".cache." in name for name in each.output)
        self.model = predictions.model(str(each.case.model))
        self.config, self.tensors = self.model.config, self.model.tensors
        self.arrays = predictions.arrays(each.case)
        self.unit = UNIT[each.dtype]
        self.values: dict[str, Array] = {}  # all stages of a call, as dumped or else computed
        self.layer, self.call = -1, 0
        self.missing: tuple[str, ...] = ()  # stages since the last that is given

    def step(
        self,
        kind: str,
        stage: str,
        name: str,
        x: dict[str, Any],
        held: Mapping[str, Array] = NONE,
    ) -> Iterator[Step]:
        """Yield a step if its result is given; its value is what is given, or else computed.

        `held` replaces inputs by what the dump's cache held, if only with that it is right.
        """
        full = f"calls.{self.call}.{name}"
        if self.plant is not None:
            self._planted(kind, stage, full, x)
            return
        right = compute(kind, x)
        out = self.each.output.get(full)
        self.values[stage] = right if out is None else out
        if out is None or out.shape != right.shape:
            self.missing = (*self.missing, full)
            return
        if held:
            other = compute(kind, {**x, **held})
            near = [np.where(self.each.counts[full], errors_of(out, y), 0) for y in (right, other)]
            if 100 * near[1].max(initial=0) < near[0].max(initial=0):
                x, right = {**x, **held}, other
        part, expected = self.each.parts[full], self.arrays.expected[full]
        counts = self.each.counts[full]
        grown = _largest(right, counts) / max(_largest(expected, counts), 1e-30)
        limits = (counts, part.tolerance * max(1.0, grown), self.unit)
        where = (kind, stage, self.case.id, self.call, self.layer)
        at = None if kind == "cache" else self.positions
        values = dict(self.values)
        yield Step(*where, x, out, right, *limits, values, self.model, self.missing, at)
        self.missing = ()

    def _planted(self, kind: str, stage: str, full: str, x: dict[str, Any]) -> None:
        """Compute a step with a mistake; what comes before any is computed once for all."""
        assert self.plant is not None
        parts = ("mask", kind) if kind == "weights" else (kind,)
        touched = [part for part in parts if self.touches(part, stage, self.layer)]
        self.clean = self.clean and not touched
        found = self.known.get(full) if self.clean else None
        for part in touched:
            right = compute(part, x)
            args = (part, stage, self.case.id, self.call, self.layer, x, right, right)
            limits = (np.ones(right.shape, dtype=bool), 1.0, self.unit)
            found = self.plant(Step(*args, *limits, dict(self.values), self.model))
            if part == "mask" and found is not None:
                x["mask"], found = found > 0, None
        found = compute(kind, x) if found is None else found
        if self.clean:
            self.known[full] = found
        self.values[stage] = self.results[full] = found

    def steps(self) -> Iterator[Step]:
        """Yield them, call by call."""
        c, inputs = self.config, self.arrays.inputs
        self.past: dict[tuple[int, str], list[Array]] = {}
        every: list[Array] = []  # positions
        for call in range(self.case.calls):
            self.call, self.layer, self.values = call, -1, {}
            given = dict(calls_of(inputs)[call])
            self.positions = given["positions"]
            every.append(given["positions"])
            given["all"] = np.concatenate(every, axis=1)
            columns = np.broadcast_to(np.arange(given["all"].shape[1]), given["all"].shape)
            for where in ("key_positions", "cache_positions"):
                found = at_positions(columns, given["all"], given[where], -1)
                given[f"columns of {where}"] = found
            name = "model.embed_tokens.weight"
            x = {"table": self.tensors[name], "ids": given["input_ids"], "name": name}
            yield from self.step("embedding", "embedding", "embedding", x)
            self.values["hidden"] = self.values["embedding"]
            for layer in range(c.num_hidden_layers):
                self.layer = layer
                yield from self._attention(given)
                yield from self._sum("attention_residual", "hidden", "attention_output")
                yield from self._feed_forward()
                yield from self._sum("output", "attention_residual", "mlp_output")
                if self.plant is None or self.caches:
                    yield from self._caches(given)
                self.values["hidden"] = self.values["output"]
            self.layer = -1
            yield from self._norm("norm", "hidden", "model.norm")
            head = "lm_head" if "lm_head.weight" in self.tensors else "model.embed_tokens"
            yield from self._linear("logits", "norm", head)

    def _attention(self, given: Mapping[str, Array]) -> Iterator[Step]:
        c, values, positions = self.config, self.values, given["positions"]
        place = {"call": self.call, "all": given["all"], "window": c.sliding_window}
        place |= {"columns": given["all"].shape[1] - positions.shape[1], "theta": c.rope_theta}
        yield from self._norm("input_layernorm", "hidden")
        for name in "qkv":
            yield from self._linear(name, "input_layernorm", f"self_attn.{name}_proj", c.head_dim)
        for name in "qk":
            stage = f"{name}_rotated"
            x = {"x": values[name], "positions": positions, **place}
            yield from self.step("rope", stage, self._name(stage), x)
        for name in ("k", "v", "k_rotated"):
            self.past.setdefault((self.layer, name), []).append(values[name])
        k, v, plain = (self._kept(n, given, "key_positions") for n in ("k_rotated", "v", "k"))
        x = {"q": values["q_rotated"], "k": k, "v": v, "plain_q": values["q"], "plain_k": plain}
        x |= {"q_positions": positions, "k_positions": given["key_positions"]}
        x |= {"width": c.hidden_size, **place}
        held = {n: h for n in "kv" if (h := self._held(n, given)) is not None}
        weights = self._name("attention_weights")
        yield from self.step("weights", "attention_weights", weights, x, held)
        if f"calls.{self.call}.{weights}" in self.each.output or self.plant is not None:
            x = x | {"weights": values["attention_weights"]}
        yield from self.step("mix", "attention_mix", self._name("attention_mix"), x, held)
        yield from self._linear("attention_output", "attention_mix", "self_attn.o_proj")

    def _feed_forward(self) -> Iterator[Step]:
        yield from self._norm("post_attention_layernorm", "attention_residual")
        for name in ("gate", "up"):
            yield from self._linear(name, "post_attention_layernorm", f"mlp.{name}_proj")
        x = {name: self.values[name] for name in ("gate", "up")}
        yield from self.step("silu", "silu_mul", self._name("silu_mul"), x)
        yield from self._linear("mlp_output", "silu_mul", "mlp.down_proj")

    def _caches(self, given: Mapping[str, Array]) -> Iterator[Step]:
        x: dict[str, Any] = {"positions": given["cache_positions"], "theta": self.config.rope_theta}
        x["past_at"] = given["all"]
        for name, stage in (("k", "k_rotated"), ("v", "v")):
            kept, plain = (self._kept(n, given, "cache_positions") for n in (stage, name))
            past = np.concatenate(self.past[self.layer, stage], axis=1)
            slots = {"tokens": kept, "plain": plain, "past": past, "name": name, **x}
            yield from self.step("cache", f"cache.{name}", f"cache.{self._name(name)}", slots)

    def _kept(self, name: str, given: Mapping[str, Array], where: str) -> Array:
        """Return what was computed of all tokens so far at some positions, else 0."""
        every = np.concatenate(self.past[self.layer, name], axis=1)
        columns = given[f"columns of {where}"]
        found = np.take_along_axis(every, columns[..., None, None], axis=1)
        return np.where(columns[..., None, None] < 0, 0.0, found)

    def _held(self, name: str, given: Mapping[str, Array]) -> Array | None:
        """Return keys or values as the dump's cache held them before a call, if it has that."""
        full = f"calls.{self.call - 1}.cache.{self._name(name)}"
        held = self.each.output.get(full)
        if held is None or self.plant is not None:
            return None
        kept = self._kept({"k": "k_rotated"}.get(name, name), given, "key_positions")
        before = self.arrays.inputs[f"calls.{self.call - 1}.cache_positions"]
        found = at_positions(held, before, given["key_positions"], np.nan)
        return np.where(np.isnan(found), kept, found)

    def _name(self, stage: str) -> str:
        return f"layers.{self.layer}.{stage}" if self.layer >= 0 else stage

    def _weight(self, name: str) -> dict[str, Any]:
        """Return a weight of this layer, or of the model, and its name."""
        of_layer = f"model.layers.{self.layer}.{name}.weight"
        name = of_layer if self.layer >= 0 else f"{name}.weight"
        return {"weight": self.tensors[name], "name": name}

    def _norm(self, stage: str, source: str, weight: str = "") -> Iterator[Step]:
        x = {"x": self.values[source], "eps": self.config.rms_norm_eps}
        x |= self._weight(weight or stage)
        yield from self.step("norm", stage, self._name(stage), x)

    def _linear(self, stage: str, source: str, weight: str, d: int = 0) -> Iterator[Step]:
        """Yield a projection; if `d` is given its result is cut into heads."""
        x, w = self.values[source], self._weight(weight)
        rows = len(w["weight"])
        shape = (*x.shape[:2], *((rows // d, d) if d else (rows,)))
        inputs = {"x": x, **w, "shape": shape, "hidden": self.values["hidden"]}
        yield from self.step("linear", stage, self._name(stage), inputs)

    def _sum(self, stage: str, x: str, y: str) -> Iterator[Step]:
        normed = "input_layernorm" if x == "hidden" else "post_attention_layernorm"
        inputs = {"x": self.values[x], "y": self.values[y], "normed": self.values[normed]}
        yield from self.step("sum", stage, self._name(stage), inputs)


def results_with(
    each: Evidence,
    predictions: Predictions,
    plant: Plant,
    touches: Touches = lambda kind, stage, layer: True,
) -> dict[str, Array]:
    """Return the numbers of a model's case where `plant` gives the results of some steps.

    It is asked for the steps that it touches, in the order of computation, and gives None of those
    that are right; attention weights are two, the mask first.
    """
    model = _Model(each, predictions, plant, touches)
    list(model.steps())
    return model.results


def _largest(x: Array, counts: Array) -> float:
    wide = np.abs(np.where(counts, x, 0.0))
    return float(np.where(np.isfinite(wide), wide, 0.0).max(initial=0.0))


def all_steps(evidence: Iterable[Any], predictions: Predictions) -> list[Step]:
    """Return the steps of all evidence of tensors."""
    return [
        step
        for each in evidence
        if isinstance(each, Evidence)
        for step in steps_of(each, predictions)
    ]
