# %% [markdown]
# # 5. Grouped heads: several queries, one set of keys
#
# One attention gives each token one weighted mean of what earlier tokens offer. But a word has
# several questions at once: who is this about, what was the colour, has the sentence a verb
# already? So a layer runs several attentions side by side, its *heads*. Each head has queries of
# its own, a softmax of its own, and a result of d numbers, the *head width*. The results are laid
# side by side and mixed by one more matrix, `o_proj`, into what is added to the token's vector.
#
# In the transformer as it was first made, each head has its own keys and values too. Mistral lets
# several query heads share them. H is the number of query heads, K that of key/value heads:

# %%
import dataclasses

import numpy as np
from chapter import BLUE, GREY, ORANGE, PALE, picture, say, show
from matplotlib.figure import Figure

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.operations import PlainBackend

model = MistralForCausalLM.from_pretrained(DEMO, dtype="float64")
config = model.config
D, d = config.hidden_size, config.head_dim
H, K = config.num_attention_heads, config.num_key_value_heads
first = model.weights.model.layers[0].self_attn
for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
    print(name, getattr(first, name).weight.shape)
assert first.q_proj.weight.shape == (H * d, D) and first.k_proj.weight.shape == (K * d, D)

# %% tags=["remove-input"]
say(f"""
These are the matrices of one layer of the small model that comes with this package. A token's
vector has D = {D} numbers. `q_proj` makes H · d = {H} · {d} = {H * d} of them: {H} queries.
`k_proj` and `v_proj` make K · d = {K} · {d} = {K * d} each: {K} keys and {K} values. So
H/K = {H // K} query heads share one key/value head. This is *grouped-query attention*
([Ainslie and others, 2023](https://arxiv.org/abs/2305.13245)).
""")

# %% [markdown]
# ## Why share keys and values, and not queries?
#
# A model writes one token at a time. To make the next one, the newest token needs its own query,
# once; then nobody asks for that query again. But it needs the keys and values of *all* the tokens
# that it can see, in every layer. These do not change once they are made, so they are kept in
# memory, in the *cache* (chapter 7). For every new token the whole cache is read.
#
# Reading is the trouble. A processor multiplies much faster than it reads numbers from memory, and
# a large cache is memory that no other text can use. Queries cost nothing to keep. So one saves
# where it counts: fewer keys and values, as many queries as before. The groups still ask different
# questions, only they search the same keys. A little quality is lost: with K = 1 (*multi-query
# attention*) it can be noticed; with groups hardly.


