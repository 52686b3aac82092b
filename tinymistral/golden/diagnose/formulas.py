"""What a wrong step may have done, beside the mistakes of the catalogue: a formula for each.

Before each formula, or above it, stands what it means, if it is about a known mistake after that
one's name. A name in braces is a parameter, which is searched: see `GRIDS`. All other names are in
`names.py`.
Of formulas that fit as well the first counts: the order is from simple to complex.
"""

from __future__ import annotations

import numpy as np

Grid = list[float]
_INTEGERS: Grid = [sign * n for n in range(1, 129) for sign in (1, -1)]
# The values of a parameter; between the best one and its neighbours reals are searched further.
GRIDS: dict[str, Grid] = {
    "c": np.geomspace(1 / 100, 100, 81).tolist(),
    "theta_": np.geomspace(1, 1e9, 181).tolist(),
    "eps_": [0.0, *np.geomspace(1e-12, 1, 73)],
    "slope": [*(-np.geomspace(2, 0.01, 25)).tolist(), *np.geomspace(0.01, 2, 25).tolist()],
    "few": _INTEGERS[:4],
    "n": _INTEGERS,
    "size": [*range(1, 17), 32, 64, 128, 256, 512, 1024, 2048, 4096],
    "part": [0.5, 0.75, 0.25, 1 / 3, 2 / 3, 1.5, 2.0],
}
WHOLE = ("few", "n", "size", "part")  # these are not searched between the values

# Of the positions i of queries and j of keys; W is huge if there is no window.
MASK = """
no-window | the window is ignored: a query sees all earlier keys :: j <= i
a query sees W {few} keys :: (j <= i) & (i - j < W + few)
a query sees {part} W keys :: (j <= i) & (i - j < maximum(1, W * part // 1))
a query sees {size} keys, whatever the window is :: (j <= i) & ((W == FAR) | (i - j < size))
a query sees W {n} keys :: (j <= i) & (i - j < maximum(1, W + n))
the window's far end is rounded down to a multiple of {size}
    (j <= i) & ((W == FAR) | (j >= (i - W + 1) // size * size))
the window's far end is rounded up to a multiple of {size}
    (j <= i) & ((W == FAR) | (j >= -((W - 1 - i) // size) * size))
all rows of the batch have the mask of the first :: right[:1] > 0
keys of the future are visible on both sides of the query, |i - j| < W
    where(W < FAR, abs(i - j) < W, j <= i)
all keys are visible, also later ones: there is neither a causal mask nor a window :: i == i
the next token is visible too, j <= i + 1 :: (j <= i + 1) & (i - j < W)
a single token sees all earlier keys, without a window :: (j <= i) & (single | (i - j < W))
several tokens at once see all earlier keys, a single one does not
    (j <= i) & ((not single) | (i - j < W))
the first {size} positions of the text stay visible, as sinks
    (j <= i) & ((i - j < W) | (j < size))
the first position of the text is not visible :: (j <= i) & (i - j < W) & (j > 0)
a query sees only its own block of W keys, i // W == j // W :: (j <= i) & (i // W == j // W)
only keys of this call are visible :: (j <= i) & (i - j < W) & (j >= oldest)
in the first call keys after the query are visible: it has no causal mask
    ((j <= i) | (call == 0)) & ((i - j < W) | (call == 0))
in the first call keys after the query are visible within the window: it has no causal mask
    ((j <= i) | (call == 0)) & (i - j < W)
in later calls keys after the query are visible: they have no causal mask
    ((j <= i) | (call > 0)) & (i - j < W)
ring-too-small | keys are gone too early: all of a call is written first, to W {n} slots
    (j <= i) & (i - j < W) & (newest - j < maximum(1, W + n))
only the {size} largest scores of a query are kept
    causal & (z >= sort(where(causal, z, -inf), axis=3)[..., -min(size, S) :][..., :1])
"""

