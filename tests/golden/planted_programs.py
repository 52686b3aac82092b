"""A second implementation in plain loops, and mistakes to plant in it, for `golden diagnose`.

The program shares no code with tinymistral. Run as a script, this prints how many mistakes are
named rightly.
Each mistake is a dictionary of replaced functions, with the stages that are then wrong, and words
of which one has to be in the sentence that describes it.

    python tests/golden/planted_programs.py [NAME ...] [--logits]
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace as Here
from typing import Any

import numpy as np

from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.diagnose.evidence import Evidence
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.diagnose.report import sentence
from tinymistral.golden.diagnose.search import diagnose
from tinymistral.golden.models import read_model
from tinymistral.golden.suite import read_suite
from tinymistral.mistakes import FORWARD

Array = np.ndarray
F32 = np.float32


def to_bits(x: Any, kind: str = "bfloat16") -> Array:
    """Round to the nearest number of 16 bits."""
    x = np.asarray(x, dtype=F32)
    if kind == "float16":
        return x.astype(np.float16).astype(F32)
    bits = x.view(np.uint32)
    up = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    return ((bits + up) & np.uint32(0xFFFF0000)).view(F32)


# The right functions. `c` says where: layer, call, stage, config, weights, heads and so on.


def embed(token: int, table: Array, c: Here) -> Array:
    return table[token]


def norm(x: Array, w: Array, eps: float, c: Here) -> Array:
    return x / np.sqrt((x * x).mean() + F32(eps)) * w


def linear(x: Array, w: Array, c: Here) -> Array:
    return w @ x


def angle(p: int, m: int, d: int, theta: float, c: Here) -> float:
    return p * theta ** (-2 * m / d)


def rotate(x: Array, p: int, theta: float, c: Here) -> Array:
    d, out = len(x), x.copy()
    for m in range(d // 2):
        a = c.use["angle"](p, m, d, theta, c)
        one, two = x[m], x[m + d // 2]
        out[m] = one * math.cos(a) - two * math.sin(a)
        out[m + d // 2] = two * math.cos(a) + one * math.sin(a)
    return out


def sees(i: int, j: int, window: int | None, c: Here) -> bool:
    return j <= i and (window is None or i - j < window)


def score(q: Array, k: Array, i: int, j: int, c: Here) -> float:
    return float(q @ k) / math.sqrt(len(q))


def softmax(s: Array, c: Here) -> Array:
    e = np.exp(s - s.max())
    return e / e.sum()


def kv_head(h: int, heads: int, kv: int, c: Here) -> int:
    return h // (heads // kv)


def value(v: Array, p: int, c: Here) -> Array:
    return v


def joined(mix: Array, c: Here) -> Array:
    """(H, d) -> (H·d,)."""
    return mix.reshape(-1)


def activation(g: Array, u: Array, c: Here) -> Array:
    return g / (1 + np.exp(-g)) * u


def add(x: Array, y: Array, normed: Array, c: Here) -> Array:
    return x + y


def scores_of(x: Array, table: Array, hidden: Array, c: Here) -> Array:
    return table @ x


RIGHT: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (embed, norm, linear, angle, rotate, sees, score, softmax, kv_head, value)
}
RIGHT |= {f.__name__: f for f in (joined, activation, add, scores_of)}
RIGHT["v_head"] = lambda h, heads, kv, c: c.use["kv_head"](h, heads, kv, c)
RIGHT["slots"] = lambda window: None  # keys that a cache holds after a token is written
RIGHT["position"] = lambda p, t, c: p  # from which the angles are made
RIGHT["cached"] = lambda k, p, c: k  # what is written to the cache


def program(config: Any, w: dict[str, Array], calls: list[dict[str, Array]], use: Any) -> Any:
    """Compute all stages of all calls -> arrays by the names of a suite."""
    use = {**RIGHT, **use}
    w = {n: np.asarray(x, dtype=F32) for n, x in w.items()}
    H, K, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    window, theta, eps = config.sliding_window, config.rope_theta, config.rms_norm_eps
    B = len(calls[0]["input_ids"])
    past: dict[tuple[int, int], dict[int, tuple[Array, Array]]] = {
        (n, b): {} for n in range(config.num_hidden_layers) for b in range(B)
    }
    out: dict[str, Array] = {}
    for call, given in enumerate(calls):
        ids, positions, keys = given["input_ids"], given["positions"], given["key_positions"]
        T = ids.shape[1]
        c = Here(call=call, T=T, config=config, w=w, use=use, layer=-1, stage="", window=window)

        def show(name: str, b: int, t: int, x: Array, tokens: int = T, call: int = call) -> Array:
            x = np.asarray(x, dtype=F32)
            name = f"calls.{call}.{name}"
            if name not in out:
                out[name] = np.zeros((B, tokens, *x.shape), dtype=F32)
            out[name][b, t] = x
            return x

        def map_linear(x: Array, name: str, stage: str, c: Here = c, use: Any = use) -> Array:
            c.stage, c.name = stage, name
            return use["linear"](x, w[name], c).astype(F32)

        def normed(x: Array, name: str, stage: str, c: Here = c, use: Any = use) -> Array:
            c.stage, c.name = stage, name
            return use["norm"](x, w[name], eps, c).astype(F32)

        rows = [[t for t in range(T) if positions[b, t] >= 0] for b in range(B)]
        x = np.zeros((B, T, config.hidden_size), dtype=F32)
        for b in range(B):
            for t in rows[b]:
                x[b, t] = show(
                    "embedding", b, t, use["embed"](ids[b, t], w["model.embed_tokens.weight"], c)
                )
        for n in range(config.num_hidden_layers):
            c.layer, p = n, f"model.layers.{n}"
            S = keys.shape[1]
            weights = np.zeros((B, H, T, S), dtype=F32)
            for b in range(B):
                store, qs, normeds, unseen = past[n, b], {}, {}, {}
                c.row = b
                for t in rows[b]:
                    at = int(positions[b, t])
                    c.t, c.hidden = t, x[b, t]
                    h = normed(x[b, t], f"{p}.input_layernorm.weight", "input_layernorm")
                    normeds[t] = show(f"layers.{n}.input_layernorm", b, t, h)
                    q, k, v = (
                        map_linear(h, f"{p}.self_attn.{s}_proj.weight", s).reshape(-1, d)
                        for s in "qkv"
                    )
                    for s, array in zip("qkv", (q, k, v), strict=True):
                        show(f"layers.{n}.{s}", b, t, array)
                    turned = use["position"](at, t, c)
                    c.stage = "q"
                    for c.head in range(H):
                        q[c.head] = use["rotate"](q[c.head], turned, theta, c)
                    c.stage = "k"
                    k = np.stack(
                        [use["rotate"](k[c.head], turned, theta, c) for c.head in range(K)]
                    )
                    show(f"layers.{n}.q_rotated", b, t, q)
                    show(f"layers.{n}.k_rotated", b, t, k)
                    store[at] = (use["cached"](k, at, c), use["value"](v, turned, c))
                    qs[t] = q
                    c.chunk_first = int(positions[b, rows[b][0]])
                    size = use["slots"](window) if window is not None else None
                    for old in list(store)[: -size if size else 0]:
                        if old < at - size + 1:
                            unseen[old] = store.pop(old)
                c.store, c.last = store, max(store, default=-1)
                for t in rows[b]:
                    i = int(positions[b, t])
                    mix = np.zeros((H, d), dtype=F32)
                    for h in range(H):
                        c.head, c.i = h, i
                        seen = [j for j in store if use["sees"](i, j, window, c)]
                        if not seen:
                            continue
                        kh, vh = use["kv_head"](h, H, K, c), use["v_head"](h, H, K, c)
                        s = [use["score"](qs[t][h], store[j][0][kh], i, j, c) for j in seen]
                        probabilities = use["softmax"](np.array(s, dtype=np.float64), c)
                        for j, e in zip(seen, probabilities, strict=True):
                            mix[h] += F32(e) * store[j][1][vh]
                            for column in np.flatnonzero(keys[b] == j):
                                weights[b, h, t, column] = e
                    show(f"layers.{n}.attention_mix", b, t, mix)
                    c.mixes = mix
                    o = map_linear(
                        use["joined"](mix, c), f"{p}.self_attn.o_proj.weight", "attention_output"
                    )
                    show(f"layers.{n}.attention_output", b, t, o)
                    c.stage = "attention_residual"
                    mid = use["add"](x[b, t], o, normeds[t], c)
                    mid = show(f"layers.{n}.attention_residual", b, t, mid)
                    stage = "post_attention_layernorm"
                    h2 = show(
                        f"layers.{n}.{stage}", b, t, normed(mid, f"{p}.{stage}.weight", stage)
                    )
                    g = map_linear(h2, f"{p}.mlp.gate_proj.weight", "gate")
                    u = map_linear(h2, f"{p}.mlp.up_proj.weight", "up")
                    a = use["activation"](g, u, c)
                    down = map_linear(a.astype(F32), f"{p}.mlp.down_proj.weight", "mlp_output")
                    for s, array in (("gate", g), ("up", u), ("silu_mul", a), ("mlp_output", down)):
                        show(f"layers.{n}.{s}", b, t, array)
                    c.stage = "output"
                    x[b, t] = show(f"layers.{n}.output", b, t, use["add"](mid, down, h2, c))
                for slot, j in enumerate(given["cache_positions"][b]):
                    kv = store.get(int(j), (np.zeros((K, d)), np.zeros((K, d))))
                    kv = kv if j >= 0 else (np.zeros((K, d)), np.zeros((K, d)))
                    columns = given["cache_positions"].shape[1]
                    show(f"cache.layers.{n}.k", b, slot, kv[0], columns)
                    show(f"cache.layers.{n}.v", b, slot, kv[1], columns)
            out[f"calls.{call}.layers.{n}.attention_weights"] = weights
        for b in range(B):
            for t in rows[b]:
                c.t = t
                h = show("norm", b, t, normed(x[b, t], "model.norm.weight", "norm"))
                head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
                c.stage = "logits"
                show("logits", b, t, use["scores_of"](h, head, x[b, t], c))
    return out


# Mistakes: name -> functions, the stages that are wrong, and words for what is wrong.

Planted = tuple[dict[str, Any], str, str]


def rms(x: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean() + F32(eps))


def with_angle(f: Callable[..., float]) -> dict[str, Any]:
    return {"angle": f}


def pairs_rotated(x: Array, p: int, theta: float, c: Here) -> Array:
    d, out = len(x), x.copy()
    for m in range(d // 2):
        a = c.use["angle"](p, m, d, theta, c)
        out[2 * m] = x[2 * m] * math.cos(a) - x[2 * m + 1] * math.sin(a)
        out[2 * m + 1] = x[2 * m + 1] * math.cos(a) + x[2 * m] * math.sin(a)
    return out


def only(stage: str, wrong: Callable[..., Any], right: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is wrong in one stage."""

    def either(*arguments: Any) -> Any:
        return (wrong if arguments[-1].stage == stage else right)(*arguments)

    return either


