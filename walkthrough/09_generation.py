# %% [markdown]
# # 9. Generation: from logits to a text
#
# A forward pass turns T tokens into T rows of *logits*, one number for each of the V ids in the
# vocabulary. The last row is about the token that comes next. To *generate* text we choose one id
# by that row, put it at the end of the tokens, and run the model again, which gives the next row,
# and so on. The model itself never chooses. Choosing is a few lines of NumPy after it, and this
# chapter is about them.

# %%
import numpy as np
from chapter import BLUE, GREY, ORANGE, PALE, picture, say, show
from matplotlib.figure import Figure

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.sampling import (
    GenerationConfig,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    softmax,
)

tokenizer = MistralTokenizer.from_pretrained(DEMO)
model = MistralForCausalLM.from_pretrained(DEMO, dtype="float64")
text = "Once upon a time, there was a little"
ids = tokenizer.encode(text)
logits = model([ids]).logits[0]  # (T, V)
pieces = np.array(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
print("logits", logits.shape)

# %% [markdown]
# ## What a logit is
#
# A *logit* is a score without a unit: the higher, the likelier. *Softmax* turns a row of scores
# into probabilities: e to the power of each, divided by the sum of them all. Then all are positive
# and add up to 1. Two things follow from the formula. Only differences count: if we add 100 to
# every logit, the probabilities stay the same. And a difference is a ratio: if one logit is 0.69 =
# log 2 above another, its token is twice as likely, wherever on the scale the two are.

# %%
scores = np.array([[2.0, 2.0 + np.log(2), -1.0]])
print(softmax(scores).round(3), softmax(scores + 100).round(3))
assert np.abs(softmax(scores + 100) - softmax(scores)).max() < 1e-12
assert abs(softmax(scores)[0, 1] / softmax(scores)[0, 0] - 2) < 1e-12

# %% [markdown]
# In our text, let us take the two places where the model is surest and least sure of what comes
# next (`<s>` aside, after which any text may begin):

# %%
probabilities = softmax(logits)
surest = 1 + int(probabilities[1:].max(axis=-1).argmax())
openest = 1 + int(probabilities[1:].max(axis=-1).argmin())

# %% tags=["remove-input"]
places = {"sure": surest, "open": openest}
said = {
    name: tokenizer.decode(ids[: n + 1], skip_special_tokens=True) for name, n in places.items()
}


def percent(probability: float) -> str:
    """Return a probability as a text."""
    return "<1%" if probability < 0.01 else ">99%" if probability > 0.99 else f"{probability:.0%}"


def likeliest(n: int, count: int) -> np.ndarray:
    """Return the ids of the highest logits of row n, the highest first."""
    return np.argsort(-logits[n], kind="stable")[:count]


lines = []
for name, n in places.items():
    listed = ", ".join(f"`{pieces[i]}` {percent(probabilities[n, i])}" for i in likeliest(n, 5))
    lines.append(f"* {name}: after “{said[name]} …” come {listed}")
say(f"""
The likeliest next tokens there are:

{lines[0]}
{lines[1]}

Most of this chapter is about these two rows of {logits.shape[1]:,} numbers.
""")

# %% [markdown]
# ## Greedy, or drawn at random
#
# The simplest choice is the highest logit. This is *greedy* generation. It gives the same text each
# time, and with many models that text soon goes in circles. The other choice is *sampling*: draw a
# token at random, each with its probability. Then unlikely tokens come too. Each of them is rare,
# but there are so many that one comes quite often, and the text goes astray. The options below are
# ways between the two.
#
# ## Temperature
#
# Divide all logits by a number, the *temperature*. Below 1, differences grow, and likely tokens
# become likelier. Above 1, differences shrink, and the probabilities become more alike. Near 0
# nothing is left but the highest logit, which is greedy; at infinity, all ids are equally likely.
# The order of the tokens never changes. In ratios: if one token is 3 times as likely as another,
# then at temperature 0.5 it is 3² = 9 times as likely, and at temperature 2, √3 = 1.7 times.


# %% tags=["remove-input"]
def bars(axes, n: int, values: np.ndarray, kept: np.ndarray, labels: bool) -> None:
    """Draw the probabilities of the likeliest tokens of row n, pale where a token is cut."""
    shown = likeliest(n, 10)
    colours = [BLUE if kept[i] else PALE for i in shown]
    axes.barh(np.arange(10), values[shown], 0.8, color=colours)
    for row, i in enumerate(shown):
        label = f" {percent(values[i])}" if kept[i] else " cut"
        axes.text(values[i], row, label, va="center", size=8, color=GREY)
    axes.set(yticks=np.arange(10), ylim=(9.6, -0.6), xticks=[])
    axes.set_yticklabels(pieces[shown] if labels else [], size=9)
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)


