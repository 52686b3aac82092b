# %% [markdown]
# # 11. Half precision: what 16 bits cost
#
# So far each number had 64 bits. In this way Mistral-7B would fill 58 GB. Its weights are published
# with 16 bits a number, *half precision*, and that is how people run it. There are two such
# formats, and a model behaves differently in each. This chapter is about what they lose, how the
# loss grows from layer to layer, and when it changes a text.

# %%
import ml_dtypes
import numpy as np
from chapter import BLUE, GREY, ORANGE, RED, picture, say, show
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from ml_dtypes import bfloat16

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.operations import NUMPY_DTYPES, PlainBackend

# %% [markdown]
# ## How a number is stored
#
# A floating-point number is ± 1.fraction · 2^exponent: something between 1 and 2 times a power of
# two. One bit is the sign. Some bits hold the exponent; they decide how large and how small a
# number can be. The others hold the fraction; they decide how fine the steps are. Sixteen bits can
# be divided in two ways:

# %% tags=["remove-input"]
assert round(8 * 7_241_732_096 / 1e9) == 58  # GB
formats = {"float32": (8, 23), "float16": (5, 10), "bfloat16": (8, 7)}
largest = {
    "float32": r"$3.4 \cdot 10^{38}$",
    "float16": "65,504",
    "bfloat16": r"$3.4 \cdot 10^{38}$",
}
figure = Figure(figsize=(8, 3.1))
axes = figure.subplots()
for row, (name, (exponent, fraction)) in enumerate(formats.items()):
    info = ml_dtypes.finfo(NUMPY_DTYPES[name])
    assert (info.nexp, info.nmant) == (exponent, fraction)
    assert float(info.max) == 65504 if name == "float16" else 3.38e38 < float(info.max) < 3.41e38
    for column in range(1 + exponent + fraction):
        colour = GREY if column == 0 else ORANGE if column <= exponent else BLUE
        axes.add_patch(Rectangle((column, 2.2 * row), 0.9, 0.9, color=colour))
    says = f"{name}: largest number {largest[name]}, steps of $2^{{-{fraction}}}$ after 1"
    axes.text(0, 2.2 * row - 0.22, says, size=10)
    for colour, left, bits in ((ORANGE, 1, exponent), (BLUE, 1 + exponent, fraction)):
        meaning = " of exponent" if colour == ORANGE else " of fraction"
        text = f"{bits} bits" + (meaning if row == 0 else "")
        box = {"fc": colour, "ec": "none", "pad": 1.5}
        axes.text(left + bits / 2 - 0.05, 2.2 * row + 0.45, text, color="white", size=9,
                  ha="center", va="center", bbox=box)  # fmt: skip
    axes.text(0.45, 2.2 * row + 0.45, "±", color="white", ha="center", va="center")
axes.set(xlim=(-0.2, 32.2), ylim=(5.5, -0.9))
axes.axis("off")
axes.set_title("float16 has finer steps, bfloat16 has the range of float32")
picture(figure, "11_formats", "The bits of float32, float16 and bfloat16: sign, exponent, fraction")

# %% [markdown]
# *bfloat16* is simply the upper half of a float32. It has the same range, but only about 2½ decimal
# digits. *float16* has 3 digits and a bit, but what is larger than 65,504 becomes infinite, and
# what is very small becomes 0. Large models have a few very large numbers inside them, and training
# makes very small ones. So bfloat16 is the safer format, and most models are published in it.

# %%
numbers = [1.001, 1 / 3, 60000.0, 70000.0, 1e-9]
with np.errstate(over="ignore"):
    halves = np.array(numbers).astype(np.float16).tolist()
brains = np.array(numbers).astype(bfloat16).astype(np.float64).tolist()
rows = zip(numbers, halves, brains, strict=True)
print(
    "\n".join(f"{x:<10.6g} float16 {half:<10.6g} bfloat16 {brain:.6g}" for x, half, brain in rows)
)
assert halves[3:] == [np.inf, 0] and brains[3] == 70144
upper = np.array([bfloat16(1 / 3)]).view(np.uint16).astype(np.uint32)
assert (upper << 16).view(np.float32)[0] == float(bfloat16(1 / 3))

