# %% [markdown]
# # 8. The forward pass: a whole model in 25 lines
#
# Nearly all parts are there. Tokens become vectors (chapter 2), and *attention* carries information
# from earlier tokens to later ones (chapters 3 to 7). One part is left, the *MLP*, which works on
# each token alone. After it, everything fits on one screen. The way from ids to predictions is
# called a *forward pass*, and here it is 25 lines of NumPy. They are not a sketch: not one bit of
# their result differs from the package's.
#
# The letters: T tokens; D numbers a token in the *residual stream*, the vectors x that run through
# the model; F numbers a token inside the MLP; H query heads and K key/value heads of d numbers
# each; S tokens that a token can look at; W, the most of them that the window allows; V ids in the
# vocabulary.

# %%
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from chapter import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, RED, picture, say, show
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.model import mlp
from tinymistral.operations import PlainBackend
from tinymistral.sampling import log_softmax

tokenizer = MistralTokenizer.from_pretrained(DEMO)
model = MistralForCausalLM.from_pretrained(DEMO, backend="plain", dtype="float64")
config, weights = model.config, model.weights.model
ids = np.array(tokenizer.encode("Once upon a time, there was a little fox"))

# %% [markdown]
# ## SwiGLU: a gate for each number
#
# An MLP (*multilayer perceptron*, the oldest kind of neural network) multiplies a vector by a
# matrix, does something to each number of the result, and multiplies by a second matrix. Think of
# the first matrix as F questions about a token: is it a name? does a sentence end here? A question
# is one row of the matrix, and its answer is the dot product with the token's vector. (What the
# questions are, nobody wrote down; training finds them.) The second matrix says, for each answer,
# what to add to the stream.
#
# Why must something happen in between? Because two matrices in a row are one matrix: (x A) B is
# x (A B). All F questions and answers could be replaced by one matrix of D by D numbers. Mistral's
# step in between is a *gate*. Two matrices, `gate_proj` and `up_proj`, read the same token and give
# two lists of F numbers. The first list decides how much of the second goes through:
#
# MLP(x) = down_proj( silu( gate_proj(x) ) · up_proj(x) )
#
# where · multiplies number by number, and *SiLU* is a smooth switch, silu(z) = z / (1 + e⁻ᶻ). For a
# large z it is z: open, and the number even comes out z times as large. For a very negative z it
# is 0: shut. An MLP with this gate is called *SwiGLU*: GLU for gated linear unit, Swish for another
# name of SiLU ([Shazeer, 2020](https://arxiv.org/abs/2002.05202)). In the package:

# %% tags=["remove-input"]
show(mlp, PlainBackend.silu_mul)

# %% [markdown]
# `tap` is called with every intermediate result of the model, which we call a *stage*. Let us look
# at the first layer's MLP, at the last token of a text:

# %%
stages: dict[str, np.ndarray] = {}
model([ids.tolist()], tap=stages.__setitem__)
gate, up, product = (stages[f"layers.0.{name}"][0, -1] for name in ("gate", "up", "silu_mul"))
assert np.array_equal(gate / (1 + np.exp(-gate)) * up, product)

# %% tags=["remove-input"]
shown = np.argsort(-np.abs(up))[:16]
figure = Figure(figsize=(8, 3.3))
left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
reach = max(4.0, float(np.ceil(np.abs(gate).max())))
z = np.linspace(-reach, reach, 201)
left.plot(z, z / (1 + np.exp(-z)), color=GREY, lw=1)
left.plot(gate, gate / (1 + np.exp(-gate)), "o", color=BLUE, ms=3, alpha=0.5)
left.text(-reach, reach * 0.97, f"each dot: one of the token's {len(gate)} gates", size=9, va="top")
left.text(reach * 0.8, reach * 0.42, "open", size=9, ha="center")
left.text(-reach * 0.75, reach * 0.12, "shut", size=9, ha="center")
left.set(xlabel="gate_proj(x)", ylabel="silu of it", title="SiLU, a smooth switch")
right.bar(np.arange(16), up[shown], 0.85, color=PALE, edgecolor=GREY, lw=0.5)
right.bar(np.arange(16), product[shown], 0.5, color=GREEN)
right.axhline(0, color=GREY, lw=0.6)
right.text(0.99, 1, "grey: up_proj(x)", transform=right.transAxes, ha="right", va="top", size=9)
right.text(0.99, 0.93, "green: what comes out of the gate", color=GREEN, size=9, ha="right",
           va="top", transform=right.transAxes)  # fmt: skip