figure = Figure(figsize=(8, 5.6))
grid = figure.subplots(2, 3)
everything = np.ones(logits.shape[1], dtype=bool)
for (name, n), row in zip(places.items(), grid, strict=True):
    for axes, temperature in zip(row, (0.5, 1.0, 2.0), strict=True):
        values = softmax(logits[[n]] / temperature)[0]
        bars(axes, n, values, everything, labels=temperature == 0.5)
        axes.set_xlim(0, 1.25 * softmax(logits[[n]] / 0.5).max())
        rest = percent(1 - values[likeliest(n, 10)].sum())
        axes.text(0.98, 0.04, f"all other ids: {rest}", transform=axes.transAxes, ha="right",
                  size=8.5, color=GREY)  # fmt: skip
        axes.set_title(f"temperature {temperature:g}", size=10)
    row[0].set_title(f"“{said[name]} …”\ntemperature 0.5", size=10)
figure.suptitle("Temperature: the ten likeliest next tokens, at a sure place and at an open one",
                x=0.01, ha="left", size=11)  # fmt: skip
picture(figure, "09_temperature", "Bars of next-token probabilities at three temperatures")

# %% [markdown]
# ## Cuts: top-k, top-p, min-p
#
# Temperature makes unlikely tokens rarer. A *cut* removes them. The tokens that are left keep their
# ratios, and their probabilities are scaled to add up to 1 again. Three rules are in use:
#
# * *top-k* keeps the k likeliest tokens, whatever their probabilities.
# * *top-p* sorts the tokens, likeliest first, and keeps as many as are needed to reach the
#   probability p together. What it keeps is called the *nucleus* ([Holtzman and others,
#   2019](https://arxiv.org/abs/1904.09751)).
# * *min-p* keeps each token that is at least p times as likely as the likeliest one.
#
# In the code, a token that is cut gets the score −∞, because e to the power of −∞ is 0.
# `keep_top_p` does the same from the other end: it sorts the *unlikeliest* first, and removes as
# many as have at most 1 − p together.

# %% tags=["remove-input"]
show(keep_top_k, keep_top_p, keep_min_p)

# %% tags=["remove-input"]
cuts = {
    "top-k, k = 5": lambda row: keep_top_k(row, 5),
    "top-p, p = 0.8": lambda row: keep_top_p(row, 0.8),
    "min-p, p = 0.05": lambda row: keep_min_p(row, 0.05),
}
figure = Figure(figsize=(8, 5.6))
grid = figure.subplots(2, 3)
kept_counts: dict[str, list[int]] = {name: [] for name in cuts}
for (name, n), row in zip(places.items(), grid, strict=True):
    for axes, (rule, cut) in zip(row, cuts.items(), strict=True):
        kept = np.isfinite(cut(logits[[n]])[0])
        kept_counts[rule].append(int(kept.sum()))
        bars(axes, n, probabilities[n], kept, labels=rule.startswith("top-k"))
        axes.set_xlim(0, 1.25 * probabilities[n].max())
        axes.text(0.98, 0.04, f"keeps {kept.sum()} of {len(kept):,}", transform=axes.transAxes,
                  ha="right", size=9, color=BLUE)  # fmt: skip
        axes.set_title(rule, size=10)
    row[0].set_title(f"“{said[name]} …”\ntop-k, k = 5", size=10)
figure.suptitle("What each cut keeps (blue): top-p and min-p adapt to how sure the model is",
                x=0.01, ha="left", size=11)  # fmt: skip
picture(figure, "09_cuts", "Bars of next-token probabilities, those that a cut removes in grey")

# %% tags=["remove-input"]
top_k, top_p, min_p = kept_counts.values()
assert top_k == [5, 5] and top_p[0] < top_p[1] and min_p[0] < min_p[1]
say(f"""
Top-k keeps {top_k[0]} tokens at both places, also where the model is sure and only one makes sense.
Top-p keeps {top_p[0]} at the sure place and {top_p[1]} at the open one; min-p {min_p[0]} and
{min_p[1]}. That is why one usually sets top-p or min-p, and top-k only as a limit.
""")