# Of scaled scores z and the mask.
WEIGHTS = """
the scale is 1/sqrt(d/2) :: softmax(z * 2**0.5, mask)
the scale is 1/sqrt(D), of the hidden size :: softmax(z * (d / D) ** 0.5, mask)
the scale is 1/sqrt(D/H), of the hidden size by heads :: softmax(z * (d * H / D) ** 0.5, mask)
the scale has a factor ln(2): 2^x for e^x :: softmax(z * log(2), mask)
the scale is {c} times 1/sqrt(d) :: softmax(z * c, mask)
scores are capped softly at {c}: c · tanh(x / c) :: softmax(c * tanh(z / c), mask)
scores are clipped at {c} :: softmax(clip(z, -c, c), mask)
softmax-overflows | exp is taken of the raw scores, and overflows in float32
    float32(exps(z, mask)) / total(float32(exps(z, mask)))
1 is added to the sum of the softmax, relative to e^0 :: exps(z, mask) / (1 + total(exps(z, mask)))
{c} is added to the sum of the softmax, after the largest score is subtracted
    exps(z - most, mask) / (c + total(exps(z - most, mask)))
weights are sigmoids of the scores, not a softmax :: sigmoid(z) * mask
weights are ReLUs of the scores, not a softmax :: maximum(z, 0) * mask
the softmax is over heads, not over keys
    softmax(z.swapaxes(1, 3), mask.swapaxes(1, 3)).swapaxes(1, 3)
the softmax is taken twice :: softmax(softmax(z, mask), mask)
all visible keys have the same weight :: softmax(0 * z, mask)
a bias of the distance is added to the scores, as ALiBi does
    softmax(z - distance * 2.0 ** (-8 * (h[:, None, None] + 1) / H), mask)
a bias of the distance is added to the scores, {slope} for each token
    softmax(z + slope * distance, mask)
keys-not-turned | keys are not rotated :: softmax(scores(q, plain_k), mask)
queries are not rotated :: softmax(scores(plain_q, k), mask)
neither queries nor keys are rotated :: softmax(scores(plain_q, plain_k), mask)
keys are rotated twice, by their own position :: softmax(scores(q, again(k)), mask)
keys of earlier calls are rotated twice :: softmax(scores(q, where(old, again(k), k)), mask)
keys are values :: softmax(scores(q, v), mask)
scores are cosines of queries and keys, {c} times
    softmax(c * scores(q / norm(q), k / norm(k)), mask)
the last {size} numbers of each head are left out of q · k
    softmax(scores(q[..., : d - size], k[..., : d - size]), mask)
scores are rounded to bfloat16 :: softmax(bfloat16(z), mask)
scores are rounded to float16 :: softmax(float16(z), mask)
softmax-in-16-bits | the softmax is computed in bfloat16 :: bfloat16(softmax(bfloat16(z), mask))
softmax-in-16-bits | the softmax is computed in float16 :: float16(softmax(float16(z), mask))
"""
MIX = """
values-turned | values are rotated like keys :: mix(again(v))
values-turned | values are rotated, as neighbours (2m, 2m + 1) :: mix(again(v, True))
values of earlier calls are 0 :: mix(where(old, 0, v))
values are keys :: mix(k)
values are those of the key at {n} :: mix(beside(v, n))
the sum over keys is rounded to bfloat16 after each key :: running(bfloat16)
the sum over keys is rounded to float16 after each key :: running(float16)
"""