# %% [markdown]
# Each rounding moves a number by at most half a step, relative to its size 2⁻¹¹ = 0.05% in float16
# and 2⁻⁸ = 0.4% in bfloat16. Three bits fewer make a step 8 times as large.
#
# ## Rounding after each operation
#
# Why not compute with 16 bits all the way? Add 1 to a sum, again and again. When the step between
# neighbouring numbers has become 2, then sum + 1 rounds back to the sum, and it never grows again:


# %%
def count_up(dtype: type) -> float:
    """Return where a sum of ones stops growing."""
    total = dtype(0)
    while total + dtype(1) != total:
        total = total + dtype(1)
    return float(total)


print("float16 stops at", count_up(np.float16), "and bfloat16 at", count_up(bfloat16))
assert (count_up(np.float16), count_up(bfloat16)) == (2048, 256)

# %% [markdown]
# A dot product in Mistral-7B adds 4,096 numbers. So every good implementation, on a GPU too, adds
# up in 32 bits inside an operation, and rounds only its result to 16. Here is how the package does
# it: `widen` to the wide dtype, compute, `round`.

# %% tags=["remove-input"]
show(PlainBackend.linear, PlainBackend.rms_norm, PlainBackend.round)

# %% [markdown]
# Let us open the demo model in each dtype, and let it read texts that it wrote itself in float64.
# (Inside the operations we compute in float64 here, so that the page has the same numbers on every
# processor. What matters is the rounding after each operation.)


# %%
def opened(dtype: str) -> MistralForCausalLM:
    """Return the demo model with activations in a dtype, and float64 inside operations."""
    backend = PlainBackend(dtype)
    backend.compute_dtype = np.dtype(np.float64)
    return MistralForCausalLM.from_pretrained(DEMO, backend=backend)


tokenizer = MistralTokenizer.from_pretrained(DEMO)
models = {dtype: opened(dtype) for dtype in ("float64", "float32", "float16", "bfloat16")}
words = "fox bear king girl boy bird tree cat dog house wolf queen".split()
batch = tokenizer([f"Once there was a {word}" for word in words])
greedy = {"do_sample": False, "max_new_tokens": 50, "eos_token_id": []}
texts = models["float64"].generate(batch.input_ids, batch.attention_mask, **greedy)
T = batch.input_ids.shape[1]
mask = np.pad(batch.attention_mask, ((0, 0), (0, 50)), constant_values=1)
outputs = {
    dtype: model(texts, attention_mask=mask, output_hidden_states=True)
    for dtype, model in models.items()
}

# %% [markdown]
# ## The error, layer by layer
#
# After each layer we compare the residual stream with that of float64, at all tokens of the texts.
# The error is relative: the length of the difference, divided by the length of the vectors.


# %%
def relative_error(dtype: str, layer: int) -> float:
    """Return the relative error of the stream after a layer, over all new tokens."""
    got, exact = (outputs[d].hidden_states[layer][:, T:] for d in (dtype, "float64"))
    return float(np.linalg.norm(got.astype(np.float64) - exact) / np.linalg.norm(exact))


N = models["float64"].config.num_hidden_layers
errors = {
    dtype: [relative_error(dtype, layer) for layer in range(1, N + 1)]
    for dtype in ("float32", "float16", "bfloat16")
}
ratios = np.array(errors["bfloat16"]) / np.array(errors["float16"])
assert (ratios > 4).all() and (ratios < 16).all()
assert errors["bfloat16"][-1] > errors["bfloat16"][0]

# %% tags=["remove-input"]
figure = Figure(figsize=(8, 3.6))
axes = figure.subplots()
layers = np.arange(1, N + 1)
for (dtype, values), colour in zip(errors.items(), (GREY, BLUE, ORANGE), strict=True):
    axes.plot(layers, values, "o-", color=colour)
    bits = formats[dtype][1]
    axes.text(1, values[0] * 1.8, f"{dtype}: {bits} bits of fraction", va="bottom", size=10)
    axes.axhline(2.0 ** -(bits + 1), color=colour, ls=":", lw=1)
axes.text(1, 2.0**-24 * 0.6, "dotted: the most that one rounding can do", size=9, va="top")
axes.set(yscale="log", xlabel="layer", xlim=(0.8, N + 0.2), xticks=layers, ylim=(1e-8, 5e-2))
axes.set_xticklabels([*map(str, layers[:-1]), f"{N} and\nfinal norm"])
axes.set(
    ylabel="relative error of the stream",
    title="Fewer bits, larger errors, from the first layer on",
)
picture(figure, "11_layers", "Relative error after each layer for float32, float16 and bfloat16")