# %% [markdown]
# ## The order
#
# Several options may be set at once, and then the order matters. It is that of transformers, the
# most widely used library for such models:

# %% tags=["remove-input"]
show(GenerationConfig.process)

# %%
hot_first = keep_top_p(logits[[openest]] / 2.0, 0.8)
cut_first = keep_top_p(logits[[openest]], 0.8) / 2.0
sizes = [int(np.isfinite(scores).sum()) for scores in (hot_first, cut_first)]
assert sizes[0] > sizes[1]

# %% tags=["remove-input"]
say(f"""
At our open place with temperature 2 and p = 0.8: temperature first, as here, makes the likely
tokens less likely, so that the nucleus needs {sizes[0]} tokens. Some programs cut first, and would
keep {sizes[1]}. So with a higher temperature top-p and min-p keep more tokens. Top-k does not: it
counts tokens, whatever their probabilities.
""")

# %% [markdown]
# What comes before the temperature also works with greedy choice: several options that forbid
# tokens, and first of all the *repetition penalty*. It makes the tokens that the row already
# contains less likely: a positive logit is divided by the penalty, a negative one is multiplied by
# it. (So here the zero of the scale does count, though it means nothing. The rule is crude, and it
# works.) The stories of this model seldom repeat themselves, so here it only leads to another one:

# %%
contained = np.array([[True, True, False]])
penalized = penalize_repetition(np.array([[3.0, -3.0, 1.0]]), contained, penalty=1.5)
assert penalized.tolist() == [[2.0, -4.5, 1.0]]
texts = []
for penalty in (1.0, 1.3):
    row = model.generate([ids], do_sample=False, repetition_penalty=penalty, max_new_tokens=50,
                         eos_token_id=[])[0]  # fmt: skip
    texts.append(f"penalty {penalty}, {len(set(row.tolist()))} different tokens of {len(row)}:")
    texts.append(tokenizer.decode(row, skip_special_tokens=True) + "\n")
print("\n".join(texts))

# %% [markdown]
# ## The draw, and what a seed fixes
#
# To draw, lay the probabilities end to end on a ruler from 0 to 1, in the order of the ids. A
# random number between 0 and 1 falls on one of them, and on a long one more often. A computer's
# random numbers come from a formula that begins with a number, the *seed*: the same seed gives the
# same random numbers.

# %% tags=["remove-input"]
show(draw)

# %% tags=["remove-input"]
settings = GenerationConfig(do_sample=True, temperature=0.7, top_k=8)
lengths = softmax(settings.process(logits[[openest]], [[]]))[0]
figure = Figure(figsize=(8, 2.3))
axes = figure.subplots()
ends = np.cumsum(lengths)
for n, i in enumerate(np.flatnonzero(lengths)):  # in the order of the ids
    start = ends[i] - lengths[i]
    axes.barh(0, lengths[i], 0.5, start, color=["#CFE6F5", "#A9D1EC"][n % 2], edgecolor="white")
    turned = 0 if lengths[i] > 0.022 * len(pieces[i]) else 90
    axes.text(start + lengths[i] / 2, 0, pieces[i], ha="center", va="center", size=9,
              rotation=turned)  # fmt: skip
for seed, height in ((1, 0.62), (2, 0.62), (3, 0.62)):
    u = np.random.default_rng([seed, 0]).random()
    axes.annotate("", (u, 0.24), (u, height), arrowprops={"arrowstyle": "-|>", "color": ORANGE})
    axes.text(u, height + 0.03, f"seed {seed}: {u:.2f}", ha="center", size=9, color="#9A6A00")
axes.set(xlim=(0, 1), ylim=(-0.3, 0.85), yticks=[], xticks=np.arange(0, 1.1, 0.2))
axes.spines["left"].set_visible(False)
axes.set_xlabel("a random number between 0 and 1")
axes.set_title(f"“{said['open']} …”, temperature 0.7, top-k 8: a draw is a point on a ruler")
picture(figure, "09_draw", "Probabilities end to end on a ruler, and where three seeds fall")

# %% [markdown]
# That is all. Here is sampling, whole:


# %%
def write(prompt: list[int], new: int, seed: int, **options: float) -> list[int]:
    """Continue a prompt by `new` tokens, drawn at random."""
    settings = GenerationConfig(do_sample=True, **options)
    random = np.random.default_rng([seed, 0])  # 0: the first row
    row = list(prompt)
    for _ in range(new):
        last = model([row]).logits[:, -1]  # (1, V)
        scores = settings.process(last, [row])
        row.append(int(draw(scores, [random])[0]))
    return row


options = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
ours = write(ids, 30, seed=1, **options)
more = {"do_sample": True, "max_new_tokens": 30, "eos_token_id": []} | options
assert model.generate([ids], seed=1, **more)[0].tolist() == ours
other = write(ids, 30, seed=2, **options)
print("\n\n".join(tokenizer.decode(row, skip_special_tokens=True) for row in (ours, other)))

# %% [markdown]
# These are seed 1 and seed 2. The package's `generate` gives the same ids. It is faster, because it
# keeps the keys and values of earlier tokens in the cache of chapter 7; and it stops at `</s>`, id
# 2, the special token by which a model says that the text is at its end. Otherwise it goes on to
# `max_new_tokens`.
#
# ## Experiment: what a seed fixes
#
# A seed fixes the random numbers, and nothing else. With the same model, prompt and options it
# fixes the text. Change the temperature, and the same number falls on another ruler. In a batch of
# several rows each row has random numbers of its own, made from the seed and the row's number. So a
# row's text does not depend on how many others are generated beside it:

# %%
alone = model.generate([ids], seed=5, **more)
three = model.generate([ids], seed=5, num_return_sequences=3, **more)
same_row = [bool((alone[0] == row).all()) for row in three]
print("the same as alone:", same_row)
assert same_row == [True, False, False]
hot = model.generate([ids], seed=5, **(more | {"temperature": 1.5}))
assert (hot != alone).any()

# %% [markdown]
# And a seed does not fix the rounding. On another processor, or in another number format (chapter
# 11), logits differ a little. If a random number falls just on the border of two tokens, the other
# one is drawn, and from there on the texts have nothing in common.
#
# ## Exercise: the size of a nucleus
#
# Given probabilities, in any order, and p: how many tokens does top-p keep? As many as are needed,
# likeliest first, to reach at least p together; and always one.


# %%
def nucleus_size(probabilities: np.ndarray, p: float) -> int:
    """Return how many tokens top-p keeps."""
    return 0  # your turn


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong."""
    random = np.random.default_rng(1)
    easy = np.array([0.1, 0.5, 0.05, 0.3, 0.05])
    cases = [(easy, 0.4), (easy, 0.7), (easy, 0.93), (easy, 0.0)]
    cases += [(random.dirichlet(np.full(50, 0.2)), p) for p in (0.3, 0.6, 0.9)]
    cases += [(probabilities[n], 0.8) for n in (surest, openest)]
    for row, p in cases:
        expected = int(np.isfinite(keep_top_p(np.log(np.maximum(row, 1e-300))[None], p)).sum())
        got = answer(row, p)
        if got != expected:
            shown = row.tolist() if len(row) < 9 else f"{len(row)} probabilities"
            return (
                f"Not yet: for {shown} and p = {p} it returned {got}, top-p keeps {expected}. "
                "Hint: sort, likeliest first; the token that reaches p is kept too."
            )
    return "Right."


print(check(nucleus_size))

# %% [markdown]
# <details><summary>Solution</summary>


# %%
def solution(probabilities: np.ndarray, p: float) -> int:
    """Return how many tokens top-p keeps."""
    reached = np.cumsum(np.sort(probabilities)[::-1])
    return max(1, int((reached < p).sum()) + 1)


print("at the open place:", solution(probabilities[openest], 0.8))
assert check(solution) == "Right."
assert check(lambda row, p: int((np.cumsum(np.sort(row)[::-1]) < p).sum())) != "Right."
assert check(lambda row, p: int((np.cumsum(row) < p).sum()) + 1) != "Right."

# %% [markdown]
# </details>
#
# ## What to remember
#
# A logit is a score; a difference of logits is a ratio of probabilities. Temperature divides the
# logits. Top-k, top-p and min-p remove unlikely tokens: a fixed number, by the sum, by the ratio to
# the likeliest. The order is penalty, temperature, top-k, top-p, min-p, and then the draw. A seed
# fixes the random numbers of each row, and so the text, as long as model, prompt, options and
# rounding are the same.
#
# Next: [10. Batches and chat](10_batches_and_chat.md)