right.margins(y=0.22)
right.set(xticks=[], xlabel="the 16 largest of the token's numbers", ylabel="value")
right.set_title("Each number has its own gate")
picture(figure, "08_gate", "SiLU with a token's gates, and numbers before and after their gates")

# %% tags=["remove-input"]
D, F = 4096, 14336
H, K, d = 32, 8, 128
in_mlp, in_attention = 3 * D * F, 2 * D * H * d + 2 * D * K * d
assert round(100 * in_mlp / (in_mlp + in_attention)) == 81
say(f"""
Here F is {config.intermediate_size}, D is {config.hidden_size}. In Mistral-7B F is {F:,} and D is
{D:,}, so that each layer's MLP has three matrices of {D * F / 1e6:.0f} million numbers:
{100 * in_mlp / (in_mlp + in_attention):.0f}% of the layer. Most of a language model is MLP.
""")

# %% [markdown]
# ## The whole pass
#
# First two helpers from earlier chapters. RMSNorm (chapter 2) brings a vector to a standard size.
# RoPE (chapter 4) rotates queries and keys by their position.

# %%
H, K, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
W, eps, theta = config.sliding_window, config.rms_norm_eps, config.rope_theta


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Scale each vector to a mean square of 1, then each of its numbers by a weight."""
    return x / np.sqrt(np.square(x).sum(-1, keepdims=True) / x.shape[-1] + eps) * weight


def rope(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotate the pairs of numbers of each head (T, heads, d) by angles that grow with position."""
    angles = positions[:, None, None] * theta ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


# %% [markdown]
# And now the model. Attention, once more in short: each token has a *query* q, a *key* k and a
# *value* v. The dot products of a token's query with the keys of the tokens that it may see are its
# scores; softmax turns them into attention weights, here called `share`, which add up to 1; the mix
# is the mean of the values with these weights. This happens in H heads at once, and H/K query heads
# use the same key/value head.
#
# The weights carry the names that they have in the checkpoint. `@` is the matrix product; a weight
# matrix has a row for each number that comes out, so it is transposed, `.T`.


# %%
def forward_pass(ids: np.ndarray, layers: list[Any]) -> np.ndarray:
    """Ids (T,) -> logits (T, V): a number for each id that could come next, large if likely."""
    j = np.arange(len(ids))  # the positions
    x = weights.embed_tokens.weight[ids]  # (T, D), the residual stream begins
    for layer in layers:
        a, m = layer.self_attn, layer.mlp
        normed = rms_norm(x, layer.input_layernorm.weight)
        q, k, v = (normed @ proj.weight.T for proj in (a.q_proj, a.k_proj, a.v_proj))
        q, k, v = (y.reshape(len(ids), -1, d) for y in (q, k, v))  # cut into heads: (T, H or K, d)
        q, k = rope(q, j), rope(k, j)
        mix = np.zeros_like(q)
        for i in j:  # the token at position i looks at those at positions j
            seen = i - j < W  # the window
            seen &= i >= j  # nothing from the future
            scores = q[i].reshape(K, -1, d) @ k[seen].transpose(1, 2, 0)  # (K, H/K, S)
            scores *= d**-0.5
            share = np.exp(scores - scores.max(axis=-1, keepdims=True))
            share /= share.sum(axis=-1, keepdims=True)  # now they add up to 1
            mix[i] = (share @ v[seen].swapaxes(0, 1)).reshape(H, d)
        x = x + mix.reshape(len(ids), -1) @ a.o_proj.weight.T
        normed = rms_norm(x, layer.post_attention_layernorm.weight)
        gate = normed @ m.gate_proj.weight.T  # (T, F)
        gate = gate / (1 + np.exp(-gate))
        x = x + (gate * (normed @ m.up_proj.weight.T)) @ m.down_proj.weight.T
    x = rms_norm(x, weights.norm.weight)
    return x @ weights.embed_tokens.weight.T  # the embedding once more: its dot product with x


