# %% [markdown]
# # 6. The window, and how depth widens it
#
# In plain attention a token looks at all tokens before it. The thousandth reads a thousand keys,
# the ten thousandth ten thousand; the longer the text, the slower each new token, and the more
# memory its keys and values take. Yet most of what matters for the next word stands nearby.
#
# Mistral therefore gives attention a *sliding window* of W tokens ([Jiang and others,
# 2023](https://arxiv.org/abs/2310.06825)). The token at position i sees the keys at i, i − 1, …
# back to i − W + 1, and none before. One line of code says it: the distance i − j has to be at
# least 0, since nobody sees the future, and less than W.

# %%
import dataclasses
from itertools import pairwise

import numpy as np
from chapter import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, RED, picture, say, show
from matplotlib.figure import Figure

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.operations import visible
from tinymistral.training.documents import graded_stories
from tinymistral.training.grading import places_of, read

# %% tags=["remove-input"]
show(visible)

# %%
positions = np.arange(8)
mask = visible(positions, positions, window=4)
print("rows are queries, columns keys; # is visible, W = 4")
for row in mask:
    print(" ".join("#" if cell else "." for cell in row))
assert list(mask.sum(axis=1)) == [1, 2, 3, 4, 4, 4, 4, 4]

# %% [markdown]
# **Is it W, or W + 1?** Here W counts the token itself: four keys, the farthest 3 back. The paper
# says “between i − W and i”, which would make five, and for years programs differed in this. W is
# the only number that fits the next chapter: keys are kept in a ring, and a ring of W slots holds
# W. One key more or less is not seen in a short text, and changes every output in a long one. (The
# third condition in the code, `k_positions >= 0`, is for padding, chapter 10.)
#
# ## How depth widens it
#
# A token sees W − 1 tokens back, and yet the model can know of more. Think of people in a row, of
# whom each can hear three neighbours to the left. After one round of talk, each knows what three
# others said. In the second round they pass on what they heard: now each knows of six. A layer is
# such a round. In the first layer a token's key and value are made from its own word alone. In the
# second they are made from its vector *after* the first layer, and that already holds something of
# the W − 1 tokens before it. So with each layer the news travels W − 1 tokens further:
#
# > N layers of window W reach **N(W − 1)** tokens back.
#
# The picture shows it for three layers and W = 4. Blue is all that can reach the last token after
# the third layer; these dots have the form of a *cone*. The red line is its edge. `paths` counts
# the ways from a token at the bottom to the top:


# %%
def paths(layers: int, window: int) -> np.ndarray:
    """Count the ways from a token to the last one, by distance: each layer moves 0 to W − 1."""
    count = np.ones(1, dtype=np.int64)
    for _ in range(layers):
        count = np.convolve(count, np.ones(window, dtype=np.int64))
    return count


print(paths(3, 4))
assert list(paths(3, 4)) == [1, 3, 6, 10, 12, 12, 10, 6, 3, 1]

# %% tags=["remove-input"]
N, W, last = 3, 4, 11
figure = Figure(figsize=(8, 3.9))
axes = figure.subplots()
for layer in range(N + 1):
    reach = (N - layer) * (W - 1)  # what of this layer has an influence on the last token
    for i in range(last + 1):
        inside = last - i <= reach
        for j in range(max(0, i - W + 1), i + 1) if inside and layer else ():
            axes.plot([i, j], [layer, layer - 1], color=BLUE, lw=0.7, alpha=0.45, zorder=1)
        axes.plot(i, layer, "o", ms=12, color=BLUE if inside else PALE, zorder=3)
route = [last - n * (W - 1) for n in range(N, -1, -1)]
axes.plot(route, range(N + 1), color=RED, lw=3, zorder=2)
ways = [*paths(N, W), 0, 0]
for distance, count in enumerate(ways):
    colour = BLUE if count else GREY
    axes.text(last - distance, -0.5, count, ha="center", va="center", color=colour, weight="bold")
    axes.text(last - distance, -0.86, distance, ha="center", va="center")
axes.text(-0.6, -0.5, "ways to the last token", ha="right", va="center", color=BLUE)
axes.text(-0.6, -0.86, "tokens back", ha="right", va="center")
axes.text(5.7, 1.5, "the only way\nfrom 9 back", ha="right", va="center", color=RED, weight="bold")
for layer in range(N + 1):
    name = f"after layer {layer}" if layer else "the tokens"
    axes.text(last + 0.6, layer, name, ha="left", va="center")
axes.set(xlim=(-4.4, last + 2.7), ylim=(-1.1, N + 0.4))
axes.axis("off")
axes.set_title("Each of 3 layers sees 3 tokens back (W = 4). Together they reach 9")
picture(figure, "06_cone", "A cone of dots: the last token above, ten tokens that reach it below")

