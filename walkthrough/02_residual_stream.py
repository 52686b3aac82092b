# %% [markdown]
# # 2. The residual stream: a vector for each token
#
# Chapter 1 ended with a row of ids, and an id is only a name: 500 is not “more” than 499. To
# compute with a token, the model gives it a *vector* instead, a row of D numbers. Two vectors can
# be close to each other in some of the numbers and far apart in others, so that a vector can hold
# many things about a token at once: that it is a noun, that it names an animal, that it ends a
# sentence.
#
# Nobody wrote these numbers. They are *weights*, numbers that were found in *training*: the model
# guesses the next token of many texts, and each time all weights are moved a little, so that the
# guess gets better (chapter 14). D is called the *model width*, V is the size of the vocabulary, T
# the number of tokens.

# %%
import numpy as np
from chapter import BLUE, GREY, ORANGE, picture, say, show
from matplotlib.figure import Figure

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.model import forward
from tinymistral.operations import PlainBackend

tokenizer = MistralTokenizer.from_pretrained(DEMO)
model = MistralForCausalLM.from_pretrained(DEMO, dtype="float64")
table = model.weights.model.embed_tokens.weight  # one row for each id: (V, D)
text = "Once upon a time there was a little fox"
ids = np.array(tokenizer.encode(text))  # (T,)
x = table[ids]  # (T, D)
print("table", table.shape, " ids", ids.shape, " x", x.shape)

# %% [markdown]
# That is the whole first step, the *embedding*: take the row of each id. The package does the same,
# for several texts at once: B rows of T ids, (B, T), become (B, T, D).

# %% tags=["remove-input"]
show(PlainBackend.embedding)

# %% [markdown]
# (`round`, and `widen` in other functions, are for 16-bit numbers, chapter 11; in float64 they
# change nothing.)
#
# What did training put into these rows? Let us see which rows point in nearly the same direction.
# The *cosine* of two vectors is 1 for the same direction, 0 for directions that have nothing to do
# with each other, and −1 for opposite ones. We take the mean of all rows away first: what all have
# in common says nothing about any of them.

# %%
directions = table - table.mean(axis=0)
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
for word in ("▁he", "▁soup", "▁three", "▁red", "▁fox"):
    token = tokenizer.convert_tokens_to_ids(word)
    cosines = directions @ directions[token]
    nearest = np.argsort(-cosines)[1:5]  # the first is the word itself
    assert cosines[nearest[0]] > 2 * np.abs(cosines).mean()
    names = [f"{tokenizer.convert_ids_to_tokens(n)} {cosines[n]:.2f}" for n in nearest]
    print(f"{word:8} is near  {'   '.join(names)}")

# %% [markdown]
# Words of one kind are neighbours: pronouns, food, numbers, colours, animals. The model never saw a
# dictionary; it learned this from predicting the next token.
#
# ## The stream
#
# So far each vector knows one token, and nothing of the tokens before it. The rest of the model is
# a stack of *layers*, each with the same two steps:
#
# * *attention* lets a token fetch something from tokens before it (chapter 3);
# * the *MLP*, also called feed-forward network, computes with the vector of each token alone
#   (chapter 8).
#
# Each step takes an array (T, D) and returns an array (T, D), and that is **added** to x. Here is
# the package's function that runs all layers. For now, look only at how x changes:

# %% tags=["remove-input"]
show(forward)

# %% [markdown]
# Nothing ever replaces x, each step only adds to it. That is why x is called the *residual stream*:
# it flows through the model, and every step reads it and writes a correction into it (a
# *residual*). If a layer has nothing to say about a token, it adds something near zero. Training
# needs it too: it finds out at the end of the model in which direction a guess was wrong, and has
# to tell the first layer; through additions this goes back without getting weaker ([He and others,
# 2015](https://arxiv.org/abs/1512.03385)).
#
# The package can show every *stage* of its way through the layers: it calls `tap` with a name and
# an array for each, and we put them into a dictionary. So we can check that what comes out of the
# last layer is a plain sum: the embedding and two contributions from each layer.

# %%
stages = {}
model([ids], tap=stages.__setitem__)
layers = range(model.config.num_hidden_layers)
total = stages["embedding"].copy()
for n in layers:
    total += stages[f"layers.{n}.attention_output"] + stages[f"layers.{n}.mlp_output"]
end = stages[f"layers.{layers[-1]}.output"]
assert np.abs(total - end).max() < 1e-12
print(f"{1 + 2 * len(layers)} arrays {total.shape} add up to the stream's end: within 1e-12")

