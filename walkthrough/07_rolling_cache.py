# %% [markdown]
# # 7. The rolling cache: write, then attend
#
# A model writes one token at a time. Each new token attends to those before it, and for that it
# needs their keys and values, in every layer. Must these be computed anew for each token? No: a
# token sees only what stands before it, so what comes later cannot change its keys and values. They
# are computed once and kept. The place where they are kept is the *cache*.
#
# Let us check it: a text in one go, and the same text token by token with a cache.

# %%
import dataclasses

import numpy as np
from chapter import BLUE, GREY, ORANGE, RED, picture, show
from matplotlib.figure import Figure

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer, RollingCache
from tinymistral.operations import visible

opened = MistralForCausalLM.from_pretrained(DEMO, dtype="float64")
tokenizer = MistralTokenizer.from_pretrained(DEMO)
W = 8  # a window smaller than the model's own, so that the ring soon turns
config = dataclasses.replace(opened.config, sliding_window=W)
model = MistralForCausalLM(config, tensors=opened.tensors, dtype="float64")

text = "Once upon a time there was a little fox. The fox had a red ball and liked to play with it. "
ids = tokenizer.encode(text * 20)[: 20 * W]
at_once = model([ids]).logits[0]


def token_by_token(cache: RollingCache) -> tuple[np.ndarray, list[int], list[int]]:
    """Give the text in single tokens -> logits, and after each token: keys read, bytes kept."""
    logits, keys, kept = [], [], []
    for token in ids:
        logits.append(model([[token]], past_key_values=cache).logits[0, 0])
        keys.append(cache.key_positions.shape[1])
        kept.append(sum(array.nbytes for array in cache.k + cache.v))
    return np.array(logits), keys, kept


ring_logits, ring_keys, ring_bytes = token_by_token(model.new_cache(rows=1, chunk=1))
print("logits differ by less than 1e-10:", np.abs(ring_logits - at_once).max() < 1e-10)
assert np.abs(ring_logits - at_once).max() < 1e-10

# %% [markdown]
# Without a cache, the text of n tokens would have cost 1 + 2 + … + n tokens of work; with it, n.
#
# ## A ring of slots
#
# A cache that keeps everything grows with the text. But with a window of W, a token sees W keys,
# its own included: token n sees n − W + 1 to n. Token n − W is not visible to it, and to no later
# one either. So its place can be given to token n. With W *slots*, token n, counted from 0, goes to
# slot n % W: when the last slot is full, the first one is overwritten. This is a *ring*.

# %%
slots = np.full(4, -1)  # W = 4; -1: empty
for n in range(10):
    slots[n % 4] = n
    seen = sorted(slots[visible(np.array([n]), slots, window=4)[0]].tolist())
    print(f"token {n} is written: slots {slots}, it sees {seen}")
    assert seen == list(range(max(0, n - 3), n + 1))

# %% [markdown]
# Three things are worth a second look.
#
# **Write first, then attend.** A token sees its own key too, so that has to be in the ring when the
# token attends. It is written over the one key that the token does not see. If a token saw W + 1
# keys, W slots would not be enough.
#
# **The order of slots does not matter.** Attention is a weighted mean, and a mean does not ask for
# order. What a key needs to know of its position was put into it by RoPE (chapter 4) before it was
# written. So nothing is ever moved. Beside the keys, the cache notes which position each slot
# holds; the rule of the window, `0 <= i − j < W`, looks at that alone.
#
# **It does not grow.** Some programs hide what is outside the window by a mask, and keep it all the
# same. The output is right, and the memory grows as if there were no window.
#
# ## Many tokens at once: S = W + C − 1
#
# A prompt is known from the start, so its tokens need not wait for each other. They go through in
# pieces of up to C tokens, which is much faster: each weight of the model is fetched from memory
# once for C tokens. A piece, too, is written first: C new keys, over the C oldest ones. But now the
# *first* token of the piece attends when its C − 1 followers are written already. (It does not see
# them; the rule of the window hides what comes later.) The ring must hold its own key, the W − 1
# before it, and the C − 1 after it: **S = W + C − 1** slots. With C = 1 that is W.