# %% tags=["remove-input"]
grown = errors["bfloat16"][-1] / errors["bfloat16"][0]
say(f"""
The error of bfloat16 is about {ratios.mean():.0f} times that of float16: its steps are 8 times as
large. And errors do not explode: from the first layer to the last one they grow {grown:.1f}-fold.
Each rounding goes up or down as if by chance, so that most of them cancel, and RMSNorm keeps the
sizes of the vectors.
""")

# %% [markdown]
# ## Experiment: where greedy texts part
#
# Greedy choice takes the highest logit. Each of our texts was chosen so in float64. At which tokens
# would half precision have chosen another one?

# %%
logits = {dtype: o.logits[:, T - 1 : -1].astype(np.float64) for dtype, o in outputs.items()}
exact = logits["float64"]
top = np.sort(exact, axis=-1)
margin = top[..., -1] - top[..., -2]  # (B, 50), of the highest logit over the second highest
error = {dtype: np.abs(values - exact).max(axis=-1) for dtype, values in logits.items()}
changed = {dtype: v.argmax(axis=-1) != exact.argmax(axis=-1) for dtype, v in logits.items()}
for dtype in models:
    assert (margin[changed[dtype]] <= 2 * error[dtype][changed[dtype]]).all()

# %% tags=["remove-input"]
lines = [
    f"| {dtype} | {error[dtype].max():.1g} | {changed[dtype].sum()} of {margin.size} "
    f"| {changed[dtype].any(axis=1).sum()} of {len(words)} |"
    for dtype in ("float32", "float16", "bfloat16")
]
rows = "\n".join(lines)
say(f"""
| dtype | largest error of a logit | tokens that change | texts that part |
|---|---|---|---|
{rows}
""")

# %% [markdown]
# The assertion says why. An error of e can lift one logit by e and lower another by e. So the order
# of the two highest can change only if their *margin*, the difference between them, is at most 2e.
# Where the model is sure, the margin is large, and no rounding matters. Where two tokens are nearly
# tied, the smallest error decides. Let us take the first text that parts in bfloat16, at the token
# where it does:

# %%
row = int(np.argmax(changed["bfloat16"].any(axis=1)))
place = int(np.argmax(changed["bfloat16"][row]))
assert changed["bfloat16"][row, place]
two = np.array([logits[dtype][row, place].argmax() for dtype in ("float64", "bfloat16")])
pieces = tokenizer.convert_ids_to_tokens(two.tolist())
print(pieces, "margin", f"{margin[row, place]:.3f}")

# %% tags=["remove-input"]
edges = np.array([0, 0.03, 0.1, 0.3, 1, 3, 10, 1000])
names = [
    "below\n0.03",
    "0.03\nto 0.1",
    "0.1\nto 0.3",
    "0.3\nto 1",
    "1 to 3",
    "3 to 10",
    "above\n10",
]
everywhere, _ = np.histogram(margin, edges)
figure = Figure(figsize=(8, 3.4))
left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
flipped, _ = np.histogram(margin[changed["bfloat16"]], edges)
share = 100 * flipped / np.maximum(everywhere, 1)
left.bar(np.arange(7), share, 0.8, color=RED)
for n in range(7):
    left.text(
        n, share[n] + 0.01 * share.max(), f"{flipped[n]} of\n{everywhere[n]}", ha="center", size=8
    )
left.margins(y=0.2)
left.set(ylabel="changed tokens, percent", xlabel="margin of the highest logit")
left.set_xticks(np.arange(7), names, size=8)
left.set_title("bfloat16 changes only near-ties")
for n, dtype in enumerate(("float64", "float16", "bfloat16")):
    values = logits[dtype][row, place, two]
    for value, piece, colour, width in zip(values, pieces, (BLUE, ORANGE), (5, 2), strict=True):
        right.plot([n - 0.2, n + 0.2], [value] * 2, color=colour, lw=width)
        if n == 0:
            right.text(-0.3, value, f"“{piece}”", ha="right", va="center", size=9)
right.set_xticks(range(3), ["float64", "float16", "bfloat16"])
right.set(ylabel="logit", xlim=(-1.4, 2.4), title="One near-tie in three formats")
right.margins(y=0.3)
right.ticklabel_format(axis="y", useOffset=False)
picture(figure, "11_ties", "Tokens by margin, and those that bfloat16 changes; one near-tie")

