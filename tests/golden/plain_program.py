"""All of Mistral in plain loops, which shares no code with tinymistral: mistakes are planted in it.

`with_mistake` replaces some of its text. Each row of the batch and each token is computed by
itself, in float32; all stages are written down.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

F32 = np.float32
Arrays = Mapping[str, np.ndarray]


def program(config: Any, w: Arrays, calls: list[Arrays]) -> dict[str, np.ndarray]:
    """Return all stages of all calls, by the names of a suite."""
    w = {name: x.astype(F32) for name, x in w.items()}
    H, K, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    W, theta, eps = config.sliding_window, config.rope_theta, F32(config.rms_norm_eps)
    out, store = {}, {}

    def show(name, x, tokens=0):
        shape = (B, tokens or T, *np.shape(x))
        x = np.asarray(x, dtype=F32)
        out.setdefault(f"calls.{call}.{name}", np.zeros(shape, dtype=F32))[b, t] = x
        return x

    def norm(x, stage, name):
        gain = w[f"{name}.weight"]
        return x / np.sqrt((x * x).mean() + eps) * gain

    def linear(x, stage, name):
        m = w[f"{name}.weight"]
        return m @ x

    def rotate(x, p, stage):
        turned = x.copy()
        for m in range(d // 2):
            angle = p * theta ** (-2 * m / d)
            cos, sin, one, two = math.cos(angle), math.sin(angle), m, m + d // 2
            turned[:, one] = x[:, one] * cos - x[:, two] * sin
            turned[:, two] = x[:, two] * cos + x[:, one] * sin
        return turned

    def softmax(s):
        e = np.exp(s - s.max())
        return e / e.sum()

    for call, given in enumerate(calls):
        ids, positions, keys = (given[n] for n in ("input_ids", "positions", "key_positions"))
        slots = given["cache_positions"]
        B, T = ids.shape
        tokens = [(b, t) for b in range(B) for t in range(T) if positions[b, t] >= 0]
        x, queries, normed = {}, {}, {}
        table = w["model.embed_tokens.weight"]
        for b, t in tokens:
            x[b, t] = show("embedding", table[ids[b, t]])
        for layer in range(config.num_hidden_layers):
            at, of = f"layers.{layer}.", f"model.layers.{layer}."
            weights = np.zeros((B, H, T, keys.shape[1]), dtype=F32)
            for b, t in tokens:
                i = int(positions[b, t])
                n = norm(x[b, t], "input_layernorm", f"{of}input_layernorm")
                normed[b, t] = show(f"{at}input_layernorm", n)
                q, k, v = (
                    show(at + s, linear(n, s, f"{of}self_attn.{s}_proj").reshape(-1, d))
                    for s in "qkv"
                )
                queries[b, t] = q = show(f"{at}q_rotated", rotate(q, i, "q"))
                k = show(f"{at}k_rotated", rotate(k, i, "k"))
                store.setdefault((layer, b), {})[i] = (k, v)
            for b, t in tokens:
                i, q, cached = int(positions[b, t]), queries[b, t], store[layer, b]
                mix = np.zeros((H, d), dtype=F32)
                for h in range(H):
                    seen = [j for j in cached if j <= i and (W is None or i - j < W)]
                    kh, vh = h // (H // K), h // (H // K)
                    s = np.array([float(q[h] @ cached[j][0][kh]) / math.sqrt(d) for j in seen])
                    for j, e in zip(seen, softmax(s) if seen else s, strict=True):
                        mix[h] += F32(e) * cached[j][1][vh]
                        weights[b, h, t, keys[b] == j] = e
                show(f"{at}attention_mix", mix)
                o = linear(mix.reshape(-1), "attention_output", f"{of}self_attn.o_proj")
                o = show(f"{at}attention_output", o)
                middle = show(f"{at}attention_residual", x[b, t] + o)
                stage = "post_attention_layernorm"
                n = show(at + stage, norm(middle, stage, of + stage))
                g = show(f"{at}gate", linear(n, "gate", f"{of}mlp.gate_proj"))
                u = show(f"{at}up", linear(n, "up", f"{of}mlp.up_proj"))
                a = show(f"{at}silu_mul", g / (1 + np.exp(-g)) * u)
                y = show(f"{at}mlp_output", linear(a, "mlp_output", f"{of}mlp.down_proj"))
                x[b, t] = show(f"{at}output", middle + y)
            for b in range(B):
                for t, j in enumerate(slots[b]):  # noqa: B007, `show` reads t
                    k, v = store[layer, b].get(int(j), (np.zeros((K, d)), np.zeros((K, d))))
                    show(f"cache.{at}k", k, slots.shape[1])
                    show(f"cache.{at}v", v, slots.shape[1])
            out[f"calls.{call}.{at}attention_weights"] = weights
        for b, t in tokens:
            n = show("norm", norm(x[b, t], "norm", "model.norm"))
            head = w.get("lm_head.weight", table)
            show("logits", head @ n)
    return out


def bfloat16(x: Any) -> np.ndarray:
    """Round to bfloat16, by the bits."""
    bits = np.asarray(x, dtype=F32).view(np.uint32)
    return ((bits + ((bits >> 16) & 1) + np.uint32(0x7FFF)) & np.uint32(0xFFFF0000)).view(F32)


def with_mistake(*changes: tuple[str, str]) -> Callable[..., dict[str, np.ndarray]]:
    """Return the program with some of its text replaced, everywhere where it stands."""
    text = inspect.getsource(program)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    made: dict[str, Any] = dict(globals())
    exec(compile(text, "<program>", "exec"), made)
    found: Callable[..., dict[str, np.ndarray]] = made["program"]
    return found