source = inspect.getsource(forward_pass).rstrip().splitlines()
assert len([line for line in source if '"""' not in line]) == 25


# %% tags=["remove-input"]
assert config.tie_word_embeddings
say(f"""
A *logit* is a score. The last row holds {config.vocab_size:,} of them, one for each id of the
vocabulary, and says what may follow the last token. In this model the table of embeddings serves
twice (*tied* embeddings): the logit of an id is the dot product of x with that id's embedding. In
Mistral-7B the last line has a matrix of its own, `lm_head`.
""")


# %% tags=["remove-input"]
def stage(row: float, name: str, shape: str, width: int, colour: str, left: float = 0) -> float:
    """Draw one stage: a bar as wide as its numbers a token -> its right end."""
    axes.add_patch(Rectangle((left, row - 0.3), width, 0.6, color=colour))
    axes.text(left + width + 25, row, f"{name}  {shape}", va="center", size=9)
    return left + width


def join(row: float, colour: str, back: bool) -> None:
    """Draw a line from the stream to a bar, or from a bar back to the stream."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    ends = ((-15, row), (STREAM, row)) if back else ((STREAM, row), (-15, row))
    axes.annotate("", ends[1], ends[0], arrowprops=style)
    if back:
        axes.plot(STREAM, row, "o", color="white", mec=BLUE, mew=1.5, ms=12, zorder=4)
        axes.text(STREAM, row, "+", color=BLUE, size=12, ha="center", va="center", zorder=5)


STREAM = -230
N, D, F, V = (config.num_hidden_layers, config.hidden_size, config.intermediate_size,
              config.vocab_size)  # fmt: skip
figure = Figure(figsize=(8, 6.6))
axes = figure.subplots()
axes.add_patch(Rectangle((-330, -10.62), 2450, 10.05, fill=False, ec=GREY, lw=1, ls="--"))
axes.text(2095, -0.8, f"one layer; there are {N}", ha="right", va="top", size=9, color=GREY)
axes.plot([STREAM, STREAM], [0, -12], color=BLUE, lw=5, solid_capstyle="butt", zorder=1)
axes.text(STREAM - 60, -5.6, "residual stream x  (T, D)", color=BLUE, rotation=90, va="center",
          ha="center", size=9)  # fmt: skip
stage(0, "embedding", f"(T, D), D = {D}", D, BLUE)
stage(-1, "norm", "(T, D)", D, PALE)
end = stage(-2, "q", f"(T, H, d), {H}·{d}", H * d, ORANGE)
end = stage(-2, "k", f"(T, K, d), {K}·{d}", K * d, ORANGE, end + 480)
stage(-2, "v", "(T, K, d)", K * d, ORANGE, end + 480)
for head in range(H):
    corner = 110 * head
    axes.add_patch(Polygon([(corner, -2.7), (corner, -3.3), (corner + 90, -3.3)], color=ORANGE))
axes.text(110 * H + 15, -3, "attention weights  (H, T, S): who looks at whom", va="center", size=9)
stage(-4, "mix of values", "(T, H, d)", H * d, ORANGE)
stage(-5, "o_proj of it", "(T, D)", D, ORANGE)
stage(-6.2, "norm", "(T, D)", D, PALE)
stage(-7.2, "gate", f"(T, F), F = {F}", F, GREEN)
stage(-8.2, "up", "(T, F)", F, GREEN)
stage(-9.2, "silu(gate) · up", "(T, F)", F, GREEN)
stage(-10.2, "down_proj of it", "(T, D)", D, GREEN)
stage(-11.2, "final norm", "(T, D)", D, PALE)
axes.add_patch(Rectangle((0, -12.3), V, 0.6, color=PURPLE))
axes.text(V / 2, -12, f"logits  (T, V), V = {V:,}", color="white", ha="center", va="center", size=9)
axes.text(
    1540, -4, "ATTENTION: tokens look\nat earlier tokens", va="center", size=9, color="#9A6A00"
)
axes.text(1540, -8.2, "MLP: each token\nby itself", va="center", size=9, color=GREEN)
for row, colour in [(0, BLUE), (-5, "#9A6A00"), (-10.2, GREEN)]:
    join(row, colour, back=True)
for row in (-1, -6.2, -11.2):
    join(row, GREY, back=False)
axes.set(xlim=(-345, 2140), ylim=(-12.5, 0.5))
axes.set_title("A forward pass from top to bottom. A bar is as wide as the numbers of one token")
axes.axis("off")
picture(figure, "08_stages", "The stages of a forward pass as bars with their names and shapes")

# %% [markdown]
# Read it along the blue line. A layer never replaces x. It reads a normed copy, computes something,
# and *adds* that to x, twice.
#
# ## Experiment: equal to the bit

# %%
ours = forward_pass(ids, weights.layers)
package = model([ids.tolist()]).logits[0]
print("shape", ours.shape, " largest difference:", np.abs(ours - package).max())
assert np.array_equal(ours, package)

# %% tags=["remove-input"]
(best,) = tokenizer.convert_ids_to_tokens([int(ours[-1].argmax())])
say(f"""
The difference is exactly 0, in {ours.size:,} logits: the same operations in the same order round
in the same places. After “{tokenizer.decode(ids, skip_special_tokens=True)}” the highest logit is
that of `{best}`. What the package has more than these lines is not more model: batches, the rolling
cache, other dtypes, and a faster order of the same sums.
""")

# %% [markdown]
# ## Experiment: one line less
#
# Which lines matter? We let the model write a text, and measure how much that text surprises it,
# by the *loss*: the mean of −log(probability of the token that came). A loss of 0 means that it was
# sure of every token, and right. Then we leave out one line, and measure again.


# %%
def without(line: str) -> Callable[[np.ndarray, list[Any]], np.ndarray]:
    """Return the forward pass without the line that begins so."""
    rest = [text for text in source if not text.strip().startswith(line)]
    if len(rest) != len(source) - 1:
        raise ValueError(f"the line beginning {line!r}: expected one such, not none or several")
    names: dict[str, Any] = {}
    exec("\n".join(rest), globals(), names)
    return names["forward_pass"]


def loss(logits: np.ndarray, ids: np.ndarray) -> float:
    """Return how much the tokens after the first one surprise a model that gave these logits."""
    return -log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]].mean()


story = model.generate([[1]], do_sample=True, temperature=1.0, top_k=0, seed=1, max_new_tokens=100,
                       eos_token_id=[])[0]  # fmt: skip
losses = {"(nothing)": loss(forward_pass(story, weights.layers), story)}
for line in ("q, k = rope", "seen &=", "scores *=", "share /=", "x = x + mix", "gate = gate /",
             "x = x + (gate", "x = rms_norm"):  # fmt: skip
    losses[line] = loss(without(line)(story, weights.layers), story)
assert min(losses.values()) == losses["(nothing)"] < np.log(config.vocab_size)

# %% tags=["remove-input"]
figure = Figure(figsize=(8, 3))
axes = figure.subplots()
names = {"(nothing)": "nothing left out", "q, k = rope": "positions", "seen &=": "the causal mask",
         "scores *=": "the scale of scores", "share /=": "the division in softmax",
         "x = x + mix": "all attention", "gate = gate /": "the switch of the gate",
         "x = x + (gate": "all MLPs", "x = rms_norm": "the last norm"}  # fmt: skip
order = sorted(losses, key=losses.__getitem__)[::-1]
colours = [BLUE if line == "(nothing)" else RED for line in order]
axes.barh([names[line] for line in order], [losses[line] for line in order], 0.7, color=colours)
for row, line in enumerate(order):
    axes.text(losses[line] + 0.06, row, f"{losses[line]:.1f}", va="center", size=9)
uniform = np.log(config.vocab_size)
axes.axvline(uniform, color=GREY, ls=":")
axes.text(
    uniform - 0.06, len(order) - 0.5, "all ids equally likely", size=9, color=GREY, ha="right"
)
axes.set_ylim(-0.6, len(order))
axes.set(xlabel="loss on a text (lower is better)", title="What is left out, and what it costs")
axes.tick_params(axis="y", length=0)
picture(figure, "08_left_out", "Bars of the loss of the forward pass without one of its lines")

# %% tags=["remove-input"]
say(f"""
The whole pass has a loss of {losses["(nothing)"]:.1f}; guessing all {config.vocab_size:,} ids alike
would have log {config.vocab_size:,} = {np.log(config.vocab_size):.1f}. Every line earns its place.
Without the causal mask, the model even sees the answers, and is still worse: it never learned to
use them. Note what does *not* happen: nothing crashes, all shapes are right, and numbers come out.
A mistake in such code is silent, which is why chapter 13 is about tests.
""")

# %% [markdown]
# ## Exercise: predict what breaks
#
# Three symptoms, each from one line left out of `forward_pass`. Which? Write the beginning of the
# line, as in `without("scores *=")`. `check` leaves the line out and looks whether the symptom is
# there.


# %%
def predict() -> dict[str, str]:
    """Return for each symptom the beginning of the line that was left out."""
    return {
        "a token is changed by those after it": "",  # your turn
        "no token is changed by any other": "",
        "in one layer, order does not count": "",
    }


def changed(run: Callable[..., np.ndarray], old: list[int], new: list[int], row: int) -> bool:
    """Return whether one row of logits, from the first layer alone, differs for two texts."""
    before, after = (run(np.array(text), weights.layers[:1])[row] for text in (old, new))
    return bool(np.abs(before - after).max() > 1e-9)


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong."""
    expected = {  # is the logit row changed by: a later token, an earlier one, two swapped ones?
        "a token is changed by those after it": (True, True, True),
        "no token is changed by any other": (False, False, False),
        "in one layer, order does not count": (False, True, False),
    }
    for symptom, wanted in expected.items():
        try:
            run = without(answer().get(symptom, ""))
            later = changed(run, [1, 300, 301, 302], [1, 300, 301, 303], row=2)
            earlier = changed(run, [1, 300, 301, 302], [1, 304, 301, 302], row=3)
            swapped = changed(run, [1, 300, 301, 302], [1, 301, 300, 302], row=3)
        except (ValueError, NameError) as error:
            return f"Not yet: for “{symptom}”: {error}."
        if (later, earlier, swapped) != wanted:
            return (
                f"Not yet: without that line it is not so that {symptom}: a later token changes it "
                f"({later}), an earlier one ({earlier}), two that swap places ({swapped}). "
                "Hint: which line knows the future, which one brings tokens together, which one "
                "knows positions?"
            )
    return "Right."


print(check(predict))

# %% [markdown]
# <details><summary>Solution</summary>


# %%
def solution() -> dict[str, str]:
    """Return for each symptom the beginning of the line that was left out."""
    return {
        "a token is changed by those after it": "seen &=",
        "no token is changed by any other": "x = x + mix",
        "in one layer, order does not count": "q, k = rope",
    }


assert check(solution) == "Right."
assert check(lambda: dict.fromkeys(solution(), "q, k = rope")) != "Right."

# %% [markdown]
# (Why “in one layer”? With several, an earlier token has itself looked at the tokens before it, so
# that some of the order is known even without RoPE.)
#
# </details>
#
# ## What to remember
#
# A layer is two additions to the stream: attention, which brings tokens together, and an MLP, which
# works on each token alone; both read a normed copy. SwiGLU is an MLP in which one half of the
# numbers gates the other. After the last layer, a norm and one matrix make V *logits* for each
# token. That is all of the model. What to do with the logits is the next chapter.
#
# Next: [9. Generation](09_generation.md)
