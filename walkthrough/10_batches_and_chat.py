# %% [markdown]
# # 10. Batches, padding and chat
#
# Two things that a program does around a model. It runs several texts at once, in a *batch*, and
# texts of different lengths do not fit into a rectangle. And it holds a conversation, though the
# model knows only how to continue a row of tokens. Both come down to putting the right ids at the
# right positions.

# %%
import numpy as np
from chapter import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, picture, say, show
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer
from tinymistral.chat import Conversation, chat_ids, user_turn
from tinymistral.inputs import check_positions
from tinymistral.operations import visible

tokenizer = MistralTokenizer.from_pretrained(DEMO)
model = MistralForCausalLM.from_pretrained(DEMO, dtype="float64")
prompts = ["Once upon a time", "The fox", "A little girl"]
batch = tokenizer(prompts)
B, T = batch.input_ids.shape
print(f"{batch.input_ids}\n{batch.attention_mask}")

# %% tags=["remove-input"]
D, F, N, V = 4096, 14336, 32, 32000
lengths = batch.attention_mask.sum(axis=1)
filling = batch.input_ids[batch.attention_mask == 0]
parameters = 2 * V * D + N * (2 * D * D + 2 * D * 1024 + 3 * D * F + 2 * D) + D
assert parameters == 7_241_732_096
say(f"""
Why a batch? To compute one token, a model reads all its weights from memory once: those of
Mistral-7B are {parameters:,} numbers of two bytes, {
    2 * parameters / 1e9:.1f} GB. Eight rows at once
need the same {2 * parameters / 1e9:.1f} GB for eight tokens, and reading is what takes the time.

The shape of a batch is (B, T), B rows of T tokens. Our rows have {lengths[0]}, {lengths[1]} and {
    lengths[2]
} tokens. The shorter ones are filled up
with tokens that mean nothing, *padding*. The *attention mask* says which tokens are real (1) and
which are padding (0). Mistral has no id of its own for padding. The tokenizer takes
{filling[0]}, which is `</s>`, but any id would do, as we shall see.
""")

# %% [markdown]
# ## What is masked, and why on the left
#
# Every token has a *position*, its place in its text: 0, 1, 2 and so on. Padding has none; here we
# write −1. Positions do all the work, for there is one rule of what a token (the *query*) may look
# at (a *key*):

# %% tags=["remove-input"]
show(visible)

# %% [markdown]
# A key at −1 is visible to nobody. So its share of attention is not small but exactly 0, and the
# real tokens cannot tell that there is padding. The model computes something *at* the padding too,
# since a rectangle has no holes. It means nothing, and nobody reads it.
#
# That would work on either side. Generation decides for the left: the next token comes after the
# *last* column. With padding on the left, every row ends there. With padding on the right, the last
# column of a short row is padding, its logits mean nothing, and the new token would come after a
# gap.

# %%
mask = batch.attention_mask
positions = np.where(mask == 1, np.cumsum(mask, axis=1) - 1, -1)
right = tokenizer(prompts, padding_side="right")  # to compare
print(positions)


# %% tags=["remove-input"]
def grid(axes, ids: np.ndarray, positions: np.ndarray) -> None:
    """Draw the tokens of a batch as cells, with their pieces and positions."""
    for row, (row_ids, row_positions) in enumerate(zip(ids, positions, strict=True)):
        for column, (token, position) in enumerate(zip(row_ids, row_positions, strict=True)):
            real = position >= 0
            colour = "#CFE6F5" if real else PALE
            axes.add_patch(Rectangle((column, row), 0.96, 0.9, color=colour))
            piece = tokenizer.convert_ids_to_tokens(int(token)) if real else "padding"
            axes.text(column + 0.48, row + 0.3, piece, ha="center", va="center",
                      size=9 if real else 8, color="black" if real else GREY)  # fmt: skip
            axes.text(column + 0.48, row + 0.68, str(position).replace("-", "−"), ha="center",
                      va="center", size=9, color=BLUE if real else GREY)  # fmt: skip
    axes.set(xlim=(-0.05, ids.shape[1] + 1.05), ylim=(len(ids) + 0.05, -0.05))
    axes.axis("off")


right_positions = np.where(right.attention_mask == 1, np.arange(right.input_ids.shape[1]), -1)
figure = Figure(figsize=(8, 4.2))
above, below = figure.subplots(2, 1)
grid(above, batch.input_ids, positions)
grid(below, right.input_ids, right_positions)
for row in range(len(prompts)):
    above.add_patch(Rectangle((T, row), 0.96, 0.9, fill=False, ec=GREEN, lw=1.5, ls="--"))
    above.text(T + 0.48, row + 0.45, f"next\n({positions[row].max() + 1})", ha="center",
               va="center", size=9, color=GREEN)  # fmt: skip
    column = right.attention_mask[row].sum()
    below.add_patch(Rectangle((column, row), 0.96, 0.9, fill=False, ec=ORANGE, lw=1.8, ls="--"))
    if column == T:
        below.text(T + 0.48, row + 0.45, "next", ha="center", va="center", size=9, color="#9A6A00")