# %% [markdown]
# ## RMSNorm: the same size for every reader
#
# As layer after layer adds to it, the stream grows, and for some tokens more than for others. The
# weights of a step would have to fit small vectors as well as large ones. So every step reads a
# copy of the stream, scaled to a fixed size. The size of a vector is its *root mean square*, RMS:
# square the D numbers, take their mean, then the root. *RMSNorm* divides by it:

# %%
one = end[0, -1]  # (D,): the last token's vector at the end of the stream


def rms(x: np.ndarray) -> np.ndarray:
    """Return the root mean square of each vector of x (..., D)."""
    return np.sqrt(np.mean(x * x, axis=-1))


print(f"before {rms(one):.2f}, after {rms(one / rms(one)):.2f}")
assert abs(rms(one / rms(one)) - 1) < 1e-12

# %% tags=["remove-input"]
show(PlainBackend.rms_norm)

# %% tags=["remove-input"]
eps = model.config.rms_norm_eps
say(f"""
Two details. `weight` (D,) is learned: it says how much each of the D numbers counts for this
reader. (So the RMS of what is read is not exactly 1.) And `eps`, here {eps}, is there so that a
vector of zeros does not divide by zero. It is far
below the mean square of usual vectors; that of these embeddings is {np.mean(x * x):.4f}.
""")

# %% [markdown]
# Without `eps`, the norm of a vector and that of twice the vector are the same, to the last bit:

# %%
plain = PlainBackend("float64")
ones = np.ones(len(one), dtype=np.float64)
assert np.array_equal(plain.rms_norm(2 * x, ones, 0.0), plain.rms_norm(x, ones, 0.0))

# %% [markdown]
# The picture follows the vector of the last token through one layer. Each strip is a vector, of
# which the first 48 numbers are shown, as colours.

# %% tags=["remove-input"]
n = len(layers) // 2
before = "embedding" if n == 0 else f"layers.{n - 1}.output"
strips = [
    (before, 0, f"the stream before layer {n}"),
    (f"layers.{n}.input_layernorm", 1, "RMSNorm, times weight"),
    (f"layers.{n}.attention_output", 1, "attention returns"),
    (f"layers.{n}.attention_residual", 0, "the stream + that"),
    (f"layers.{n}.post_attention_layernorm", 1, "RMSNorm, times weight"),
    (f"layers.{n}.mlp_output", 1, "the MLP returns"),
    (f"layers.{n}.output", 0, "the stream + that"),
]
most = 1.5 * rms(stages[strips[-1][0]][0, -1])  # numbers of this size have the deepest colour
figure = Figure(figsize=(8, 4.3))
axes = figure.subplots()
for row, (stage, branch, name) in enumerate(strips):
    vector = np.round(stages[stage][0, -1], 3)
    left, y = 10 * branch, -1.25 * row
    axes.pcolormesh(
        left + np.arange(49),
        [y - 0.36, y + 0.36],
        vector[None, :48],
        cmap="RdBu_r",
        vmin=-most,
        vmax=most,
    )
    axes.text(61, y + 0.02, name, va="center", weight="normal" if branch else "bold")
    axes.text(93, y + 0.02, f"RMS {rms(vector):.2f}", va="center", color=GREY)
axes.annotate("", (-4, -7.6), (-4, 0.45), arrowprops={"arrowstyle": "-|>", "color": BLUE, "lw": 4})
for row in (0, 3):
    y = -1.25 * row
    arrow = {"arrowstyle": "-|>", "color": ORANGE, "lw": 1.8}
    axes.plot([-4, 5, 5], [y - 0.62, y - 0.62, y - 1.25], color=ORANGE, lw=1.8)
    axes.annotate("", (9.7, y - 1.25), (4.9, y - 1.25), arrowprops=arrow)
    axes.annotate("", (34, y - 2.13), (34, y - 1.62), arrowprops=arrow)
    axes.plot([9.7, 5, 5], [y - 2.5, y - 2.5, y - 3.12], color=ORANGE, lw=1.8)
    axes.annotate("", (-3.4, y - 3.12), (5.1, y - 3.12), arrowprops=arrow)
    axes.text(-6, y - 3.12, "+", size=16, ha="right", va="center", color=BLUE)
axes.set_title(f"Layer {n} reads scaled copies of the stream, and adds to it what it computes")
axes.text(0, -8.35, "white: 0, red: above 0, blue: below 0", size=9, color=GREY)
axes.set(xlim=(-10, 108), ylim=(-8.5, 0.7))
axes.axis("off")
picture(
    figure, "02_layer", "One token's vector through a layer: two branches read it and add to it"
)

