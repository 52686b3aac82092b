# %% [markdown]
# # 14. Training: the backward pass by hand
#
# Until now the weights were there. Where do they come from? They begin as random numbers, and are
# then changed a little, thousands of times, always so that the next token of some text becomes more
# likely. What has to fall is the *loss* (chapter 8): the mean of −log(probability of the token that
# came). For each weight we need to know: if it grows a little, does the loss rise or fall, and how
# fast? This number is the *gradient* of the weight:
#
# > gradient = change of the loss / change of the weight, for a very small change
#
# An array of weights has an array of gradients, of the same shape. A *step* of training moves each
# weight against its gradient, and the loss goes down.
#
# One could measure it. Change one weight, run the model, look at the loss. But that is a run for
# each weight, and Mistral-7B has 7.2 billion. This chapter computes all of them in a single pass
# through the same operations, from the loss back to the tokens: the *backward pass*.

# %%
import math
import os
from unittest.mock import patch

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the matrices are small: threads would only wait

import numpy as np
from chapter import BLUE, GREY, ORANGE, PALE, RED, picture, say, show
from matplotlib.figure import Figure

from tinymistral import MistralConfig, MistralForCausalLM
from tinymistral.training import gradients
from tinymistral.training.gradients import loss_and_gradients
from tinymistral.training.optimizer import AdamW, clip, learning_rate
from tinymistral.training.run import random_weights
from tinymistral.training.stories import story

random = np.random.default_rng(1)

# %% [markdown]
# ## One operation backward
#
# Take the commonest, y = x @ weight.T, with x (T, n), weight (m, n) and y (T, m). Suppose that we
# know `dy`, the gradient of the loss for each number of y; in this chapter `dz` is always the
# gradient of the loss with respect to z, an array of z's shape. What are `dx` and `d_weight`?
#
# Let weight[i, j] grow by a small ε. It is a factor of x[t, j] in the sum y[t, i]. So y[t, i] grows
# by x[t, j] · ε, for every token t, and nothing else in y changes. Each y[t, i] changes the loss by
# dy[t, i] times as much. Together the loss changes by ε times the sum over t of dy[t, i] · x[t, j],
# and this sum is one number of the matrix dy.T @ x. With x[t, j] in the place of weight[i, j], the
# same thought gives dy @ weight.

# %% tags=["remove-input"]
show(gradients.linear, gradients.linear_backward)

# %% [markdown]
# Every operation of the model has such a pair: a function, and its backward, which takes `dy` and
# returns the gradient for each input. To put them together, three rules are enough:
#
# * **Backward order.** What an operation returns as `dx` is the `dy` of the operation before it.
# * **Read twice: add.** If two operations read the same array, each has an influence on the loss,
#   and the gradient is the sum of what both return.
# * **Added: pass on.** For z = a + b, both da and db are dz, unchanged.
#
# You see the last two in a layer. Going forward, x is added to what attention makes of it: so its
# gradient `dx` goes back on two roads, through attention and past it. (`kept` is what a backward
# needs from the forward pass, such as x above. That is why training takes more memory than use.
# `table` has the cosines and sines of RoPE, chapter 4; `tiles` says which queries see which keys.)

# %% tags=["remove-input"]
show(gradients.layer, gradients.layer_backward)

# %% [markdown]
# Where does the first `dy` come from? From the loss. Of one token with logits x it is
# log(sum(exp(x))) − x[target]. The first part has the gradient softmax(x), the probabilities p. So
# the gradient is **p, less 1 at the target**: what the model said, minus what it should have said.
# Training pulls the target's logit up by 1 − p, and pushes every other down by its probability.

# %%
logits = np.array([[2.0, 1.0, 0.0]])
probabilities = np.exp(logits) / np.exp(logits).sum()
_, d_logits = gradients.cross_entropy(logits.copy(), np.array([1]))
print("probabilities ", probabilities.round(2)[0])
print("gradient      ", d_logits.round(2)[0], " the target is number 1")
assert np.abs(d_logits - (probabilities - [0, 1, 0])).max() < 1e-12