# %% [markdown]
# Many ways lead from a token in the middle of the cone to the last one, since each layer may move
# by 0, 1, 2 or 3 tokens. From the farthest token, 9 back, there is a single one: it needs the
# farthest key in every layer. Tokens farther back have none.
#
# ## Experiment: the edge is exact
#
# A law with so sharp an edge can be tested. Take a text, change its first word, and see which later
# tokens notice. We give the small model of this package smaller windows than its own, so that the
# edge is near. `hidden_states` has the tokens' vectors after each layer.

# %%
model = MistralForCausalLM.from_pretrained(DEMO, dtype="float64")
tokenizer = MistralTokenizer.from_pretrained(DEMO)
layers, own = model.config.num_hidden_layers, model.config.sliding_window
text = " ".join(each.text for each in graded_stories(20))


def with_window(window: int, dtype: str = "float64") -> MistralForCausalLM:
    """Return the model with another window; the weights are the same."""
    config = dataclasses.replace(model.config, sliding_window=window)
    return MistralForCausalLM(config, tensors=model.tensors, dtype=dtype)


def influence(window: int) -> list[np.ndarray]:
    """Return by layer and by distance how much the first word changes a token's vector."""
    ids = np.array([tokenizer.encode(text)[: layers * window + 8]])
    other = ids.copy()
    other[0, 1] = ids[0, 2]  # token 0 is <s>; the first word becomes the second
    before, after = (
        with_window(window)(row, output_hidden_states=True).hidden_states for row in (ids, other)
    )
    return [np.abs(x - y)[0, 1:].max(axis=-1) for x, y in zip(before, after, strict=True)]


print("how many tokens back the farthest token is that notices:")
print("layers   " + "".join(f"{n:4}" for n in range(layers + 1)))
for window in (2, 4, 8, 16):
    change = influence(window)
    farthest = [int(np.flatnonzero(layer)[-1]) for layer in change]
    print(f"W = {window:2}   " + "".join(f"{n:4}" for n in farthest))
    assert farthest == [n * (window - 1) for n in range(layers + 1)]

# %% tags=["remove-input"]
figure = Figure(figsize=(8, 3.6))
axes = figure.subplots()
lines = [np.log10(change[n][: n * (window - 1) + 1]).round(2) for n in range(1, layers + 1)]
floor = min(line.min() for line in lines) - 3
for n, line in enumerate(lines, 1):
    edge, colour = len(line) - 1, [PURPLE, BLUE, ORANGE, GREEN, RED][n % 5]
    axes.plot(line, "-", color=colour, lw=1.3)
    axes.plot([edge, edge], [line[-1], floor], ":", color=colour, lw=1.3)
    axes.plot(edge, line[-1], "o", color=colour, ms=7)
    axes.text(edge, floor - 0.2, edge, ha="center", va="top", color=colour, weight="bold")
    name = f"after\n{n} layers" if n > 1 else "after\n1 layer"
    axes.text(edge - 0.7, floor + 1, name, ha="right", va="center", color=colour, size=9)
powers = range(0, int(floor), -3)
axes.set_yticks(powers, [f"1e{power}" if power else "1" for power in powers])
axes.set(xlim=(0, layers * (window - 1) + 2), ylim=(floor, 1.2), xticks=[])
axes.set_xlabel("tokens after the changed word", labelpad=18)
axes.set_ylabel("change of a token's vector")
each = window - 1
axes.set_title(
    f"Change one word (W = {window}): the next {each} tokens notice, with each layer {each} more"
)
picture(figure, "06_edge", "Influence falls with distance and ends for n layers at n times W - 1")

# %% [markdown]
# It is N(W − 1) in every case. One token farther the difference is not small: it is 0, to the last
# bit. The same with the model's own window:

# %%
change = influence(own)[-1]
reach = layers * (own - 1)
print(f"W = {own}, {layers} layers: the cone reaches {reach} tokens back")
print(f"change of the next token {change[1]:.1f}; at {reach} below 1e-6: {change[reach] < 1e-6}")
print(f"change beyond {reach}: {change[reach + 1 :].max():g}")
assert change[1] > 0.1 and change[reach] < 1e-6 and (change[reach + 1 :] == 0).all()

# %% [markdown]
# ## A path that exists need not be used
#
# N(W − 1) is often called the model's “attention span”, 131 thousand tokens for Mistral 7B. But the
# numbers above also say how little comes from far away. Each step of a path multiplies by an
# attention weight, and W weights sum to 1. At the edge of the cone a single path is left, and
# several small weights multiplied are next to nothing.
#
# One strong path would be enough, if the model built it on purpose. For that, a token halfway must
# look at the fact, keep it in its vector beside all else, and offer it in its own key and value, at
# a time when nobody has asked for it yet; and the later token must look for it there, of all
# places. Nothing in the cone makes a model do this. It learns it in training if it pays often
# enough, or not at all. So let us measure.
#
# ## Experiment: remembering a name
#
# The stories of this package tell something early, a name, a colour, a number, and come back to it
# later. We let the model read stories that are new to it, up to each such place. Is the right
# word the likeliest of its kind? The distance is counted from the last time that it was said.
# We ask twice: with the model's own window, and with half of it.