def with_layer(layer: int, wrong: Callable[..., Any], right: Callable[..., Any]) -> Any:
    return lambda *a: (wrong if a[-1].layer % 2 == layer else right)(*a)


def freq(p: int, m: int, d: int, theta: float) -> float:
    return float(p * theta ** (-2 * m / d))


def scaled_scores(f: Callable[[int, Here], float]) -> dict[str, Any]:
    return {"score": lambda q, k, i, j, c: float(q @ k) * f(len(q), c)}


def norm_only(stage: str, f: Callable[..., Array]) -> dict[str, Any]:
    return {"norm": only(stage, f, norm)}


def other_weight(stage: str, old: str, new: str) -> dict[str, Any]:
    return {"linear": only(stage, lambda x, w, c: c.w[c.name.replace(old, new)] @ x, linear)}


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.array([math.erf(float(e) / math.sqrt(2)) for e in x]))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sig(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def sink(s: Array, c: Here, relative: bool) -> Array:
    e = np.exp(s - s.max()) if relative else np.exp(s)
    return e / (1 + e.sum())


def fused_per_group(x: Array, w: Array, c: Here) -> Array:
    """q, k and v from one matrix of all q, k, v rows, taken apart as groups of (q..., k, v)."""
    if c.stage not in "qkv":
        return w @ x
    p = f"model.layers.{c.layer}.self_attn."
    whole = np.concatenate([c.w[f"{p}{s}_proj.weight"] for s in "qkv"]) @ x
    config = c.config
    d, K = config.head_dim, config.num_key_value_heads
    G = config.num_attention_heads // K
    groups = whole.reshape(K, G + 2, d)
    return {"q": groups[:, :G], "k": groups[:, G], "v": groups[:, G + 1]}[c.stage].reshape(-1)


def reversed_rows(x: Array, w: Array, c: Here) -> Array:
    return (w @ x).reshape(-1, c.config.head_dim)[::-1].reshape(-1)


def int8(w: Array) -> Array:
    scale = np.abs(w).max(axis=1, keepdims=True) / 127
    return np.round(w / scale) * scale


def shifted_ids(token: int, table: Array, c: Here) -> Array:
    return table[(token + 1) % len(table)]


ROPE, ATT, QKV = "q_rotated k_rotated", "attention_weights", "q k v"
NORMS = "input_layernorm post_attention_layernorm norm"
ADDS = "attention_residual output"
PLANTED: dict[str, Planted] = {
    # masks and windows
    "window-ignored": ({"sees": lambda i, j, w, c: j <= i}, ATT, r"window is ignored|no-window\b"),
    "window-halved": (
        {"sees": lambda i, j, w, c: sees(i, j, w and max(1, w // 2), c)},
        ATT,
        "sees 1/2 W keys",
    ),
    "window-plus-1": (
        {"sees": lambda i, j, w, c: sees(i, j, w and w + 1, c)},
        ATT,
        r"W \+ 1|inclusive-window",
    ),
    "window-3": ({"sees": lambda i, j, w, c: sees(i, j, w and 3, c)}, ATT, "sees 3 keys"),
    "window-in-even-layers": (
        {"sees": lambda i, j, w, c: sees(i, j, w if c.layer % 2 == 0 else None, c)},
        ATT,
        "layers? 1.*window is ignored",
    ),
    "window-in-odd-layers": (
        {"sees": lambda i, j, w, c: sees(i, j, w if c.layer % 2 else None, c)},
        ATT,
        "layers? 0.*window is ignored",
    ),
    "window-symmetric": (
        {"sees": lambda i, j, w, c: (w is None and j <= i) or (w is not None and abs(i - j) < w)},
        ATT,
        r"\|i - j\| < W",
    ),
    "not-causal": (
        {"sees": lambda i, j, w, c: w is None or i - j < w},
        ATT,
        "within the window: there is no causal mask|future-seen",
    ),
    "next-seen": (
        {"sees": lambda i, j, w, c: sees(i, j - 1, w and w + 1, c)},
        ATT,
        r"j <= i \+ 1|next-token-seen",
    ),
    "not-itself": (
        {"sees": lambda i, j, w, c: sees(i, j, w, c) and i != j},
        ATT,
        "own key is not visible|blind-to-itself",
    ),
    "one-token-sees-all": (
        {"sees": lambda i, j, w, c: sees(i, j, None if c.T == 1 else w, c)},
        ATT,
        "a single token sees all|window-forgotten-when-decoding",
    ),
    "first-kept-as-sink": (
        {"sees": lambda i, j, w, c: sees(i, j, w, c) or j == 0},
        ATT,
        "the first position of the text stays",
    ),
    "blocks-of-w": (
        {"sees": lambda i, j, w, c: j <= i and (w is None or i // w == j // w)},
        ATT,
        "own block of W keys",
    ),
    "ring-w-minus-2": (
        {"slots": lambda w: max(1, w - 2)},
        f"{ATT} cache.k cache.v",
        "W - 2 slots",
    ),
    "ring-w-chunk-first": (
        {"slots": lambda w: w},
        f"{ATT} cache.k cache.v",
        "window of its last one|window-of-the-piece|evict-before-attend",
    ),
    "this-call-alone": (
        {"sees": lambda i, j, w, c: sees(i, j, w, c) and j >= c.chunk_first},
        ATT,
        "only keys of this call",
    ),
    "prompt-not-causal": (
        {"sees": lambda i, j, w, c: sees(i, j, w, c) or c.call == 0},
        ATT,
        "in the first call keys after the query",
    ),
    "window-3/4": (
        {"sees": lambda i, j, w, c: sees(i, j, w and max(1, w * 3 // 4), c)},
        ATT,
        "sees 3/4 W keys",
    ),
    "window-plus-2": (
        {"sees": lambda i, j, w, c: sees(i, j, w and w + 2, c)},
        ATT,
        r"sees W \+ 2 keys",
    ),
    "every-second-key": (
        {"sees": lambda i, j, w, c: sees(i, j, w, c) and (i - j) % 2 == 0},
        ATT,
        "keys at the distances 0, 2, 4",
    ),
    "keys-2-and-3-hidden": (
        {"sees": lambda i, j, w, c: sees(i, j, w, c) and j not in (2, 3)},
        ATT,
        "positions 2 to 3 are seen by no query",
    ),
    "first-key-hidden": (
        {"sees": lambda i, j, w, c: sees(i, j, w, c) and j != 0},
        ATT,
        "first position of the text is not visible",
    ),
    "two-heads-without-window": (
        {"sees": lambda i, j, w, c: sees(i, j, None if c.head < 2 else w, c)},
        ATT,
        "in heads 0, 1 the window is ignored",
    ),
    # rope
    "theta-500000": (with_angle(lambda p, m, d, th, c: freq(p, m, d, 5e5)), ROPE, "theta 500,000"),
    "theta-1e6": (
        with_angle(lambda p, m, d, th, c: freq(p, m, d, 1e6)),
        ROPE,
        "theta 1,000,000|theta-of-v0.2",
    ),
    "rope-none": ({"rotate": lambda x, p, th, c: x}, ROPE, "it is not rotated|nothing-turned"),
    "rope-q-alone": (
        {"rotate": lambda x, p, th, c: rotate(x, p, th, c) if c.stage == "q" else x},
        "k_rotated",
        "not rotated|keys-not-turned",
    ),
    "rope-k-alone": (
        {"rotate": lambda x, p, th, c: rotate(x, p, th, c) if c.stage == "k" else x},
        "q_rotated",
        "not rotated",
    ),
    "rope-twice": (
        with_angle(lambda p, m, d, th, c: 2 * freq(p, m, d, th)),
        ROPE,
        "by 2 times its angle|multiplied by 2$",
    ),
    "rope-backwards": (
        with_angle(lambda p, m, d, th, c: -freq(p, m, d, th)),
        ROPE,
        "the other way|rope-backwards",
    ),
    "rope-pairs": ({"rotate": pairs_rotated}, ROPE, r"neighbours \(2m|rope-interleaved"),
    "rope-pairs-back": (
        {"rotate": lambda x, p, th, c: pairs_rotated(x, -p, th, c)},
        ROPE,
        r"neighbours \(2m.*the other way",
    ),
    "rope-half-width": (
        with_angle(lambda p, m, d, th, c: freq(p, m, d, th) if m < d // 4 else 0.0),
        ROPE,
        "first part is rotated: half",
    ),
    "rope-on-half": (
        {
            "rotate": lambda x, p, th, c: np.concatenate(
                [rotate(x[: len(x) // 4 * 2], p, th, c), x[len(x) // 4 * 2 :]]
            )
        },
        ROPE,
        "with frequencies of its own: half",
    ),
    "rope-m-over-d": (
        with_angle(lambda p, m, d, th, c: p * th ** (-m / d)),
        ROPE,
        "exponent is -m/d|rope-exponent-halved",
    ),
    "rope-offset-1": ({"position": lambda p, t, c: p + 1}, ROPE, "1 larger"),
    "rope-restarts": (
        {"position": lambda p, t, c: t},
        ROPE,
        "begin at 0 in each call|rope-begins-anew",
    ),
    "rope-by-slot": (
        {"position": lambda p, t, c: p if c.window is None else p % c.window},
        ROPE,
        "modulo the window",
    ),
    "rope-linear-4": ({"position": lambda p, t, c: p / 4}, ROPE, r"(times|by) 0\.25\b"),
    "rope-stretched": (
        {"rotate": lambda x, p, th, c: rotate(x, p, th, c) * F32(1.1)},
        ROPE,
        r"stretched by 1\.1\b|rope-stretched",
    ),
    "rope-bfloat16-angles": (
        with_angle(lambda p, m, d, th, c: float(to_bits(freq(p, m, d, th)))),
        ROPE,
        "angles are in bfloat16",
    ),
    "rope-bfloat16-frequencies": (
        with_angle(lambda p, m, d, th, c: p * float(to_bits(freq(1, m, d, th)))),
        ROPE,
        "frequencies are in bfloat16",
    ),
    "rope-odd-layers-not": (
        {"rotate": lambda x, p, th, c: x if c.layer % 2 else rotate(x, p, th, c)},
        ROPE,
        "layers? 1.*not rotated",
    ),
    "rope-head-0-alone": (
        {"rotate": lambda x, p, th, c: x if c.head else rotate(x, p, th, c)},
        ROPE,
        "heads 1.* not rotated",
    ),
    "rope-on-v": (
        {"value": lambda v, p, c: np.stack([rotate(h, p, c.config.rope_theta, c) for h in v])},
        "attention_mix cache.v",
        "values are rotated like keys|values-turned",
    ),
    "rope-decoding-behind": (
        {"position": lambda p, t, c: p - 1 if c.call and p else p},
        ROPE,
        "1 smaller|decoding-one-behind",
    ),
    "rope-offset-7": ({"position": lambda p, t, c: p + 7}, ROPE, "7 larger"),
    "rope-linear-3/8": ({"position": lambda p, t, c: p * 0.375}, ROPE, r"(times|by) 0\.375\b"),
    "rope-sign": (
        {
            "rotate": lambda x, p, th, c: np.concatenate(
                [rotate(x, -p, th, c)[: len(x) // 2], rotate(x, p, th, c)[len(x) // 2 :]]
            )
        },
        ROPE,
        r"become \+ first · cos \+ second · sin and \+ second · cos \+ first · sin",
    ),
    "rope-frequencies-reversed": (
        with_angle(lambda p, m, d, th, c: freq(p, d // 2 - 1 - m, d, th)),
        ROPE,
        "frequencies are others: pairs are rotated by ",
    ),
    "rope-heads-apart": (
        {"rotate": lambda x, p, th, c: rotate(x, p + c.head, th, c)},
        ROPE,
        "those of heads 0, 1, ... are 0, 1",
    ),
    # scores and weights
    "scale-1/d": (scaled_scores(lambda d, c: 1 / d), ATT, "scale is 1/d,|scores-scaled-twice"),
    "scale-half": (
        scaled_scores(lambda d, c: (d / 2) ** -0.5),
        ATT,
        r"1/sqrt\(d/2\)|scale is 1\.414 times",
    ),
    "scale-hidden": (scaled_scores(lambda d, c: c.config.hidden_size**-0.5), ATT, r"1/sqrt\(D\)"),
    "scale-by-layer": (
        scaled_scores(lambda d, c: d**-0.5 / (c.layer + 1)),
        ATT,
        r"layers? 1.*scale is 0\.5 times",
    ),
    "softmax-plus-1": (
        {"softmax": lambda s, c: sink(s, c, False)},
        ATT,
        r"1 is added to the sum.*relative to e\^0",
    ),
    "softmax-plus-1-after-max": (
        {"softmax": lambda s, c: sink(s, c, True)},
        ATT,
        "1 is added to the sum.*after the largest",
    ),
    "tanh-cap-2": (
        {"softmax": lambda s, c: softmax(2 * np.tanh(s / 2), c)},
        ATT,
        "capped softly at 2:",
    ),
    "alibi": (
        {
            "score": lambda q, k, i, j, c: (
                score(q, k, i, j, c)
                - (i - j) * 2.0 ** (-8 * (c.head + 1) / c.config.num_attention_heads)
            )
        },
        ATT,
        "as ALiBi does",
    ),
    "weights-not-normalized": (
        {"softmax": lambda s, c: np.exp(s - s.max())},
        ATT,
        "not divided by their sum|softmax-not-divided",
    ),
    "sigmoid-weights": (
        {"softmax": lambda s, c: 1 / (1 + np.exp(-s))},
        ATT,
        "sigmoids of the scores",
    ),
    "scores-bfloat16": (
        {"softmax": lambda s, c: softmax(to_bits(s).astype(np.float64), c)},
        ATT,
        "scores are rounded to bfloat16",
    ),
    "top-3-keys": (
        {
            "softmax": lambda s, c: (lambda e: e / e.sum())(
                np.where(s >= np.sort(s)[-min(3, len(s))], np.exp(s - s.max()), 0)
            )
        },
        ATT,
        "the 3 largest scores",
    ),
    "sum-plus-0.1": (
        {"softmax": lambda s, c: (lambda e: e / (e.sum() + 0.1))(np.exp(s - s.max()))},
        ATT,
        r"\b0\.1 is added to the sum",
    ),
    "scores-are-cosines": (
        {"score": lambda q, k, i, j, c: float(q @ k / np.linalg.norm(q) / np.linalg.norm(k))},
        ATT,
        "scores are cosines",
    ),
    "last-number-left-out": (
        {"score": lambda q, k, i, j, c: float(q[:-1] @ k[:-1]) / math.sqrt(len(q))},
        ATT,
        "last number of each head is left out",
    ),
    # heads
    "heads-tiled": (
        {"kv_head": lambda h, H, K, c: h % K},
        f"{ATT} attention_mix",
        "head h % K|tiled-heads",
    ),
    "heads-tiled-keys-alone": (
        {"kv_head": lambda h, H, K, c: h % K, "v_head": kv_head},
        ATT,
        "head h % K",
    ),
    "heads-tiled-values-alone": (
        {"v_head": lambda h, H, K, c: h % K},
        "attention_mix",
        "head h % K",
    ),
    "heads-reversed": (
        {"kv_head": lambda h, H, K, c: K - 1 - h // (H // K)},
        f"{ATT} attention_mix",
        "heads in reverse order",
    ),
    "values-reversed": (
        {"v_head": lambda h, H, K, c: K - 1 - h // (H // K)},
        "attention_mix",
        "heads in reverse order",
    ),
    "joined-transposed": (
        {"joined": lambda mix, c: mix.T.reshape(-1)},
        "attention_output",
        r"\(d, H\) rather than \(H, d\)",
    ),
    "joined-reversed": (
        {"joined": lambda mix, c: mix[::-1].reshape(-1)},
        "attention_output",
        "joined in reverse order",
    ),
    "qkv-fused-per-group": ({"linear": fused_per_group}, QKV, "fused, taken apart group by group"),
    # projections
    "q-heads-reversed": (
        {"linear": only("q", reversed_rows, linear)},
        "q",
        "heads are in reverse order",
    ),
    "k-and-v-swapped": (
        {
            "linear": lambda x, w, c: (
                c.w[
                    c.name.replace("k_proj", "?").replace("v_proj", "k_proj").replace("?", "v_proj")
                ]
                @ x
            )
        },
        "k v",
        "weight is that of [kv]_proj|keys-and-values-swapped",
    ),
    "gate-and-up-swapped": (
        {
            "linear": lambda x, w, c: (
                c.w[c.name.replace("gate_", "?").replace("up_", "gate_").replace("?", "up_")] @ x
            )
        },
        "gate up",
        "weight is that of (up|gate)_proj|gate-and-up",
    ),
    "layer-0-weights-for-q": (
        {
            "linear": only(
                "q", lambda x, w, c: c.w["model.layers.0.self_attn.q_proj.weight"] @ x, linear
            )
        },
        "q",
        r"that of layers\.0\.self_attn\.q_proj",
    ),
    "q-bias": (
        {"linear": only("q", lambda x, w, c: w @ x + F32(0.1), linear)},
        "q",
        r"\b0\.1 is added|of up to 0\.1\b",
    ),
    "o-scaled": (
        {"linear": only("attention_output", lambda x, w, c: w @ x * F32(0.5), linear)},
        "attention_output",
        r"\b0\.5 times",
    ),
    "all-linear-bfloat16-inputs": (
        {"linear": lambda x, w, c: w @ to_bits(x)},
        "q k v attention_output gate up mlp_output",
        r"rounded to bfloat16: the input \(",
    ),
    "v-int8": (
        {"linear": only("v", lambda x, w, c: int8(w) @ x, linear)},
        "v",
        "8 bits, int8, with a scale for each row",
    ),
    "q-pairs-order": (
        {
            "linear": only(
                "q",
                lambda x, w, c: (
                    (w @ x).reshape(-1, 2, c.config.head_dim // 2).swapaxes(1, 2).reshape(-1)
                ),
                linear,
            )
        },
        "q",
        "order of pairs",
    ),
    "q-of-hidden": (
        {"linear": only("q", lambda x, w, c: w @ c.hidden, linear)},
        "q",
        "input is hidden, before the norm",
    ),
    "down-last-8-lost": (
        {"linear": only("mlp_output", lambda x, w, c: w[:, :-8] @ x[:-8], linear)},
        "mlp_output",
        "last 8 inputs",
    ),
    "down-rolled": (
        {"linear": only("mlp_output", lambda x, w, c: np.roll(w @ x, 3), linear)},
        "mlp_output",
        "results are shifted by 3",
    ),
    "q-columns-shifted": (
        {"linear": only("q", lambda x, w, c: w @ np.roll(x, 1), linear)},
        "q",
        "columns of the weight are shifted",
    ),
    # norms
    "eps-1e-8": ({"norm": lambda x, w, eps, c: rms(x, 1e-8) * w}, NORMS, "epsilon is 1e-08"),
    "eps-1e-3": ({"norm": lambda x, w, eps, c: rms(x, 1e-3) * w}, NORMS, r"epsilon is 0\.001"),
    "eps-outside": (
        {"norm": lambda x, w, eps, c: x / (np.sqrt((x * x).mean()) + F32(eps)) * w},
        NORMS,
        "outside the root|eps-outside-the-root",
    ),
    "norm-1-plus-w": ({"norm": lambda x, w, eps, c: rms(x, eps) * (1 + w)}, NORMS, r"1 \+ w"),
    "norm-no-weight": (
        {"norm": lambda x, w, eps, c: rms(x, eps)},
        NORMS,
        "without its weight|norm-weight-forgotten",
    ),
    "norm-centred": (
        {"norm": lambda x, w, eps, c: rms(x - x.mean(), eps) * w},
        NORMS,
        "mean is subtracted first|mean-subtracted",
    ),
    "norm-sum": (
        {"norm": lambda x, w, eps, c: x / np.sqrt((x * x).sum() + F32(eps)) * w},
        NORMS,
        "sum of squares is taken|sum-of-squares",
    ),
    "norm-no-root": (
        {"norm": lambda x, w, eps, c: x / ((x * x).mean() + F32(eps)) * w},
        NORMS,
        "root is missing",
    ),
    "norm-bfloat16": (
        {"norm": lambda x, w, eps, c: to_bits(rms(to_bits(x), eps) * w)},
        NORMS,
        "rounded to bfloat16: the input and results",
    ),
    "final-norm-missing": (
        norm_only("norm", lambda x, w, eps, c: x),
        "norm",
        r"not normed: the result is x \(|final-norm-missing",
    ),
    "post-norm-with-input-weight": (
        norm_only(
            "post_attention_layernorm",
            lambda x, w, eps, c: rms(x, eps) * c.w[c.name.replace("post_attention", "input")],
        ),
        "post_attention_layernorm",
        r"weight is that of layers\.\d\.input_layernorm",
    ),
    "input-norm-skipped": (
        norm_only("input_layernorm", lambda x, w, eps, c: x * w),
        "input_layernorm",
        "not normed: the result is x · weight",
    ),
    "weight-before-norm": (
        {"norm": lambda x, w, eps, c: rms(x * w, eps)},
        NORMS,
        "weight is applied before the norm",
    ),
    "norm-cube-root": (
        {"norm": lambda x, w, eps, c: x / np.cbrt((x * x).mean() + F32(eps)) * w},
        NORMS,
        "each token times a factor of its own",
    ),
    # feed-forward
    "gelu": (
        {"activation": lambda g, u, c: gelu(g) * u},
        "silu_mul",
        "is GELU, not SiLU|gelu-for-silu",
    ),
    "gelu-tanh": (
        {"activation": lambda g, u, c: gelu_tanh(g) * u},
        "silu_mul",
        "tanh approximation of GELU|gelu-for-silu",
    ),
    "quick-gelu": (
        {"activation": lambda g, u, c: g * sig(1.702 * g) * u},
        "silu_mul",
        r"sigmoid\(1\.702 x\)",
    ),
    "silu-of-up": (
        {"activation": lambda g, u, c: u * sig(u) * g},
        "silu_mul",
        r"silu\(up\) · gate|gate-and-up",
    ),
    "no-gate": ({"activation": lambda g, u, c: g * u}, "silu_mul", "no activation: gate · up"),
    "sigmoid-gate": (
        {"activation": lambda g, u, c: sig(g) * u},
        "silu_mul",
        "is the sigmoid|sigmoid-for-silu",
    ),
    "silu-plus": (
        {"activation": lambda g, u, c: g * sig(g) + u},
        "silu_mul",
        r"silu\(gate\) \+ up",
    ),
    "gate-clipped": (
        {"activation": lambda g, u, c: np.clip(g, -0.4, 0.4) * sig(np.clip(g, -0.4, 0.4)) * u},
        "silu_mul",
        r"gate is clipped at 0\.4\b",
    ),
    "hard-silu": (
        {"activation": lambda g, u, c: g * np.clip(g / 4 + 0.5, 0, 1) * u},
        "silu_mul",
        r"f\(gate\) · up, of another curve: f\(-1\), f\(0\), f\(1\) are -0.2[45]",
    ),
    # sums
    "no-attention-residual": (
        {"add": only("attention_residual", lambda x, y, n, c: y, add)},
        "attention_residual",
        "residual is missing|residual-lost",
    ),
    "residual-doubled": (
        {"add": lambda x, y, n, c: 2 * x + y},
        ADDS,
        r"\b2 · the residual|residual is multiplied by 2\b",
    ),
    "residual-after-norm": (
        {"add": lambda x, y, n, c: n + y},
        ADDS,
        "residual is taken after the norm",
    ),
    "residual-scaled": (
        {"add": only("attention_residual", lambda x, y, n, c: x + y * F32(0.22), add)},
        "attention_residual",
        r"1 · the residual \+ 0\.22 · attention_output|0\.22 times",
    ),
    "residual-bfloat16": (
        {"add": lambda x, y, n, c: to_bits(x + y)},
        ADDS,
        "rounded to bfloat16: results",
    ),
    "input-added-twice": (
        {"add": only("attention_residual", lambda x, y, n, c: x + y + n, add)},
        "attention_residual",
        r"\+ 1 · input_layernorm",
    ),
    # the ends
    "embedding-scaled": (
        {"embed": lambda i, t, c: t[i] * F32(math.sqrt(t.shape[1]))},
        "embedding",
        r"multiplied by sqrt\(D\)|embedding-scaled",
    ),
    "embedding-next-id": ({"embed": shifted_ids}, "embedding", "one row later"),
    "logits-scaled": (
        {"scores_of": lambda x, w, h, c: w @ x * F32(0.7)},
        "logits",
        r"\b0\.7 times",
    ),
    "logits-capped": (
        {"scores_of": lambda x, w, h, c: 3 * np.tanh(w @ x / 3)},
        "logits",
        "capped softly at 3:",
    ),
    "log-softmax": (
        {"scores_of": lambda x, w, h, c: np.log(softmax(w @ x, c))},
        "logits",
        "a log_softmax of the logits",
    ),
    "logits-of-hidden": (
        {"scores_of": lambda x, w, h, c: w @ h},
        "logits",
        "hidden state before the norm|final-norm-missing",
    ),
    "tied-head-always": (
        {"scores_of": lambda x, w, h, c: c.w["model.embed_tokens.weight"] @ x},
        "logits",
        "weight is that of embed_tokens|tied-though-it-is-not",
    ),
    "logits-rolled": (
        {"scores_of": lambda x, w, h, c: np.roll(w @ x, 1)},
        "logits",
        "has the logit of the one before",
    ),
    # caches
    "cached-unrotated": (
        {"cached": lambda k, p, c: np.stack([rotate(h, -p, c.config.rope_theta, c) for h in k])},
        "cache.k attention_weights",
        "keys are cached not rotated|keys-not-turned",
    ),
    "cached-again": (
        {"cached": lambda k, p, c: np.stack([rotate(h, p, c.config.rope_theta, c) for h in k])},
        "cache.k attention_weights",
        "keys are rotated twice|keys-turned-again",
    ),
    "cached-bfloat16": (
        {"cached": lambda k, p, c: to_bits(k), "value": lambda v, p, c: to_bits(v)},
        "cache.k cache.v attention_weights attention_mix",
        "rounded to bfloat16",
    ),
}

TWO = [
    ("window-halved", "theta-500000"),
    ("heads-tiled", "gelu"),
    ("scale-1/d", "eps-1e-3"),
    ("not-causal", "norm-1-plus-w"),
    ("rope-pairs", "k-and-v-swapped"),
    ("residual-doubled", "tanh-cap-2"),
    ("rope-restarts", "window-ignored"),
    ("heads-reversed", "scale-half"),
    ("logits-scaled", "rope-q-alone"),
    ("no-gate", "joined-transposed"),
]
ALL = PLANTED | {
    f"{a} and {b}": (
        PLANTED[a][0] | PLANTED[b][0],
        f"{PLANTED[a][1]} {PLANTED[b][1]}",
        f"(?=.*({PLANTED[a][2]}))(?=.*({PLANTED[b][2]}))",
    )
    for a, b in TWO
}


# Rates

CALL_INPUTS = ("input_ids", "positions", "key_positions", "cache_positions")
CASES = (
    "window-at-once",
    "window-wrap-by-both",
    "left-padding",
    "no-window",
    "one-to-one",
    "four-to-one",
    "small-activations",
)


def dumped(predictions: Predictions, use: Any, cases: Any = CASES, end: str = "") -> list[Evidence]:
    """Return what the program dumps of some cases: the tensors whose names end in `end`."""
    found = []
    for case in map(predictions.suite.case, cases):
        config, tensors = read_model(predictions.suite, str(case.model))
        arrays = predictions.arrays(case)
        calls = [
            {name: arrays.inputs[f"calls.{n}.{name}"] for name in CALL_INPUTS}
            for n in range(case.calls)
        ]
        with np.errstate(all="ignore"):
            every = program(config, tensors, calls, use)
        results = {n: every[n] for n in arrays.expected if n.endswith(end)}
        compared = compare_case(predictions.suite, case, results, "float32", arrays)
        each = Evidence.of(compared, results, arrays, "float32")
        found += [] if each is None else [each]
    return found


def named(planted: Planted, findings: Any) -> bool:
    """Return whether the wrong stages are found, no other, and described."""
    _, stages, words = planted
    found = {stage for finding in findings for stage in finding.stages}
    said = " ".join(sentence(finding) for finding in findings)
    return bool(found) and found <= set(stages.split()) and re.search(words, said) is not None


def judged(predictions: Predictions, name: str, logits: bool) -> tuple[list[bool], str] | None:
    """Return whether it is said rightly, and what is said; None if nothing differs.

    From all stages: the step, the step and what it did. From logits: what it did, in the first
    place, and in the first three.
    """
    use, stages, words = ALL[name]
    evidence = dumped(predictions, use, end="logits" if logits else "")
    if not any(each.differs for each in evidence):
        return None
    found = diagnose(evidence, FORWARD, predictions)
    if logits:
        said = [" ".join(f"{m.name} {m.says}" for m in e.mistakes) for e in found.explanations]
        fits = [re.search(words, each) is not None for each in said]
        return [fits[:1] == [True], any(fits)], " / ".join(said)
    told = {stage for finding in found.findings for stage in finding.stages}
    good = [bool(told) and told <= set(stages.split()), named(ALL[name], found.findings)]
    return good, " / ".join(map(sentence, found.findings))


def rates(names: list[str], logits: bool) -> None:
    """Print what is said of each, and the rates."""
    predictions, right, times = Predictions(read_suite()), np.zeros(2, dtype=int), []
    for name in names:
        start = time.process_time()
        found = judged(predictions, name, logits)
        if found is None:
            print(f"{name}: nothing differs")
            continue
        times.append(time.process_time() - start)
        right += found[0]
        print(f"{name}: {found[0]} {times[-1]:.1f} s: {found[1][:400]}", flush=True)
    what = "first, in the first three" if logits else "the step, the description"
    median, count = sorted(times)[len(times) // 2], len(times)
    print(f"{count} show. Right: {what}: {right}. Median {median:.1f} s, most {max(times):.1f} s")


if __name__ == "__main__":
    given = [name for name in sys.argv[1:] if not name.startswith("--")]
    rates(given or list(ALL), "--logits" in sys.argv)