# %%
begin = texts[row, : T + place]  # the text up to the near-tie
begin = begin[mask[row, : T + place] == 1]
continued = {}
for dtype in ("float64", "bfloat16"):
    longer = models[dtype].generate([begin], **(greedy | {"max_new_tokens": 20}))
    continued[dtype] = longer[0, len(begin) :]
assert continued["float64"][0] == two[0] and continued["bfloat16"][0] == two[1]

# %% tags=["remove-input"]
chances = np.exp(exact[row, place, two] - top[row, place, -1])
chances /= np.exp(exact[row, place] - top[row, place, -1]).sum()


def tail(dtype: str) -> str:
    """Return the continuation as one line."""
    whole = tokenizer.decode([*begin, *continued[dtype]], skip_special_tokens=True)
    return " ".join(whole[len(tokenizer.decode(begin, skip_special_tokens=True)) :].split())


tied = logits["bfloat16"][row, place, two]
step = 2.0 ** (np.floor(np.log2(np.abs(exact[row, place, two[0]]))) - 7)
rounded = f"A logit of this size has steps of {step:.2g} in bfloat16, more than the margin. "
if step < margin[row, place]:
    rounded = "The errors of all layers together are more than the margin. "
if tied[0] == tied[1]:
    rounded += "Both logits round to the same number, and then the smaller id is taken."
else:
    rounded += "They come out in the other order."
say(f"""
In float64 `{pieces[0]}` has a probability of {chances[0]:.2%}, and `{pieces[1]}` has
{chances[1]:.2%}. {rounded}

> {" ".join(tokenizer.decode(begin, skip_special_tokens=True).split())}
>
> float64 goes on: **{tail("float64")}**
>
> bfloat16 goes on: **{tail("bfloat16")}**

After the first other token the two read different texts, and each goes its own way. Neither is
wrong: the model itself finds both tokens nearly equally good. So two implementations should be
compared by their logits, not by their texts.
""")

# %% [markdown]
# ## Exercise: predict the dtype from an error
#
# Given exact numbers and the same numbers rounded once: to which format were they rounded? Think of
# the largest *relative* error, at most 2⁻²⁴, 2⁻¹¹ or 2⁻⁸.


# %%
def dtype_of(exact: np.ndarray, rounded: np.ndarray) -> str:
    """Return "float32", "float16" or "bfloat16"; both arrays are float64."""
    return ""  # your turn


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong."""
    random = np.random.default_rng(1)
    for size in (1.0, 1000.0, 0.01):
        for name in ("float32", "float16", "bfloat16"):
            exact = size * random.uniform(1, 2, 500)
            rounded = exact.astype(NUMPY_DTYPES[name]).astype(np.float64)
            if (got := answer(exact, rounded)) != name:
                relative = np.abs(rounded / exact - 1).max()
                return (
                    f"Not yet: for {name} and numbers of about {size:g} it returned {got!r}. "
                    f"Hint: the largest relative error is {relative:.1g}."
                )
    return "Right."


print(check(dtype_of))

# %% [markdown]
# <details><summary>Solution</summary>


# %%
def solution(exact: np.ndarray, rounded: np.ndarray) -> str:
    """Return "float32", "float16" or "bfloat16"; both arrays are float64."""
    relative = np.abs((rounded - exact) / exact).max()
    if relative <= 2.0**-24:
        return "float32"
    return "float16" if relative <= 2.0**-11 else "bfloat16"


def absolute(exact: np.ndarray, rounded: np.ndarray) -> str:
    """Make the mistake of looking at the absolute error."""
    largest = np.abs(rounded - exact).max()
    return "float32" if largest <= 2.0**-24 else "float16" if largest <= 2.0**-11 else "bfloat16"


assert check(solution) == "Right."
assert check(absolute) != "Right."

# %% [markdown]
# </details>
#
# ## What to remember
#
# float16 has finer steps, bfloat16 a wider range; a rounding costs at most 2⁻¹¹ or 2⁻⁸ of a number.
# Operations add up in 32 bits and round their result. The errors of all layers together stay of the
# size of a few roundings. They change a greedy text only at a near-tie, where the margin of the
# highest logit is at most twice the error; from there on the texts differ.
#
# Next: [12. A GPU kernel](12_gpu_kernel.md)
