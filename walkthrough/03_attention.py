# %% [markdown]
# # 3. Attention: how a token reads earlier ones
#
# Take “Once upon a time there was a little fox. One day the little”. What comes next depends on all
# of it. But the vector of the last token begins as the row of “▁little” in the embedding table, the
# same in every text. *Attention* is the step in which a token fetches something from the vectors of
# others. It is the only step of the model in which tokens meet.
#
# Think of a Python dictionary. You look up a *query*; where it equals a *key*, you get the *value*.
# Attention is a soft dictionary: the query is compared with **every** key, each comparison gives a
# weight, and the result is the mean of **all** values with these weights. Queries, keys and values
# are vectors, and each token makes one of each:
#
# * its query says what it looks for,
# * its key says what it can be found by,
# * its value is what it hands over to those that find it.
#
# ## From scores to weights
#
# How well does a query match a key? By their dot product: large if they point in the same
# direction. This number is called a *score*. To take a mean we need weights: none negative, with
# the sum 1. The *softmax* makes weights of any scores: take exp of each, then divide by the sum.
# (exp of a large score would be too large for a float. So the largest score is subtracted from all
# of them first. That divides each exp, and thus also their sum, by the same number: the weights are
# the same.)

# %%
import numpy as np
from chapter import HEAT, PALE, picture, say, show
from matplotlib.figure import Figure

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.operations import PlainBackend, visible


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return weights with the sum 1 along the last axis."""
    exp = np.exp(scores - scores.max(axis=-1, keepdims=True))  # at most exp(0) = 1
    return exp / exp.sum(axis=-1, keepdims=True)


keys = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # three tokens, vectors of width 2
values = np.array([[10.0, 0.0], [0.0, 10.0], [5.0, 5.0]])
query = np.array([3.0, 0.0])
weights = softmax(keys @ query)
print("scores ", keys @ query)
print("weights", weights.round(3))
print("mean of the values", (weights @ values).round(2))

# %% [markdown]
# The query matches the first and the third key equally well, so the result lies in the middle
# between their values, with a trace of the second: softmax gives no weight of exactly 0 to a finite
# score.
#
# ## A head of the model
#
# A layer does this several times side by side, with other queries, keys and values. Each time is
# called a *head*, and the width of its vectors is d. Here are the numbers of the model that comes
# with the package. H is the number of heads. There are fewer heads of keys and values, K: H/K query
# heads share one, and query head h reads number h // (H/K). Why is chapter 5.

# %%
tokenizer = MistralTokenizer.from_pretrained(DEMO)
model = MistralForCausalLM.from_pretrained(DEMO, dtype="float64")
config = model.config
H, K, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
text = "Once upon a time there was a little fox. One day the little"
ids = np.array(tokenizer.encode(text))
T = len(ids)
stages = {}
logits = model([ids], tap=stages.__setitem__).logits[0]
layer = config.num_hidden_layers // 2
at = {name: stages[f"layers.{layer}.{name}"][0] for name in (
    "input_layernorm", "q", "k", "v", "q_rotated", "k_rotated",
    "attention_weights", "attention_mix", "attention_output")}  # fmt: skip
print(f"H = {H}, K = {K}, d = {d}; T = {T} tokens of width D = {config.hidden_size}")
print("queries", at["q"].shape, " keys", at["k"].shape, " values", at["v"].shape)

# %% [markdown]
# They are made from x, the normed copy of the stream (T, D), by three learned matrices: one matrix
# product each.

# %%
x = at["input_layernorm"]
projections = model.base.layers[layer].self_attn
for name, heads in (("q", H), ("k", K), ("v", K)):
    matrix = getattr(projections, f"{name}_proj").weight  # (heads · d, D)
    by_hand = (x @ matrix.T).reshape(T, heads, d)
    assert np.abs(by_hand - at[name]).max() < 1e-12

# %% [markdown]
# Before they are compared, queries and keys are *rotated*, which tells them where in the text they
# stand. That is chapter 4; here we take them as they come out of it.
#
# One thing is missing: a token may only read itself and **earlier** tokens. The model learns to say
# what comes next at every place of a text at once. If a token could look at the next one, there
# would be nothing to learn; and when a text is written, later tokens do not exist yet. So the
# scores of later keys are set to −∞, and softmax makes 0 of them, exp(−∞) = 0. This is the *causal
# mask*.
#
# Here is attention in one head, whole:

# %%
head = 0
q = at["q_rotated"][:, head]  # (T, d)
k = at["k_rotated"][:, head // (H // K)]  # (T, d)
v = at["v"][:, head // (H // K)]  # (T, d)

scores = q @ k.T / np.sqrt(d)  # (T, T): row i has the scores of query i with all keys
earlier = np.arange(T)[:, None] >= np.arange(T)[None, :]  # i >= j
weights = softmax(np.where(earlier, scores, -np.inf))
mix = weights @ v  # (T, d): what each token has fetched

assert np.abs(weights - at["attention_weights"][head]).max() < 1e-12
assert np.abs(mix - at["attention_mix"][:, head]).max() < 1e-12

# %% [markdown]
# The package computes the same. It goes through the queries one by one and, rather than setting
# scores to −∞, reads visible keys only. `softmax` gives the weights for all heads at once. (G = H/K
# is of chapter 5, `window` of chapter 6, and `visible` says which keys a query may read.)

# %% tags=["remove-input"]
show(PlainBackend.attention, PlainBackend.softmax)

# %% [markdown]
# Why divide the scores by √d? A dot product is a sum of d products. If these are about 1 in size,
# some positive and some negative, they partly cancel, and the sum is about √d in size. Without the
# division a wider head would have larger scores, and its softmax would give nearly all weight to
# one key, right from the start of training.

# %%
draws = np.random.default_rng(1)
for width in (32, 128):
    a, b = draws.standard_normal((2, 10_000, width))
    dots = (a * b).sum(axis=1)
    print(
        f"d = {width:3}: dot products of size {dots.std():.1f}, "
        f"divided by √d {(dots / width**0.5).std():.2f}"
    )
    assert abs((dots / width**0.5).std() - 1) < 0.02

# %% [markdown]
# ## What heads look at
#
# A layer has H heads, each with its own matrices, and each learned to look for something else. The
# picture shows the weights of two heads in the model. We choose them by a rule, of all heads in all
# layers: on the left the one that gives most weight to the token just before; on the right the one
# whose last query gives most weight to a token three or more back, `<s>` not counted.

# %% tags=["remove-input"]
every = {
    (n, h): stages[f"layers.{n}.attention_weights"][0, h]
    for n in range(config.num_hidden_layers)
    for h in range(H)
}
i, j = np.indices((T, T))
before = {key: w[i - j == 1].mean() for key, w in every.items()}
far = {key: w[-1, 1:-3].max() for key, w in every.items()}
near_head, far_head = max(before, key=before.get), max(far, key=far.get)
names = tokenizer.convert_ids_to_tokens(ids)
figure = Figure(figsize=(8, 4.3))
titles = (
    f"Layer {near_head[0]}, head {near_head[1]}: close by",
    f"Layer {far_head[0]}, head {far_head[1]}: further back",
)
for axes, key, title in zip(figure.subplots(1, 2), (near_head, far_head), titles, strict=True):
    shown = np.ma.masked_where(j > i, np.round(every[key], 3))
    axes.set_facecolor(PALE)
    axes.pcolormesh(shown, cmap=HEAT, vmin=0, vmax=1, edgecolors="white", linewidth=0.5)
    axes.set_xticks(np.arange(T) + 0.5, names, rotation=90, size=8)
    axes.set_yticks(np.arange(T) + 0.5, names, size=8)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.set(
        title=title, xlabel="key: the token that is read", ylabel="query: the token that reads"
    )
    axes.text(T - 0.3, 0.8, "later tokens:\nnot visible", ha="right", va="top", size=9)
    axes.text(T - 0.3, 2.8, "white: weight 0\ndark: weight 1", ha="right", va="top", size=8)
picture(
    figure,
    "03_heads",
    "Attention weights of two heads as heat maps: one reads close by, one further back",
)

# %% tags=["remove-input"]
row = every[far_head][-1]
most = int(row.argmax())
close = every[near_head][i - j <= 2].sum() / T
say(f"""
Each row is one query, and its weights add up to 1: the darker a cell, the more of that token's
value is taken. On the left, {before[near_head]:.0%} of the weight is on the token just before, on
average, and {close:.0%} on the token itself and the two before: this head reads close by. On the
right, the last token,
`{names[-1]}`, reads `{names[most]}` at position {most} most, with weight {row[most]:.2f}: what
followed the first `{names[-1]}`. So the model can say again what it has read, and
`{names[most]}` is what it says next. Nobody told a head what to look for: training found that
this helps. What many other heads look for is hard to say in words.
""")
assert names[most] == "▁fox" and names[most - 1] == names[-1] and row[most] > 0.5
assert tokenizer.convert_ids_to_tokens(int(logits[-1].argmax())) == names[most]
assert all(np.abs(w.sum(axis=1) - 1).max() < 1e-12 for w in every.values())

# %% [markdown]
# Finally the results of all heads are put side by side, (T, H · d), and one more learned matrix,
# o_proj, makes a vector of width D of them. This is what attention adds to the stream.

# %%
output = at["attention_mix"].reshape(T, H * d) @ projections.o_proj.weight.T
assert np.abs(output - at["attention_output"]).max() < 1e-12

# %% [markdown]
# ## Experiment: change the future
#
# We replace the last token by another one and compare the logits of all tokens before it. If the
# mask has no leak, they are the same numbers; not nearly, but to the last bit.

# %%
other = ids.copy()
other[-1] = tokenizer.convert_tokens_to_ids("▁the")
assert other[-1] != ids[-1]
difference = np.abs(model([other]).logits - model([ids]).logits)[0]
print("largest difference before the last token:", difference[:-1].max())
print(f"at the last token: {difference[-1].max():.1f}")
assert difference[:-1].max() == 0
assert difference[-1].max() > 0.1

# %% [markdown]
# And without a mask? We try it with the one head that we computed by hand. We change the key and
# the value of the last token, and look at what the tokens before it have fetched (`mix`), once
# without the mask and once with it.

# %%
changed_k, changed_v = k.copy(), v.copy()
changed_k[-1], changed_v[-1] = -k[-1], -v[-1]
leak = softmax(q @ changed_k.T / np.sqrt(d)) @ changed_v - softmax(scores) @ v
masked_scores = np.where(earlier, q @ changed_k.T / np.sqrt(d), -np.inf)
kept = softmax(masked_scores) @ changed_v - mix
print(f"without the mask earlier tokens change by up to {np.abs(leak[:-1]).max():.2f}")
print("with it by", np.abs(kept[:-1]).max())
assert np.abs(leak[:-1]).max() > 1e-3
assert np.abs(kept[:-1]).max() == 0

# %% [markdown]
# ## Exercise: the mask
#
# Return the causal mask of T tokens: a boolean array (T, T), True where query i, the row, may read
# key j, the column.


# %%
def causal_mask(T: int) -> np.ndarray:
    """Return which keys (columns) are visible to each query (rows)."""
    return np.ones((T, T), dtype=bool)  # your turn


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong."""
    for T in (1, 4):
        got, expected = np.asarray(answer(T)), visible(np.arange(T), np.arange(T), None)
        if got.shape == expected.shape and not np.array_equal(got, expected):
            i, j = np.argwhere(got != expected)[0]
            return f"Not yet: for T = {T}, may query {i} read key {j}? You say {bool(got[i, j])}."
        if got.shape != expected.shape:
            return f"Not yet: for T = {T} the shape is {got.shape}. Hint: it has to be ({T}, {T})."
    return "Right."


print(check(causal_mask))

# %% [markdown]
# <details><summary>Solution</summary>


# %%
def solution(T: int) -> np.ndarray:
    """Return a lower triangle, with the diagonal: a token reads itself too."""
    return np.tril(np.ones((T, T), dtype=bool))


print(solution(3).astype(int), check(solution), sep="\n")
assert check(solution) == "Right."
assert check(lambda T: solution(T).T) != "Right."  # the future instead of the past
assert check(lambda T: np.tril(np.ones((T, T), dtype=bool), -1)) != "Right."  # without itself

# %% [markdown]
# </details>
#
# ## What to remember
#
# weights = softmax(q · k / √d) over the visible keys, result = weights · values. A token reads
# itself and earlier tokens, never later ones, and the mask keeps that to the last bit. A layer has
# H heads side by side. T tokens have T² scores: twice the text, four times the work. What to do
# about that is the subject of chapters 6 and 7. But first: how does a query know how far away a key
# is?
#
# Next: [4. RoPE](04_rope.md)