# %% tags=["remove-input"]
def ring(axes, S: int, window: int, chunk: int, title: str) -> None:
    """Draw a ring of S slots after each piece, and what the piece's first token finds."""
    slots = np.full(S, -1)
    for row, start in enumerate(range(0, 10, chunk)):
        new = np.arange(start, start + chunk)
        slots[new % S] = new
        first = new[0]
        wanted = set(range(max(0, first - window + 1), first + 1))
        for slot, position in enumerate(slots):
            old = position in wanted
            colour = ORANGE if position in new else "#8FC3E3" if old else "white"
            axes.barh(-row, 0.94, 0.84, slot + 0.03, color=colour, edgecolor=GREY, lw=0.6)
            label = "" if position < 0 else position
            axes.text(slot + 0.5, -row, label, ha="center", va="center")
        missing = sorted(wanted - set(slots))
        axes.text(-0.2, -row, f"write {new[0]}, {new[-1]}", ha="right", va="center", size=9)
        seen = f"{first} sees " + ", ".join(map(str, sorted(wanted & set(slots))))
        axes.text(S + 0.2, -row, seen, ha="left", va="center", size=9)
        if missing:
            lost = f"lost: {missing[0]}"
            axes.text(S + 3.6, -row, lost, ha="left", va="center", size=9, color=RED, weight="bold")
    for slot in range(S):
        axes.text(slot + 0.5, 0.7, slot, ha="center", va="center", size=8, color=GREY)
    axes.text(-0.2, 0.7, "slot", ha="right", va="center", size=8, color=GREY)
    axes.set(xlim=(-2.1, 10), ylim=(-5.3, 1.0))
    axes.set_title(title, size=10)
    axes.axis("off")


figure = Figure(figsize=(8, 3.6))
figure.suptitle("Window W = 4, pieces of C = 2: with W + C − 1 = 5 slots nothing is lost")
left, right = figure.subplots(1, 2)
ring(left, 5, 4, 2, "5 slots")
ring(right, 4, 4, 2, "4 slots: one too few")
left.text(0, -5, "just written", ha="left", va="center", color="#A06000", weight="bold")
left.text(3.5, -5, "older, still needed", ha="left", va="center", color=BLUE, weight="bold")
picture(figure, "07_ring", "Slots of a ring after each piece; with one slot too few a key is lost")

# %% [markdown]
# Each row is the ring after one piece was written; beside it stands what the piece's first token
# finds. On the right the ring has W slots, which would be enough for single tokens. There token 4
# has lost key 1, because 5 is already written over it.
#
# ## In the package
#
# `capacity` is S. `admit` finds the slots of a piece at `positions` (B, T): T tokens in each of B
# rows of text, with −1 for *padding*, which fills up short rows (chapter 10) and gets no slot.
# `count` is how many tokens each row has had so far, without padding, so it is n for the next one.
# `update` is called by each layer: it writes the piece's keys and values, and returns all that are
# kept, for attention to read.

# %% tags=["remove-input"]
show(RollingCache.capacity.fget, RollingCache.admit, RollingCache.update)

# %% [markdown]
# The `%` in the middle of `admit` is the ring. (`take_back` and `evict` serve callers who go back
# to an earlier token, `add_to_mask` those who pad; `reserve` makes the storage grow up to S slots,
# and no further.)
#
# ## Experiment: twenty windows
#
# The text above is 20 windows long. Did memory and time for a token stay the same? Times differ
# from machine to machine and from run to run; so we count what takes the time, the keys that are
# read. For comparison, a cache that hides what is outside the window but keeps it:


# %%
class Endless(RollingCache):
    """A cache that never gives a slot to another token."""

    @property
    def capacity(self) -> None:
        """No upper bound."""


endless_logits, endless_keys, endless_bytes = token_by_token(Endless(config, model.backend, 1, 1))
print("windows   keys read by a token   bytes kept")
print("              ring   endless       ring   endless")
for n in (1, 2, 5, 10, 20):
    last = n * W - 1
    print(f"{n:4} {ring_keys[last]:13} {endless_keys[last]:9} {ring_bytes[last]:10} "
          f"{endless_bytes[last]:9}")  # fmt: skip
same = np.abs(endless_logits - ring_logits).max()
print("logits of the two differ by less than 1e-10:", same < 1e-10)
assert same < 1e-10 and max(ring_keys) == W and endless_keys[-1] == 20 * W
assert set(ring_bytes[W:]) == {ring_bytes[W - 1]}