# %%
stories = graded_stories(60)
rows = [np.array(tokenizer.encode(each.text)) for each in stories]
places = [places_of(each, row, tokenizer) for each, row in zip(stories, rows, strict=True)]
distances = np.array([place.distance for of_story in places for place in of_story])
guess = np.mean([place.chance for of_story in places for place in of_story])
recalled = {}
for window in (own, own // 2):
    variant = with_window(window, "float32")  # enough here, and faster
    right = recalled[window] = read(variant, rows, places, 1, lambda done, total: None).right
    for where, chosen in (("inside", distances < window), ("beyond", distances >= window)):
        print(f"W = {window}, {where} it: {right[chosen].sum():3} of {chosen.sum():3} right")
print(f"by guessing, one word of that kind being as good as another: {guess:.2f} of them")

# %% tags=["remove-input"]
edges = [n * own // 4 for n in range(9) if n * own // 4 <= distances.max()]
bins = np.searchsorted(edges, distances, side="right") - 1  # the last one is open
names = [f"{a}–{b - 1}" for a, b in pairwise(edges)] + [f"{edges[-1]} on"]
figure = Figure(figsize=(8, 4))
figure.suptitle("Memory ends where the window ends, though the cone goes on")
for axes, (window, right) in zip(figure.subplots(2, sharex=True), recalled.items(), strict=True):
    for n, start in enumerate(edges):
        count, hits = (bins == n).sum(), right[bins == n].sum()
        share = hits / max(1, count)
        axes.bar(n, share, 0.85, color=BLUE if start < window else ORANGE)
        axes.text(n, share + 0.05, f"{hits} of {count}", ha="center", va="bottom", size=8)
    axes.axhline(guess, color=GREY, ls=":", lw=1)
    axes.text(len(edges) - 0.45, guess, "guessing", color=GREY, va="center", size=8)
    axes.axvline(edges.index(window) - 0.5, color=RED, lw=2)
    axes.text(edges.index(window) - 0.4, 1.3, f"W = {window}", color=RED, va="top", weight="bold")
    axes.set(xlim=(-0.5, len(edges) - 0.5), ylim=(0, 1.3), yticks=[0, 1])
    axes.set_yticklabels(["none", "all"])
    axes.set_ylabel("recalled")
axes.set_xticks(range(len(edges)), names, size=9)
axes.set_xlabel("tokens since the word was last said")
picture(figure, "06_recall", "Bars: the share of facts recalled by distance, for two windows")
inside, beyond, half_inside, half_beyond = (
    right[chosen].mean()
    for window, right in recalled.items()
    for chosen in (distances < window, distances >= window)
)
say(f"""
Inside the window {inside:.2f} of the facts are recalled, beyond it {beyond:.2f}. With half the
window it is {half_inside:.2f} inside and {half_beyond:.2f} beyond. The cone goes on to {reach}
tokens back, but memory ends with the window: a cliff, not a slope. The path is there; training has
not made the model use it.
""")
assert inside > 0.9 and half_inside > 0.9 and beyond < inside / 2 and half_beyond < inside / 2

# %% [markdown]
# ## Exercise: how far it reaches
#
# Mistral 7B has 32 layers and a window of 4,096. How many tokens back can the farthest be that has
# an influence on the last?


# %%
def farthest_back(layers: int, window: int) -> int:
    """Return how many tokens back the cone reaches."""
    return 0  # your turn


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong."""
    for layers, window, expected in [(1, 4, 3), (3, 4, 9), (5, 1, 0), (32, 4096, 131_040)]:
        if (got := answer(layers, window)) != expected:
            hint = "one layer of window 4 sees itself and 3 tokens back; each layer adds as many"
            if got == layers * window:
                hint = "a window of W counts the token itself, so it reaches W − 1 back"
            return (
                f"Not yet: for {layers} layers of window {window} it returned {got}. Hint: {hint}."
            )
    return "Right."


print(check(farthest_back))

# %% [markdown]
# <details><summary>Solution</summary>


# %%
def solution(layers: int, window: int) -> int:
    """Return how many tokens back the cone reaches."""
    return layers * (window - 1)


print(f"{solution(32, 4096):,}", check(solution))
assert check(solution) == "Right." and solution(3, 4) == len(paths(3, 4)) - 1
assert check(lambda layers, window: layers * window) != "Right."

# %% [markdown]
# The paper's “approximately 131K tokens” is 32 · 4,096 = 131,072, with W in place of W − 1.
#
# </details>
#
# ## What to remember
#
# A window of W lets a token see W keys, its own among them: `0 <= i − j < W`. Each layer passes
# news on by W − 1 tokens, so N layers reach N(W − 1) back, and not one token more. That is where
# influence can come from. What is recalled is another question, which a measurement answers: a path
# that exists need not be used.
#
# Next: [7. The rolling cache](07_rolling_cache.md)