above.set_title("Padding on the left: all rows go on in the same column. Blue: positions")
below.set_title("Padding on the right: the next tokens (orange) belong into different columns")
picture(figure, "10_grid", "A batch padded on the left and on the right, with positions")

# %% tags=["remove-input"]
figure = Figure(figsize=(8, 2.8))
for row, axes in enumerate(figure.subplots(1, len(prompts))):
    seen = visible(positions[row], positions[row], model.config.sliding_window)
    colours = np.where(seen, 0.75, 0.0)
    axes.pcolormesh(colours, cmap="Blues", vmin=0, vmax=1, edgecolors=PALE, linewidth=1)
    tokens = tokenizer.convert_ids_to_tokens(batch.input_ids[row].tolist())
    labels = [t if p >= 0 else "padding" for t, p in zip(tokens, positions[row], strict=True)]
    ticks = np.arange(T) + 0.5
    axes.set(ylim=(T, 0), aspect="equal")
    axes.set_xticks(ticks, labels, size=8, rotation=90)
    axes.set_yticks(ticks, labels, size=8)
    axes.tick_params(length=0)
    axes.set_title(f"“{prompts[row]}”", size=10)
figure.suptitle("Who (row) may look at whom (column): padding sees nothing, and nobody sees it",
                x=0.01, ha="left", size=11)  # fmt: skip
picture(figure, "10_visible", "Masks of three padded rows: padding is an empty row and column")

# %% [markdown]
# ## Experiment: alone, and padded
#
# Does a text feel that it is padded? We compare the logits of the last token of each prompt, alone
# and in the batch. Then we make mistakes on purpose.


# %%
def last_logits(ids: np.ndarray, **options: np.ndarray) -> np.ndarray:
    """Return the logits (B, V) of the last column."""
    return model(ids, **options).logits[:, -1]


alone = np.concatenate([last_logits([tokenizer.encode(prompt)]) for prompt in prompts])
padded = last_logits(batch.input_ids, attention_mask=mask)
other_ids = np.where(mask == 1, batch.input_ids, 500)
columns = np.tile(np.arange(T), (B, 1))
refilled = last_logits(other_ids, attention_mask=mask)
shifted = last_logits(batch.input_ids, attention_mask=mask, position_ids=columns)
forgotten = np.abs(last_logits(batch.input_ids) - alone).max()
assert np.abs(padded - alone).max() < 1e-11
assert np.abs(refilled - padded).max() == 0
assert np.abs(shifted - alone).max() < 1e-11
assert forgotten > 0.1

# %% tags=["remove-input"]
say(f"""
| what is done | largest difference of a logit |
|---|---|
| padded on the left, with its mask | below 1e-11, a rounding error |
| the same, padding has another id | exactly 0 |
| real tokens get positions that count the padding too | below 1e-11 |
| the mask is forgotten: padding is looked at | {forgotten:.1f} |

The third row may surprise. RoPE (chapter 4) knows only the difference of two positions, so it does
not matter where a row starts to count. The last row is the classic mistake. No error message says
so; the text is only worse than it should be.
""")

# %% [markdown]
# `generate` takes a batch padded on either side. It drops the padding, and pads on the left itself.
# In the cache there is no padding at all: it is never written.

# %%
options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": []}
from_left = model.generate(batch.input_ids, batch.attention_mask, **options)[:, T:]
from_right = model.generate(right.input_ids, right.attention_mask, **options)[:, T:]
singly = [model.generate([tokenizer.encode(p)], **options)[0, -8:] for p in prompts]
assert (from_left == from_right).all() and (from_left == singly).all()
rows = zip(prompts, tokenizer.batch_decode(from_left), strict=True)
print("\n".join(f"{prompt} | {text}" for prompt, text in rows))

# %% [markdown]
# ## Chat: a conversation is one row of ids
#
# A model continues a text. How can it answer? It has been trained further, on many conversations
# that are all written in one fixed format, and learned to continue them. Such a model is called an
# *Instruct* model. Its layers and its code are the same. In Mistral's format, what the user says
# stands between `[INST]` and `[/INST]` (for *instruction*), the answer follows, and the special
# token `</s>`, id 2, ends it. So an answer is what the model writes between `[/INST]` and `</s>`.
# The program puts the markers around what you type, and stops at `</s>`.

# %%
messages = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A little fox."},
    {"role": "user", "content": "Tell me a story."},
]
conversation_ids = chat_ids(tokenizer, messages)
print(tokenizer.decode(conversation_ids))

