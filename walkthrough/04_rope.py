# %% [markdown]
# # 4. RoPE: how attention knows the distance
#
# In attention, each token makes three vectors: a *query*, which says what it looks for; a *key*,
# which says what it offers to be found by; and a *value*, which is what it hands over. Each has d
# numbers; d is the *head width*. The *score* of two tokens is the dot product of the one's query
# and the other's key. Softmax turns the scores into weights, and the result is the weighted mean of
# the values.
#
# Nothing in this knows where a token stands. Move the earlier tokens around, and the same keys give
# the same scores:

# %%
import ml_dtypes
import numpy as np
from chapter import BLUE, GREY, ORANGE, PALE, picture, show
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Wedge

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.operations import PlainBackend


def attend(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One query (d,) attends to n keys and values (n, d) -> (d,)."""
    scores = keys @ query / np.sqrt(len(query))
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ values


random = np.random.default_rng(1)
query, keys, values = random.normal(size=8), random.normal(size=(5, 8)), random.normal(size=(5, 8))
moved = [3, 0, 4, 1, 2]  # the same five tokens in another order
difference = np.abs(attend(query, keys, values) - attend(query, keys[moved], values[moved])).max()
print("the result changes by less than 1e-12:", difference < 1e-12)
assert difference < 1e-12

# %% [markdown]
# But order carries meaning: “the dog saw the fox” is not “the fox saw the dog”, and the word just
# before says more than one from far back. So positions have to come in somewhere. Early
# transformers added a vector for the position to each token at the start. Then position 3 and
# position 1,003 are different things, and what was learned at one has to be learned again at the
# other. What attention really needs is the *distance* between two tokens.
#
# ## The idea: turn the vectors
#
# Take two numbers of a query as a point in the plane, an arrow from the origin: the hand of a
# clock. Do the same with two numbers of a key. The dot product of two arrows depends on their
# lengths and on the angle between them, on nothing else. Now turn each arrow by an angle that grows
# with its position: the query of token i by i steps, the key of token j by j steps. The angle
# between the two changes by i − j steps. So of the positions the score knows the distance i − j,
# and nothing else. This is *RoPE*, rotary position embedding ([Su and others,
# 2021](https://arxiv.org/abs/2104.09864)).


# %%
def turn(pair: np.ndarray, angle: float) -> np.ndarray:
    """Turn an arrow (2,) by an angle in radians."""
    x, y = pair
    return np.array([x * np.cos(angle) - y * np.sin(angle), y * np.cos(angle) + x * np.sin(angle)])


def score(i: int, j: int, step: float = 1.0) -> float:
    """Return the score of a query at position i with a key at position j."""
    return turn(query[:2], i * step) @ turn(keys[0, :2], j * step)


for i, j in [(7, 4), (1007, 1004), (7, 5)]:
    print(f"query at {i:4}, key at {j:4}: {score(i, j):6.3f}")
assert abs(score(7, 4) - score(1007, 1004)) < 1e-12

# %% [markdown]
# The first two have the same distance, 3, and the same score. The third has another distance.
#
# **Why turn, and not add?** Turning keeps the length of the vector, so it says nothing about what
# the token is; and distances come out by themselves, without a table of positions to learn.
#
# **Why pairs?** To turn something you need a plane, which has two directions. One number alone
# could only change its sign. So the d numbers of a query or key are taken as d/2 pairs, and each
# pair is turned in its own plane.
#
# **Why is each pair turned at its own speed?** One hand comes round again: after a full turn it
# cannot tell distance 0 from distance 6.28. A clock has the same trouble and the same answer, hands
# of different speed. Pair m turns by theta^(−2m/d) radians for each token. The first makes 1 radian
# a token, which tells neighbours apart; the last ones move so slowly that they only tell near from
# far. *theta* is a fixed number, so large that the slowest hand does not come round within the
# longest text: 10,000 in the first Mistral 7B, 1,000,000 in later ones. Here are some hands of the
# small model that comes with this package:

# %%
model = MistralForCausalLM.from_pretrained(DEMO, dtype="float64")
theta, d = model.config.rope_theta, model.config.head_dim
speeds = theta ** (-np.arange(0, d, 2) / d)  # (d/2,), radians a token
for m in range(0, d // 2, max(1, d // 10)):
    print(f"pair {m:2}: {speeds[m]:.4f} radians a token, once round in {2 * np.pi / speeds[m]:.0f}")
assert speeds[0] == 1 and speeds[-1] > 1 / theta

# %% tags=["remove-input"]
shown, distance = (0, 2, 4, 6), 3
figure = Figure(figsize=(8, 4.3))
axes = figure.subplots()
for row, i in enumerate((7, 1007)):
    y = -row * 1.42
    axes.text(-1.05, y, f"query at {i:,}\nkey at {i - distance:,}", ha="center", va="center")
    for column, m in enumerate(shown):
        x = column * 1.25
        step = np.degrees(speeds[m])
        q, k = 90 - i * step, 90 - (i - distance) * step  # clockwise from 12 o'clock
        axes.add_patch(Circle((x, y), 0.52, facecolor="white", edgecolor=GREY, lw=1))
        axes.add_patch(Wedge((x, y), 0.3, q, k, color=PALE))
        for angle, colour, length in ((q, BLUE, 0.46), (k, ORANGE, 0.38)):
            tip = x + length * np.cos(np.radians(angle)), y + length * np.sin(np.radians(angle))
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2.2, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", tip, (x, y), arrowprops=arrow)
        axes.text(x, y - 0.66, f"{distance * step:.0f}° apart", ha="center", va="center")
for column, m in enumerate(shown):
    name = f"pair {m}\nonce round in\n{2 * np.pi / speeds[m]:.0f} tokens"
    axes.text(column * 1.25, 0.62, name, ha="center", va="bottom", size=9)
axes.text(-1.05, 1.02, "query's hand", color=BLUE, ha="center", weight="bold")
axes.text(-1.05, 0.82, "key's hand", color=ORANGE, ha="center", weight="bold")
axes.set(xlim=(-1.65, 4.4), ylim=(-2.2, 1.15), aspect="equal")
axes.axis("off")
axes.set_title("Both moved on by 1,000 tokens: the hands point elsewhere, the angles between stay")
picture(figure, "04_clocks", "Two rows of clocks; hands differ, the angles between them are equal")

# %% [markdown]
# ## In the package
#
# `rope_table` makes the cosines and sines for all positions (T tokens in each of B rows), once for
# all layers. `rope` turns the queries or keys `x`, of shape (B, T, heads, d). Values are not
# turned: they carry content, and distance matters only for whom to look at.

# %% tags=["remove-input"]
show(PlainBackend.rope_table, PlainBackend.rope)

# %% [markdown]
# Look at `np.split`: pair m is not `x[2m], x[2m+1]`. It is `x[m]` and `x[m + d/2]`, one from the
# first half and one from the second. **Why halves?** Because it is short in array code: two slices,
# no strides. Which numbers make a pair does not matter, as long as queries and keys agree and the
# weights were trained with it. Mistral's original files use neighbours, those of Hugging Face
# halves; whoever converts one to the other reorders the rows of the weights that make queries and
# keys. Forget it, and the model writes nonsense. Here is the reordering:

# %%
backend = PlainBackend("float64")
positions = np.arange(6)[None]  # (B, T) = (1, 6)
table = backend.rope_table(positions, theta, d)
q, k = random.normal(size=(2, 1, 6, 1, d))  # one head


def neighbours(x: np.ndarray) -> np.ndarray:
    """Turn pairs of neighbours, x[2m] and x[2m+1]."""
    even, odd, (cos, sin) = x[..., 0::2], x[..., 1::2], table
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)


def scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """All queries with all keys (1, 6, 1, d) -> (6, 6)."""
    return q[0, :, 0] @ k[0, :, 0].T


order = np.arange(d).reshape(2, d // 2).T.ravel()  # 0, d/2, 1, d/2 + 1, ...
halves = scores(backend.rope(q, table), backend.rope(k, table))
assert np.abs(scores(neighbours(q[..., order]), neighbours(k[..., order])) - halves).max() < 1e-12
assert np.abs(scores(neighbours(q), neighbours(k)) - halves).max() > 0.1
print("reordered: the same scores. Not reordered: other scores.")

# %% [markdown]
# ## Experiment: move the whole text
#
# If scores know distances alone, then so does the whole model: nothing else in it sees positions,
# except that a token looks only backwards, which is a matter of distance as well. So let us say
# that the text begins at position 1,000 instead of 0.

# %%
tokenizer = MistralTokenizer.from_pretrained(DEMO)
ids = np.array([tokenizer.encode("Once upon a time, there was a little fox. The fox was very")])
here = np.arange(ids.shape[1])[None]
logits = model(ids, position_ids=here).logits
moved_by_1000 = np.abs(model(ids, position_ids=here + 1000).logits - logits).max()
stretched = np.abs(model(ids, position_ids=here * 2).logits - logits).max()
print("moved by 1,000, changed by less than 1e-10:", moved_by_1000 < 1e-10)
print(f"every distance doubled, changed by:          {stretched:.1f}")
assert 0 < moved_by_1000 < 1e-10 and stretched > 0.1

# %% [markdown]
# *Logits* are the model's last output, a number for each piece of the vocabulary that says how
# likely it comes next. Moved, they are the same but for rounding; in float64 that leaves ten and
# more digits. With every distance doubled, the model reads another text.
#
# ## Experiment: an angle needs many digits
#
# Far in a long text an angle is a large number, and only its remainder after full turns counts. A
# float32 has 24 binary digits. Near 32,767, the last position that Mistral 7B was made for, 15 of
# them stand before the point, and neighbouring numbers are 2^−9 = 0.002 apart. The 16-bit type
# bfloat16 has 8 digits: it cannot even count beyond 256 without gaps.

# %%
i = np.arange(32_768)[:, None]
single = i.astype(np.float32) * speeds.astype(np.float32)  # (32768, d/2)
error = np.abs(single - i * speeds).max()
print(f"largest error of a float32 angle up to position 32,767: {error:.3f} radians")
print("257 as bfloat16:", np.array(257).astype(ml_dtypes.bfloat16))
assert single.dtype == np.float32 and np.spacing(np.float32(32_767)) == 2**-9
assert 2**-12 < error < 2**-9

# %% [markdown]
# That is ten thousand times what float32 errs elsewhere, some 1e-7 of a number. This is why
# `rope_table` computes angles in float64 in every case, and rounds only their cosines and sines,
# which are at most 1.
#
# ## Exercise: the error of an angle
#
# How wrong is the angle of pair m at position i, if it is computed in float32? Round the position
# and the speed to float32, multiply, and compare with the angle in float64.


# %%
def angle_error(i: int, m: int, theta: float, d: int) -> float:
    """Return |float32 angle − float64 angle| of pair m at position i, in radians."""
    return -1.0  # your turn


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong."""
    for i, m in [(100, 0), (4_001, 1), (32_767, 1), (32_767, 5)]:
        speed = 10_000.0 ** (-2 * m / 64)
        expected = abs(float(np.float32(i) * np.float32(speed)) - i * speed)
        if abs((got := answer(i, m, 10_000.0, 64)) - expected) > 1e-9:
            hint = "the difference must be taken in float64: float(...) the float32 angle first"
            if got < 0 or m == 0:
                hint = "pair 0 turns by 1 radian a token, and 100 · 1 is exact"
            return f"Not yet: at position {i}, pair {m}, it returned {got:.6f}. Hint: {hint}."
    return "Right."


print(check(angle_error))

# %% [markdown]
# <details><summary>Solution</summary>


# %%
def solution(i: int, m: int, theta: float, d: int) -> float:
    """Return |float32 angle − float64 angle| of pair m at position i, in radians."""
    speed = theta ** (-2 * m / d)
    return abs(float(np.float32(i) * np.float32(speed)) - i * speed)


def in_float32(i: int, m: int, theta: float, d: int) -> float:
    """Subtract in float32, which hides what is to be seen."""
    speed = np.float32(theta ** (-2 * m / d))
    return float(np.float32(i) * speed - np.float32(i * float(speed)))


print(check(solution))
assert check(solution) == "Right."
assert check(in_float32) != "Right."

# %% [markdown]
# </details>
#
# ## What to remember
#
# Attention alone does not know order. RoPE turns pairs of numbers in queries and keys, by an angle
# that is position times the pair's speed. Of the positions i of the query and j of the key, the
# score then knows i − j alone. Fast pairs tell neighbours apart, slow ones near from far. Values
# are not turned. Angles are computed in float64; pairs are halves here, (m, m + d/2).
#
# Next: [5. Grouped heads](05_grouped_heads.md)