# %% [markdown]
# ## A gradient can be measured
#
# These formulas are easily wrong in a sign or a term, and a wrong gradient raises no error. But now
# measuring is a good idea, as a *test* of a few numbers: move one number by a small step h, see how
# the loss changes, divide by h. This is called *finite differences*. There are two ways:
#
# > one-sided (f(x + h) − f(x)) / h, or two-sided (f(x + h) − f(x − h)) / 2h
#
# How small should h be? We try it on RMSNorm (chapter 2). Its y has D numbers and a loss is one, so
# we make one of them: the sum of dy · y, with some fixed random `dy`. Then y has exactly the
# gradient `dy`, and the backward has to tell us that of x.

# %%
EPS = 1e-5
D = 16
x, dy = random.standard_normal((2, D))
weight = np.ones(D, dtype=np.float64)


def f(x: np.ndarray) -> float:
    """Return the sum of dy · rms_norm(x); fsum adds without any rounding error."""
    return math.fsum(dy * x / math.sqrt(math.fsum(x * x) / D + EPS))


def moved(x: np.ndarray, n: int, h: float) -> np.ndarray:
    """Return x with its number n larger by h."""
    return np.where(np.arange(len(x)) == n, x + h, x)


_, kept = gradients.rms_norm(x[None], weight, EPS)
gradient = gradients.rms_norm_backward(dy[None], kept, weight)[0][0]  # (D,)
steps = [float(f"{digit}e-{k}") for k in range(14, -1, -1) for digit in (1, 3)][:-1]
one_sided = [(f(moved(x, 0, h)) - f(x)) / h for h in steps]
two_sided = [(f(moved(x, 0, h)) - f(moved(x, 0, -h))) / (2 * h) for h in steps]
print(f"x[0] has the gradient {gradient[0]:.6f}")
for h in (1e-2, 1e-5, 1e-12):
    print(f"measured with h = {h:g}: {two_sided[steps.index(h)]:.6f}")

# %% tags=["remove-input"]
figure = Figure(figsize=(8, 3.9))
axes = figure.subplots()
errors = {}
for name, measured, colour in (("one", one_sided, ORANGE), ("two", two_sided, BLUE)):
    error = np.abs(np.array(measured) / gradient[0] - 1)
    errors[name] = error
    logs = np.log10(np.maximum(error, 1e-16)).round(1)
    axes.plot(range(len(steps)), logs, "o-", color=colour, ms=4, lw=1.3)
best = {name: int(np.argmin(error)) for name, error in errors.items()}
axes.text(17.6, -4.6, "one-sided:\nerror falls like h", color="#9A6A00", ha="right", weight="bold")
axes.text(21.6, -9, "two-sided:\nerror falls like h²", color=BLUE, weight="bold")
axes.text(2.2, -0.9, "h too small: f hardly changes,\nand its rounding is what is measured",
          color=GREY, va="center")  # fmt: skip
axes.text(28.4, 1.2, "h too large:\nf is no straight line", color=GREY, ha="right", va="center")
axes.set_xticks(range(0, 29, 4), [f"1e-{14 - n // 2}" if n < 28 else "1" for n in range(0, 29, 4)])
axes.set_yticks(range(-12, 1, 3), ["1e-12", "1e-9", "1e-6", "1e-3", "1"])
axes.set(xlabel="step h", ylabel="relative error", ylim=(-12.5, 2))
axes.set_title("A gradient measured with steps of many sizes: the error is a V, not a slope")
picture(figure, "14_step", "Error of finite differences against the step: a V for each way")

# %% tags=["remove-input"]
assert errors["two"][best["two"]] < 1e-9 < errors["one"][best["one"]] < 1e-6
assert 1e-7 < steps[best["two"]] < 1e-3
say("""
The right side of the V is mathematics: a bent curve is not its tangent. The left side is float64,
which knows some 16 digits: if f changes in the tenth digit only, six are left for the difference.
So a smaller step is not a better one. With two sides and h = 1e-5, about nine digits agree, which
no wrong formula does by chance.
""")

# %% [markdown]
# ## Experiment: the whole model against finite differences
#
# Now a model: 2 layers, far smaller than the demo, so that all of this takes seconds. Its tokens
# are bytes (id 3 + byte, as in chapter 1), and its texts are the beginnings of generated stories.
# `loss_and_gradients` runs the model forward, as in chapter 8, and then backward.