# %% tags=["remove-input"]
first = user_turn(tokenizer, messages[0]["content"])
answer = tokenizer.encode(messages[1]["content"], add_special_tokens=False)
second = user_turn(tokenizer, messages[2]["content"], first=False)
assert [*first, *answer, tokenizer.eos_token_id, *second] == conversation_ids
opening = len(tokenizer.encode("[INST]", add_special_tokens=False))
runs = [("<s>", 1, PURPLE, ""), ("[INST] Who are you? [/INST]", len(first) - 1, BLUE, "user"),
        ("A little fox.", len(answer), GREEN, "answer"), ("</s>", 1, PURPLE, ""),
        ("[INST] Tell me a story. [/INST]", len(second), BLUE, "user"),
        ("to be continued", 0, GREEN, "by the model")]  # fmt: skip
figure = Figure(figsize=(8, 1.9))
axes = figure.subplots()
left = 0.0
for text, tokens, colour, who in runs:
    width = 2 + 0.9 * len(text)
    middle = {"x": left + width / 2 - 0.2, "ha": "center", "va": "center"}
    axes.add_patch(
        Rectangle((left, 0), width - 0.4, 1, fc=colour if tokens else "white", ec=colour)
    )
    axes.text(y=0.5, s=text, size=9, color="white" if tokens else colour, **middle)
    axes.text(y=1.3, s=who, size=9, color=colour, **middle)
    if tokens:
        count = f"{tokens} tokens" if who else str(tokens)
        axes.text(y=-0.3, s=count, size=8, color=GREY, **middle)
    left += width
axes.set(xlim=(-0.5, left), ylim=(-0.6, 1.7))
axes.axis("off")
axes.set_title(
    "A conversation is one row of ids. Purple: special tokens, which begin it and end an answer"
)
picture(figure, "10_chat", "A conversation as a row: special tokens, user turns, answers")

# %% tags=["remove-input"]
say(f"""
In Mistral-7B v0.1 and v0.2 `[INST]` is ordinary text ({opening} tokens with our tokenizer); since
v0.3 it is a special token with an id of its own. A *system prompt* holds standing instructions,
such as “answer in verse”. It is put before the user's first message (since v0.3, the last one),
within the same `[INST]`.
""")

# %% [markdown]
# Two rules keep such a row right. `<s>` comes once, at the very beginning. And a program hands on
# ids, not text. If everything were written into one text first, with `<s>` and `</s>` in it, nobody
# could tell a special token from one that a user typed. Here each message is tokenized by itself,
# and the special ids are put between the messages. What a user types stays text:

# %%
typed = chat_ids(tokenizer, [{"role": "user", "content": "Say </s> and <s>"}])
print("special ids:", [i for i in typed if i in (1, 2)])
assert typed.count(1) == 1 and typed.count(2) == 0

# %% [markdown]
# Each turn makes the row longer, but nothing is computed twice: the keys and values of earlier
# turns stay in the cache. `Conversation` ([chat.py](../tinymistral/chat.py)) does that. (The demo
# model is no Instruct model, so what it answers makes no sense. We only count.)

# %%
conversation = Conversation(model, tokenizer)
lines = []
for question in ("Who are you?", "Tell me a story."):
    held = int(conversation.cache.count[0])
    for _ in conversation.ask(question, do_sample=False, max_new_tokens=12):
        pass  # a program would print the text here, as it comes
    computed = int(conversation.cache.count[0]) - held
    lines.append(f"{question:18} {held:2} tokens in the cache already, {computed} computed")
print("\n".join(lines))

# %% [markdown]
# ## Exercise: the positions of a padded row
#
# Given one row of an attention mask, return the position of each column: −1 for padding, and real
# tokens counted from 0. Padding may be anywhere.


# %%
def row_positions(mask: list[int]) -> list[int]:
    """Return the position of each column."""
    return []  # your turn


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong."""
    for mask in ([1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0], [0, 1, 0, 0, 1, 1]):
        row = np.array([mask])
        expected = check_positions(row, None, row.shape, model.new_cache(1))[0].tolist()
        if (got := list(answer(mask))) != expected:
            hint = "one number for each column"
            if len(got) == len(mask):
                hint = "count only the ones that came before; where the mask is 0 put -1"
            return f"Not yet: for {mask} it returned {got}. Hint: {hint}."
    return "Right."


print(check(row_positions))

# %% [markdown]
# <details><summary>Solution</summary>


# %%
def solution(mask: list[int]) -> list[int]:
    """Return the position of each column."""
    return [sum(mask[:column]) if real else -1 for column, real in enumerate(mask)]


print(solution([0, 0, 1, 1, 1]))
assert check(solution) == "Right."
assert check(lambda mask: list(range(len(mask)))) != "Right."

# %% [markdown]
# </details>
#
# ## What to remember
#
# A batch is a rectangle; short rows are padded, on the left, so that all go on in the same column.
# Padding has position −1, is visible to nobody, and its own results are not read. What is computed
# for a row does not depend on the rows beside it. A conversation is one row of ids with markers
# around what the user said; the answer is what the model writes until `</s>`.
#
# Next: [11. Half precision](11_half_precision.md)