# %% [markdown]
# And this is how the stream's size changes from the embedding to the last layer, and how large the
# contributions are that are added on the way (the mean over all tokens but `<s>`, which is no part
# of the text; a few tokens' vectors are far larger). The sizes do not add up: two vectors of RMS 1
# have a sum of RMS 2 only if they are the same, and a sum of RMS √2 if their directions have
# nothing to do with each other.

# %% tags=["remove-input"]
names = [f"layers.{n}.{step}" for n in layers for step in ("attention", "mlp")]
size = [rms(stages["embedding"][0, 1:]).mean()]
added = []
for name in names:
    after = "attention_residual" if name.endswith("attention") else "output"
    size.append(rms(stages[name.rpartition(".")[0] + "." + after][0, 1:]).mean())
    added.append(rms(stages[f"{name}_output"][0, 1:]).mean())
size, added = np.round(size, 3), np.round(added, 3)
assert size[-1] > size[0]
figure = Figure(figsize=(8, 2.9))
axes = figure.subplots()
steps = np.arange(1, len(names) + 1)
axes.bar(steps, added, 0.5, color=[ORANGE, "#F2CF80"] * len(layers))
axes.plot([0, *steps], size, "o-", color=BLUE)
axes.annotate("the stream", (steps[-2], size[-2]), (-10, 6), textcoords="offset points",
              ha="right", color=BLUE)  # fmt: skip
axes.set_xticks(
    [0, *steps],
    ["embedding", *(f"{'attention' if s % 2 else 'MLP'}\nlayer {(s - 1) // 2}" for s in steps)],
    size=8,
)
axes.set_ylabel("RMS")
axes.set_title("What each step adds (bars) makes the stream grow, so its readers need a norm")
picture(figure, "02_growth", "The stream's size after each step, and the size of what is added")

# %% [markdown]
# ## Experiment: double the embeddings
#
# If every reader scales what it reads, is the size of the stream then of no account at all? Let us
# double the embeddings and look at the *logits*. They are what the model returns at its end, a
# number for each id: the larger, the likelier it comes next. If the model normed the stream itself,
# nothing could change.

# %%
logits = model(inputs_embeds=x[None]).logits
doubled = model(inputs_embeds=2 * x[None]).logits
change = np.abs(doubled - logits).max()
print(f"some logit moves by {change:.1f}; the largest logit is {np.abs(logits).max():.1f}")
assert change > 0.1

# %% [markdown]
# It does matter. What the first attention reads is the same as before but for `eps`, so what it
# returns is the same. But that is added to a stream twice as large: the embedding now weighs twice
# as much against everything that is added later. **The readers' copies are normed, the stream is
# not.** Implementations that write `x = rms_norm(x)` back into the stream compute another model.
#
# ## Exercise: which eps halves the norm?
#
# A vector x has been normed with some `eps` (and weight 1), and the result has RMS ½ instead of 1.
# Return that `eps`. (Write m for the mean square of x, and look at the formula.)


# %%
def halving_eps(x: np.ndarray) -> float:
    """Return the eps with which RMSNorm of x (D,) has the root mean square 1/2."""
    return 0.0  # your turn


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong."""
    for x in (np.array([3.0, 4.0]), np.array([0.1, 0.2, 0.2])):
        got = rms(plain.rms_norm(x, np.ones(len(x), dtype=np.float64), answer(x)))
        if abs(got - 0.5) > 1e-9:
            hint = "what must m + eps be, compared with m?"
            return f"Not yet: for x = {x.tolist()} the norm has RMS {got:.3f}. Hint: {hint}"
    return "Right."


print(check(halving_eps))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The result has RMS √m / √(m + eps). This is ½ if m + eps = 4 m. So eps has to be three times the
# mean square of x: with the usual 0.00001, only a very small vector would notice.


# %%
def solution(x: np.ndarray) -> float:
    """Return three times the mean square."""
    return float(3 * np.mean(x * x))


print(check(solution))
assert check(solution) == "Right."
assert check(lambda x: float(np.mean(x * x))) != "Right."

# %% [markdown]
# </details>
#
# ## What to remember
#
# Each token is a vector of D numbers, which begins as a row of the embedding table. It flows
# through the layers as the residual stream, x: each layer adds what its attention and its MLP
# return. Both read a copy of the stream that RMSNorm has scaled to RMS 1 (then times a learned
# weight). So does the last step, which computes the logits. The stream itself is never normed.
#
# Next: [3. Attention](03_attention.md)