# %%
config = MistralConfig(
    vocab_size=259, hidden_size=48, intermediate_size=144, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=12, sliding_window=64,
    tie_word_embeddings=True, initializer_range=0.1,
)  # fmt: skip
texts = [story(n).text[:192] for n in range(200)]
rows = [np.array([1, *(3 + byte for byte in text.encode("utf-8"))]) for text in texts]
begin = {name: array.astype(np.float64) for name, array in random_weights(config, seed=1).items()}


def of_row(weights: dict[str, np.ndarray], row: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Return the mean loss of a row and its gradients; each token is to predict the next."""
    positions = np.arange(len(row) - 1)
    loss, count, of_weights = loss_and_gradients(weights, row[:-1], row[1:], positions, config)
    return loss / count, {name: array / count for name, array in of_weights.items()}


def compare(h: float = 1e-5) -> dict[str, float]:
    """Return for each array of weights: measured / computed change of the loss along its gradient.

    A gradient says: move the array by h in my direction, and the loss rises by h times my length.
    """
    result = {}
    for name, g in of_row(begin, rows[0])[1].items():
        length = np.sqrt((g * g).sum())
        up, down = (
            of_row(begin | {name: begin[name] + step * g / length}, rows[0])[0] for step in (h, -h)
        )
        result[name] = (up - down) / (2 * h) / length
    return result


right = compare()
worst = max(abs(ratio - 1) for ratio in right.values())
print(f"{len(right)} arrays of weights: measured / computed is 1 to within 1e-6: {worst < 1e-6}")
assert worst < 1e-6

# %% [markdown]
# And would a mistake be seen? RoPE rotates a query by an angle; its backward has to rotate the
# gradient *back*, by the negative angle. We let it rotate forward, a single sign, and compare.


# %%
def wrong_backward(dy: np.ndarray, table: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Rotate the gradient by the angles instead of back."""
    return gradients.rope(dy, table)


with patch.object(gradients, "rope_backward", wrong_backward):
    wrong = compare()


# %% tags=["remove-input"]
figure = Figure(figsize=(8, 5))
axes = figure.subplots()
names = [name.removesuffix(".weight").replace("self_attn.", "").replace("mlp.", "")
         .replace("model.layers.", "layer ").replace("model.", "").replace(".", ": ")
         for name in right]  # fmt: skip
for n, name in enumerate(right):
    off = abs(wrong[name] - 1) > 1e-3
    axes.axhline(n, color=PALE, lw=1, zorder=0)
    if off:
        axes.plot([1, wrong[name]], [n, n], color=RED, lw=2, zorder=1)
        axes.plot(round(wrong[name], 3), n, "o", color=RED, ms=7, zorder=3)
    axes.plot(1, n, "o", color=BLUE, ms=7, zorder=2)
axes.set_yticks(range(len(names)), names, size=8.5)
axes.invert_yaxis()
low = min(wrong.values())
axes.set_xlim(low - 0.24, 1.1)
axes.tick_params(axis="y", length=0)
axes.text(0.985, 0, "the package", color=BLUE, ha="right", va="center", weight="bold")
first = next(n for n, name in enumerate(right) if abs(wrong[name] - 1) > 1e-3)
axes.text(wrong[list(right)[first]], first - 0.7, "with one sign wrong in RoPE's backward",
          color=RED, va="center", weight="bold")  # fmt: skip
box = {"color": "white", "pad": 1}
for row, end, colour, text in (
    (0, first - 0.9, BLUE, "before\nthe mistake:\nall right"),
    (len(names) - 1, first + 0.7, RED, "what depends\non it:\nwrong"),
):
    arrow = {"arrowstyle": "<->", "color": colour, "lw": 1.3}
    axes.annotate("", (low - 0.12, row), (low - 0.12, end), arrowprops=arrow)
    axes.text(low - 0.12, (row + end) / 2, text, color=colour, ha="center", va="center", bbox=box)
axes.set_xlabel("measured / computed (1 is right)")
axes.set_ylabel("arrays of weights, in the order of the backward pass")
figure.suptitle("One planted mistake: gradients before it are right, those that depend on it wrong",
                x=0.01, ha="left", size=11)  # fmt: skip
picture(figure, "14_check", "Ratio of measured to computed by array, right and with a mistake")

# %% tags=["remove-input"]
after = [name for name in right if abs(wrong[name] - 1) > 1e-3]
assert [name.split(".")[-2] for name in after[:2]] == ["q_proj", "k_proj"]
assert "model.layers.1.self_attn.v_proj.weight" not in after
say("""
The comparison also says where the mistake is. Going backward, all is right up to `o_proj` of the
last layer. `q_proj` and `k_proj` are wrong, `v_proj` of the same layer is right. What happens to
queries and keys, and not to values? RoPE.
""")

# %% [markdown]
# ## Experiment: 200 steps
#
# A step in the plainest form is `weight -= rate * gradient`, with a small *learning rate*. Mistral
# and nearly all others use [AdamW](../tinymistral/training/optimizer.py), which keeps a running
# mean of each gradient and of its square, and moves every weight by about the same small amount
# where its gradients keep their sign, less where they waver. `clip` shortens a gradient that is
# unusually long. The rate rises for 20 steps, then falls. Each step sees one new text.


# %%
def train(steps: int = 200) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Train from the random weights -> weights, and the loss of each step's text before it."""
    weights = {name: array.copy() for name, array in begin.items()}
    optimizer = AdamW(weights)  # it changes the weights in place
    losses = np.empty(steps, dtype=np.float64)
    for step in range(steps):
        losses[step], of_weights = of_row(weights, rows[step])
        clip(of_weights, norm=1.0)
        optimizer.step(of_weights, learning_rate(step, 20, steps, peak=1e-2, floor=1e-3))
    return weights, losses


weights, losses = train()
with patch.object(gradients, "rope_backward", wrong_backward):
    _, wrong_losses = train()
for name, curve in (("right gradients", losses), ("wrong gradients", wrong_losses)):
    print(f"{name}: loss {curve[0]:.2f} at first, {curve[-20:].mean():.2f} in the last 20 steps")
assert losses[-20:].mean() + 0.1 < wrong_losses[-20:].mean()

# %% tags=["remove-input"]
frequency = np.bincount(np.concatenate([row[1:] for row in rows])) / sum(map(len, rows))
frequency = frequency[frequency > 0] / frequency.sum()
uniform, unigram = math.log(config.vocab_size), -float((frequency * np.log(frequency)).sum())
assert losses[-20:].mean() < unigram < uniform
figure = Figure(figsize=(8, 3.8))
axes = figure.subplots()
smooth = np.ones(10, dtype=np.float64) / 10
for curve, colour in ((wrong_losses, RED), (losses, BLUE)):
    axes.plot(np.arange(1, 201), curve.round(3), color=colour, lw=0.6, alpha=0.45)
    axes.plot(np.arange(10, 201), np.convolve(curve, smooth, "valid").round(3), color=colour, lw=2)
axes.text(
    203, losses[-20:].mean() - 0.1, "right\ngradients", color=BLUE, va="center", weight="bold"
)
axes.text(203, wrong_losses[-20:].mean() + 0.15, "wrong\ngradients", color=RED, va="center",
          weight="bold")  # fmt: skip
levels = {"all ids equally likely": uniform, "each byte as likely as it is frequent": unigram}
for name, level in levels.items():
    axes.axhline(level, color=GREY, ls=":", lw=1)
    axes.text(200, level + 0.05, name, color=GREY, size=9, ha="right")
axes.set(xlim=(0, 228), xlabel="step", ylabel="loss", xticks=range(0, 201, 50))
axes.set_title("200 steps: the loss falls with the wrong gradients too, only less")
picture(figure, "14_loss", "Loss over 200 steps, with right and with wrong gradients")


# %% [markdown]
# This is what makes such mistakes expensive: the curve with the wrong sign looks healthy. Nobody
# would look for a mistake if the blue curve were not beside it. So one tests gradients first, and
# trains afterwards. And this is what our model writes, before and after:


# %%
def written(weights: dict[str, np.ndarray]) -> str:
    """Return a text that the model writes."""
    tensors = {name: array.astype(np.float32) for name, array in weights.items()}
    model = MistralForCausalLM(config, tensors=tensors, dtype="float64")
    ids = model.generate([[1]], do_sample=True, temperature=0.7, top_k=0, seed=1,
                         max_new_tokens=70, eos_token_id=[])[0]  # fmt: skip
    return bytes(int(i) - 3 for i in ids if i >= 3).decode("utf-8", errors="replace")


print("before:", ascii(written(begin)[:24]), "...")
print("after: ", written(weights))

# %% tags=["remove-input"]
count = sum(array.size for array in begin.values())
seen = sum(len(row) - 1 for row in rows)
say(f"""
It has seen {seen:,} bytes, and already puts letters and spaces into a plausible order, with some
words among them. `python -m tinymistral train` made the demo model in the same way, with more
layers, pieces instead of bytes, and far more text.

**What it cost.** `linear` is one matrix product, and its backward is two. Since nearly all work is
in these products, the gradients of all {count:,} weights cost about as much as two more forward
passes. Finite differences for all of them would take {2 * count:,}.
""")

# %% [markdown]
# ## Exercise: the gradient of RMSNorm
#
# y = x · r, where r = 1 / sqrt(mean(x²) + eps) (the weight is left out). Given `dy`, return `dx`.
# Let x[j] grow by a little: y[j] grows by r times as much. But r changes too, and with it *all* of
# y: by the rule for powers, dr/dx[j] = −r³ · x[j] / D.


# %%
def norm_backward(dy: np.ndarray, x: np.ndarray, eps: float) -> np.ndarray:
    """Return dx (D,) for y = x / sqrt(mean(x²) + eps)."""
    return np.zeros(len(x), dtype=np.float64)  # your turn


def check(answer) -> str:
    """Say whether `answer` agrees with finite differences."""
    h = 1e-5
    measured = [(f(moved(x, n, h)) - f(moved(x, n, -h))) / (2 * h) for n in range(D)]
    got = np.asarray(answer(dy, x, EPS), dtype=np.float64)
    if got.shape != x.shape:
        return (
            f"Not yet: it returned the shape {got.shape}. Hint: dx has the shape of x, {x.shape}."
        )
    n = int(np.abs(got - measured).argmax())
    if abs(got[n] - measured[n]) > 1e-7:
        hint = "it has two parts: y[j] itself, and what r does to the sum of dy · y"
        if np.allclose(got, dy / np.sqrt(np.mean(x * x) + EPS)):
            hint = (
                "this is right if r were fixed; now add what dr/dx[j] does to the sum of dy · x · r"
            )
        return f"Not yet: dx[{n}] is {got[n]:.4f}, measured {measured[n]:.4f}. Hint: {hint}."
    return "Right."


print(check(norm_backward))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The loss changes by dy[j] · r through y[j], and by sum(dy · x) · dr/dx[j] through r:


# %%
def solution(dy: np.ndarray, x: np.ndarray, eps: float) -> np.ndarray:
    """Return r · dy − r³ · x · mean(dy · x)."""
    r = 1 / np.sqrt(np.mean(x * x) + eps)
    return r * dy - r**3 * x * np.mean(dy * x)


print(check(solution))
assert check(solution) == "Right."
assert np.abs(solution(dy, x, EPS) - gradient).max() < 1e-12  # the package's
assert check(lambda dy, x, eps: dy / np.sqrt(np.mean(x * x) + eps)) != "Right."

# %% [markdown]
# The second term takes away the part of `dy` that points along x. It has to: making x longer does
# not change y (but for eps), so there is nothing to be gained in that direction.
#
# </details>
#
# ## What to remember
#
# A gradient says how fast the loss rises with each weight. The backward pass computes all of them
# at the price of about two forward passes: each operation in reverse order, adding where an array
# was read twice. It begins with softmax minus 1 at the target. Mistakes are silent, and a model
# trained with them even learns; finite differences, with a step that is neither large nor small,
# find them.
#
# This is the last chapter. [CONTRIBUTING](../CONTRIBUTING.md) says how the package is tested, and
# [the README](../README.md) what else it can do.