# Of x, positions p, the frequency f of each pair m, and theta; t are columns.
ROPE = """
nothing-turned | it is not rotated :: x
rope-backwards | it is rotated the other way: the sign of the sine is wrong :: turn(x, -p * f)
each head is divided by its root mean square, then rotated :: turn(x / rms(x, 1e-6), p * f)
it is rotated twice: by 2 times its angle :: turn(x, 2 * p * f)
positions are p {n}, not p :: turn(x, (p + n) * f)
positions begin at 0 in each call, {n} :: turn(x, (t + n) * f)
positions are those of columns: padding counts :: turn(x, (t + columns) * f)
positions begin at 0, whatever is given :: turn(x, (p - start) * f)
rope-by-slot | positions are those of slots, modulo the window :: turn(x, p % W * f)
rope-by-slot | positions are those of slots, modulo {size} :: turn(x, p % size * f)
rope-by-slot | positions are those of slots, modulo W {n} :: turn(x, p % maximum(1, W + n) * f)
positions are limited to the window :: turn(x, minimum(p, W - 1) * f)
only the first part is rotated: half of the numbers of a head :: turn(x, p * f * (m < d // 4))
only the first part is rotated: {size} pairs of a head :: turn(x, p * f * (m < size))
only the first part is rotated, with frequencies of its own: half of the numbers of a head
    join(turn(x[..., : d // 2], p * theta ** (-4 * m[: d // 4] / d)), x[..., d // 2 :])
positions are times {c} :: turn(x, c * p * f)
angles are those of theta {theta_} :: turn(x, p * theta_ ** (-2 * m / d))
angles are those of theta {theta_}; neighbours (2m, 2m + 1) are rotated
    turn(x, p * theta_ ** (-2 * m / d), True)
neighbours (2m, 2m + 1) are rotated, and it is rotated the other way :: turn(x, -p * f, True)
neighbours (2m, 2m + 1) are rotated; positions are times {c} :: turn(x, c * p * f, True)
the exponent is of pair m {n} :: turn(x, p * theta ** (-2 * (m + n) / d))
the numbers are rotated as pairs and moved to halves :: turn(x, p * f, True)[..., to_halves]
the numbers are rotated as halves and moved to pairs :: turn(x, p * f)[..., to_pairs]
angles are in bfloat16 :: turn(x, bfloat16(p * f))
frequencies are in bfloat16 :: turn(x, p * bfloat16(f))
frequencies are in float16 :: turn(x, p * float16(f))
positions are in bfloat16 :: turn(x, bfloat16(p) * f)
frequencies are in float32 :: turn(x, p * float32(f))
rope-in-16-bits | cosines and sines are rounded to bfloat16 :: turn(x, p * f, to=bfloat16)
rope-in-16-bits | cosines and sines are rounded to float16 :: turn(x, p * f, to=float16)
"""

# Of x, the weight w and epsilon; mean and rms are over the last axis.
NORM = """
epsilon is {eps_}; the configuration has another :: x / rms(x, eps_) * w
eps-forgotten | there is no epsilon :: x / rms(x, 0) * w
it is not normed: the result is x :: x
it is not normed: the result is x · weight :: x * w
the root is missing: x / (mean of squares + eps) :: x / rms(x, eps) ** 2 * w
the mean is subtracted before the weight, but not from the squares
    (x - mean(x)) / rms(x, eps) * w
x is divided by (mean of squares + eps) to the power {c}, not 1/2
    x * (mean(x * x) + eps) ** -c * w
the mean of squares is over D - 1 numbers :: x / rms(x * (D / (D - 1)) ** 0.5, eps) * w
the mean of magnitudes is taken rather than the root of the mean square
    x / (mean(abs(x)) + eps) * w
the weight is applied before the norm: rms_norm(x · weight) :: x * w / rms(x * w, eps)
it is normed twice :: right / rms(right, eps) * w
it is normed and multiplied by the weight twice :: right * w
norm-rounded-before-its-weight | the normed x is rounded to bfloat16
    bfloat16(x / rms(x, eps)) * w
norm-rounded-before-its-weight | the normed x is rounded to float16 :: float16(x / rms(x, eps)) * w
x, the normed x and its product are rounded to bfloat16
    bfloat16(bfloat16(bfloat16(x) / rms(bfloat16(x), eps)) * bfloat16(w))
"""

# Of the gate g and up u.
SILU = """
the activation is GELU, not SiLU :: gelu(g) * u
the activation is x · sigmoid(1.702 x), an approximation of GELU :: g * sigmoid(1.702 * g) * u
the activation is ReLU, not SiLU :: maximum(g, 0) * u
up is missing: silu(gate) alone :: g * sigmoid(g)
there is no activation: gate · up :: g * u
the gate is missing: up alone :: u
up is added, not multiplied: silu(gate) + up :: g * sigmoid(g) + u
the activation is x · sigmoid({c} x) :: g * sigmoid(c * g) * u
the activation is a hard swish, x · clip(x / {c} + 1/2, 0, 1) :: g * clip(g / c + 0.5, 0, 1) * u
the activation is capped at {c} :: minimum(g * sigmoid(g), c) * u
the gate is clipped at {c} :: clip(g, -c, c) * sigmoid(clip(g, -c, c)) * u
silu-rounded-before-up | silu is rounded to bfloat16 before its product with up
    bfloat16(g * sigmoid(g)) * u
silu-rounded-before-up | silu is rounded to float16 before its product with up
    float16(g * sigmoid(g)) * u
"""