# %% tags=["remove-input"]
figure = Figure(figsize=(8, 2.9))
axes = figure.subplots()
tokens = np.arange(1, len(ids) + 1)
axes.plot(tokens, endless_keys, color=ORANGE, lw=2)
axes.plot(tokens, ring_keys, color=BLUE, lw=2.5)
axes.text(12.4 * W, 13.4 * W, "all are kept", color="#A06000", ha="right", weight="bold")
axes.text(12.6 * W, 1.5 * W, f"ring: W = {W} keys, for ever", color=BLUE, ha="left", weight="bold")
axes.set_xticks([n * W for n in (0, 1, 5, 10, 15, 20)], ["0", "W", "5W", "10W", "15W", "20W"])
axes.set_yticks([n * W for n in (1, 10, 20)], ["W", "10W", "20W"])
axes.set(xlim=(0, 20 * W), ylim=(0, 20.5 * W), xlabel="tokens so far", ylabel="keys kept and read")
axes.set_title("The ring fills once; from then on every token costs the same")
picture(figure, "07_flat", "Keys read by a token: flat with the ring, growing without")

# %% [markdown]
# ## Experiment: a ring that is too small
#
# The text once more, in pieces of C = 4, with fewer slots than W + C − 1. Nothing fails: the ring
# turns, all shapes are right. We count the keys that a token should have seen and that were gone,
# and look how much the logit that changes most differs from its value without a cache.

# %%
C = 4


class Small(RollingCache):
    """A ring that lacks some slots."""

    short = 0

    @property
    def capacity(self) -> int:
        """Return S less what is missing."""
        return W + C - 1 - self.short


for short in (0, 1, C - 1):
    Small.short = short
    cache, logits, lost = Small(config, model.backend, 1, C), [], 0
    for start in range(0, len(ids), C):
        logits.append(model([ids[start : start + C]], past_key_values=cache).logits[0])
        queries = np.arange(start, start + C)
        found = visible(queries, cache.key_positions[0], W).sum()
        lost += np.minimum(queries + 1, W).sum() - found
    change = np.abs(np.concatenate(logits) - at_once).max()
    effect = f"logits change by {change:.1f}" if lost else "logits stay the same"
    print(f"{cache.capacity} slots, {short} too few: {lost} keys lost, {effect}")
    assert (lost > 0) == (short > 0) == (change > 1e-6)
    assert lost == sum(range(short + 1)) * (len(ids) - W) / C  # 0; 1 in each piece; 3 + 2 + 1

# %% [markdown]
# A single missing slot costs one key in each piece, once the ring has turned. A short text never
# gets there, and that is why this mistake lives long in programs that are tested with short ones.
# With W slots, the number for single tokens, it is 3 + 2 + 1 = 6 keys in each piece.
#
# ## Exercise: the slot of token n
#
# A cache has window W and takes pieces of up to C tokens. In which slot is token n, counted from 0?


# %%
def slot(n: int, window: int, chunk: int) -> int:
    """Return the slot of token n."""
    return -1  # your turn


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong: look into a real cache."""
    for window, chunk in [(4, 1), (4, 2), (16, 8)]:
        small = dataclasses.replace(config, sliding_window=window)
        cache = RollingCache(small, model.backend, 1, chunk)
        for n in range(60):
            cache.admit(np.array([[n]]))
            expected = int(np.flatnonzero(cache.positions[0] == n)[0])
            if (got := answer(n, window, chunk)) != expected:
                hint = "the ring has S slots, and begins again at slot 0 after the last"
                if got == n % window:
                    hint = "a ring for pieces of C tokens has more than W slots"
                return f"Not yet: W = {window}, C = {chunk}, token {n}: got {got}. Hint: {hint}."
    return "Right."


print(check(slot))

# %% [markdown]
# <details><summary>Solution</summary>


# %%
def solution(n: int, window: int, chunk: int) -> int:
    """Return the slot of token n."""
    return n % (window + chunk - 1)


print(check(solution))
assert check(solution) == "Right."
assert check(lambda n, window, chunk: n % window) != "Right."
assert check(lambda n, window, chunk: n % (window + chunk)) != "Right."

# %% [markdown]
# </details>
#
# ## What to remember
#
# Keys and values never change once they are made, so they are kept. With a window they are kept in
# a ring: token n goes to slot n % S, over a token that nobody will see again. A piece is written
# first and then attends, so pieces of C tokens need S = W + C − 1 slots. The order of slots does
# not matter, since RoPE is in the keys and each slot's position is noted. Memory and time for a
# token stay the same however long the text.
#
# Next: [8. The forward pass](08_forward_pass.md)