# %% tags=["remove-input"]
def heads(axes, shared: int, name: str) -> None:
    """Draw H query heads above `shared` key/value heads, and who reads whom."""
    size, at = 0.8, np.arange(H) + 0.5
    homes = (np.arange(shared) + 0.5) * H / shared
    for h in range(H):
        home = homes[h // (H // shared)]
        axes.plot([at[h], home], [2.1, 0.9], color=GREY, lw=1.2, zorder=1)
        axes.bar(at[h], size, size, 2.0, color=BLUE)
        axes.text(at[h], 2.4, h, ha="center", va="center", color="white", weight="bold")
    for g, home in enumerate(homes):
        axes.bar(home, size, size, 0.2, color=ORANGE)
        axes.text(home, 0.6, g, ha="center", va="center", weight="bold")
    axes.barh(-1.0, H * shared / H, 0.5, 0, color=ORANGE)
    axes.barh(-1.0, H - shared, 0.5, shared, color=PALE)
    axes.text(H / 2, -0.55, f"{2 * shared * d} numbers a layer", ha="center", va="center", size=9)
    axes.set_title(name, loc="center")
    axes.set(xlim=(-0.1, H + 0.1), ylim=(-1.4, 3.0))
    axes.axis("off")


figure = Figure(figsize=(8, 3.4))
figure.suptitle(f"{H // K} query heads share a key/value head: the cache is {H // K} times smaller")
panels = figure.subplots(1, 3)
heads(panels[0], H, f"K = {H}, each its own")
heads(panels[1], K, f"K = {K}, grouped: this model")
heads(panels[2], 1, "K = 1, one for all")
panels[0].text(-0.15, 2.4, "query\nheads", ha="right", va="center", color=BLUE, size=9)
panels[0].text(-0.15, 0.6, "key/value\nheads", ha="right", va="center", color="#A06000", size=9)
panels[0].text(-0.15, -1.0, "kept for\neach token", ha="right", va="center", size=9)
picture(
    figure, "05_groups", "Query heads as boxes, joined by lines to the key/value heads they read"
)

# %% [markdown]
# ## Who reads whom
#
# Query head h reads key/value head h // (H/K): the first H/K query heads read head 0, the next ones
# head 1, and so on. In NumPy a reshape does it: the queries of one token, (H, d), are cut into K
# groups of G = H/K, and `@` multiplies each group with the keys of its head. No key is copied. The
# weights then take their mean over the values of that same head.

# %% tags=["remove-input"]
show(PlainBackend.softmax)

# %% [markdown]
# Let us do the same by hand, one query head after the other, for the newest token of a text. `tap`
# is called with all that is computed on the way; we keep the rotated queries and keys of each layer
# and the weights.

# %%
tokenizer = MistralTokenizer.from_pretrained(DEMO)
text = "Once upon a time, there was a little fox. The fox was very"
ids = tokenizer.encode(text)
stages: dict[str, np.ndarray] = {}
logits = model([ids], tap=stages.__setitem__).logits


def by_hand(layer: int) -> np.ndarray:
    """Return the attention weights of the newest token's heads (H, S); S counts the keys."""
    q = stages[f"layers.{layer}.q_rotated"][0, -1]  # (H, d)
    k = stages[f"layers.{layer}.k_rotated"][0]  # (S, K, d)
    rows = []
    for h in range(H):
        g = h // (H // K)  # the key/value head that query head h reads
        exp = np.exp(k[:, g] @ q[h] / np.sqrt(d))
        rows.append(exp / exp.sum())
    return np.array(rows)


assert len(ids) <= config.sliding_window  # so that all tokens are visible to the newest
for layer in range(config.num_hidden_layers):
    package = stages[f"layers.{layer}.attention_weights"][0, :, -1]  # (H, S)
    assert np.abs(by_hand(layer) - package).max() < 1e-12
print("every layer: the same weights as the package")

# %% [markdown]
# Do the heads of a group really ask for different things, though they search the same keys? Here is
# what each looks at most, in the layer whose heads differ most:

# %%
pieces = tokenizer.convert_ids_to_tokens(ids)
weights = np.stack([by_hand(layer) for layer in range(config.num_hidden_layers)])  # (N, H, S)
spread = [np.abs(w[:, None] - w).sum(axis=-1).mean() for w in weights]
layer = int(np.argmax(spread))
print(f"layer {layer}, what {pieces[-1]!r} at {len(ids) - 1} looks at:")
for h, row in enumerate(weights[layer]):
    best = np.argsort(-row, kind="stable")[:3]
    looks = ",  ".join(f"{row[j]:.2f} {pieces[j]!r} at {j}" for j in best)
    print(f"query head {h}, keys of head {h // (H // K)}:  {looks}")
groups = weights[layer].reshape(K, H // K, -1)
assert all(np.abs(group[0] - group[1]).max() > 0.01 for group in groups)

# %% [markdown]
# ## Experiment: a model with as many key heads as query heads
#
# Grouping is a special case of having all heads: those of a group are equal. So we can build the
# model without groups. Repeat the rows of `k_proj` and `v_proj` so that every query head gets a
# copy of the keys and values that it shared, and say K = H. It must compute the same, with a larger
# cache.


# %%
def ungrouped(tiled: bool = False) -> MistralForCausalLM:
    """Return the model with K = H; `tiled` is the wrong order, 0 1 0 1 in place of 0 0 1 1."""
    copied = np.tile(np.arange(K), H // K) if tiled else np.repeat(np.arange(K), H // K)
    tensors = dict(model.tensors)
    for name, tensor in model.tensors.items():
        if "k_proj" in name or "v_proj" in name:
            tensors[name] = tensor.reshape(K, d, D)[copied].reshape(H * d, D)
    every = dataclasses.replace(config, num_key_value_heads=H)
    return MistralForCausalLM(every, tensors=tensors, dtype="float64")


def cache_bytes(model: MistralForCausalLM) -> int:
    """Return the bytes of all keys and values, after reading the text."""
    cache = model([ids]).past_key_values
    return sum(array.nbytes for array in cache.k + cache.v)


large, wrong = ungrouped(), ungrouped(tiled=True)
same = np.abs(large([ids]).logits - logits).max()
other = np.abs(wrong([ids]).logits - logits).max()
ratio = cache_bytes(large) / cache_bytes(model)
print("as many key heads as query heads: logits change by less than 1e-12:", same < 1e-12)
print(f"the cache is {ratio:g} times larger")
print(f"shared in the wrong order: logits change by {other:.1f}")
assert same < 1e-12 and ratio == H / K and other > 0.1

# %% tags=["remove-input"]
say(f"""
The outputs agree, and the grouped model needs {ratio:g} times less memory. (*Logits* are the
model's output: a number for each piece of the vocabulary, which says how likely it comes next.) The
last line is a frequent mistake: to read key/value head h % K, so that neighbours do not share but
take turns. It raises no error, since all shapes are right. The model only talks nonsense.
""")

# %% [markdown]
# ## Exercise: the cache of Mistral 7B
#
# Mistral 7B has 32 layers, 32 query heads on 8 key/value heads, and a head width of 128. It keeps
# 4,096 tokens, in numbers of 2 bytes. How many bytes is the cache of one text?


# %%
def size(layers: int, key_heads: int, width: int, tokens: int, bytes_of_a_number: int) -> int:
    """Return the bytes of a cache."""
    return 0  # your turn


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong."""
    cases = [
        ("this model", (config.num_hidden_layers, K, d, len(ids), 8), cache_bytes(model)),
        ("Mistral 7B", (32, 8, 128, 4096, 2), 512 * 2**20),
        ("Mistral 7B without groups", (32, 32, 128, 4096, 2), 2 * 2**30),
    ]
    for name, arguments, expected in cases:
        if (got := answer(*arguments)) != expected:
            hint = "what is kept for each token: a key and a value for each head, in each layer"
            if 2 * got == expected:
                hint = "half is missing: there are keys, and there are values"
            return f"Not yet: for {name} it returned {got:,}. Hint: {hint}."
    return "Right."


print(check(size))

# %% [markdown]
# <details><summary>Solution</summary>


# %%
def solution(layers: int, key_heads: int, width: int, tokens: int, bytes_of_a_number: int) -> int:
    """Return the bytes of a cache."""
    return 2 * layers * key_heads * width * tokens * bytes_of_a_number  # 2: keys and values


print(check(solution))
for key_heads in (8, 32):
    print(f"{key_heads:2} key/value heads: {solution(32, key_heads, 128, 4096, 2) >> 20:,} MiB")
assert check(solution) == "Right."
assert check(lambda *arguments: solution(*arguments) // 2) != "Right."

# %% [markdown]
# With groups the cache of one text is 512 MiB; without, it would be 2 GiB. The weights of Mistral
# 7B take 14.5 GB. So on a graphics card of 24 GB there would be room for the caches of a handful of
# texts; with groups it is some twenty.
#
# </details>
#
# ## What to remember
#
# A layer has H query heads: so many questions at once. Keys and values are kept for later tokens
# and read for each of them, queries are not; so H/K query heads share a key/value head, and the
# cache is H/K times smaller. Query head h reads key/value head h // (H/K), neighbours together.
#
# Next: [6. The window](06_window.md)