# Of the residual x, what is added to it y, and the normed residual.
SUM = """
the residual is missing: the result is what should be added to it :: y
nothing is added: the result is the residual alone :: x
the residual is taken after the norm :: normed + y
the residual is multiplied by {c} :: c * x + y
what is added to the residual is multiplied by {c} :: x + c * y
"""

# Of x (B, T, inputs) and the weight w (outputs, inputs); heads are (B, T, H, d).
LINEAR = """
results are 0 :: 0 * right
the input is the hidden state before the norm :: times(hidden, w)
the last {size} inputs are left out of the sum :: times(x[..., :-size], w[:, :-size])
columns of the weight are shifted: input m is multiplied by the weight of input m {n}
    times(x, roll(w, -n, axis=1))
rows of the weights are those of q, k and v fused, taken apart group by group: (q..., k, v)
    times(x, fused)
sums are rounded to bfloat16 after each product :: running(x, w, bfloat16)
sums are rounded to float16 after each product :: running(x, w, float16)
heads are cut across tokens: (T, H·d) is read as (H, T, d)
    right.reshape(B, H, T, d).swapaxes(1, 2)
the weight is rounded to 8 bits, int8, with a scale for each row :: times(x, integers(w, 127, 1))
the weight is rounded to 4 bits, int4, with a scale for each row :: times(x, integers(w, 7, 1))
"""
JOINED = """
heads are joined in another order: transposed, (d, H) rather than (H, d)
    times(heads.swapaxes(2, 3), w)
heads are joined in reverse order :: times(heads[:, :, ::-1], w)
"""
LOGITS = """
they are a log_softmax of the logits :: right - log(total(exp(right)))
they are probabilities: a softmax of the logits :: exp(right) / total(exp(right))
columns are shifted: each id has the logit of id {n} :: roll(right, -n, axis=-1)
"""
EMBEDDING = """
ids are looked up {n} rows further :: table[(ids + n) % len(table)]
"""

# Of what should lie in the slots, and for keys the same before its rotation.
CACHE = """
values-turned | values are rotated like keys :: again(tokens)
values-turned | values are rotated, as neighbours (2m, 2m + 1) :: again(tokens, True)
slots hold what belongs to the slot at {n} :: roll(tokens, -n, axis=1)
"""
CACHED_KEYS = """
keys-not-turned | keys are cached not rotated :: plain
cached keys are rotated twice, by their own position :: again(tokens)
"""

# Of what should come out, whatever the step is.
ANY = """
results are 0 :: 0 * right
results are {c} times what they should be :: c * right
{c} is added to all results :: right + c
{c} is subtracted from all results :: right - c
the mean over the results of each token is subtracted from them :: flat(row - mean(row))
results are rounded to 8 bits, int8, with a scale for each token :: flat(integers(row, 127, 2))
results are rounded to 8 bits, int8, with one scale :: integers(right, 127, None)
results are clipped at {c} :: clip(right, -c, c)
results are capped softly at {c}: c · tanh(x / c) :: c * tanh(right / c)
each token has the result of the one at {n} :: roll(right, -n, axis=1)
all rows of the batch have the results of the first :: right[:1] + 0 * right
the halves of the results are exchanged :: flat(roll(row, row.shape[-1] // 2, axis=-1))
the order is wrong: result r is that of r {n} :: flat(roll(row, -n, axis=-1))
the order is wrong: results are reversed :: flat(row[..., ::-1])
"""
OF_HEADS = """
results are rounded to 8 bits, int8, with a scale for each head :: integers(right, 127, 3)
heads are in reverse order: the order is wrong :: right[:, :, ::-1]
numbers of a head are in the order of pairs (0, d/2, 1, ...): the order is wrong
    right[..., to_pairs]
numbers of a head are in the order of halves (0, 2, ..., 1, 3, ...): the order is wrong
    right[..., to_halves]
"""
# By kind of step, and of some stages by their own name too.
TABLES = {
    "mask": MASK,
    "weights": WEIGHTS,
    "mix": MIX,
    "rope": ROPE,
    "norm": NORM,
    "silu": SILU,
    "sum": SUM,
    "linear": LINEAR,
    "embedding": EMBEDDING,
    "cache": CACHE,
    "attention_output": JOINED,
    "logits": LOGITS,
    "cache.k": CACHED_KEYS,
}
