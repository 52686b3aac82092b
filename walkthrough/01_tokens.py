# %% [markdown]
# # 1. Tokens: text to numbers and back
#
# A language model computes with arrays. It never sees a text. So the first step cuts a text into
# *pieces*, and replaces each piece by its number in a fixed list. The list is the *vocabulary*, and
# a number in it is an *id*. A *token* is one place in the row of ids: “the fox and the dog” has two
# tokens with the id of “the”. Given some tokens, the model does one thing: it says how likely each
# id of the vocabulary is to come next. To write a story, one takes a likely id, adds it to the row,
# and asks again.
#
# This chapter is about the way from text to ids and back. All that follows starts from ids.

# %%
import random
from itertools import pairwise

from chapter import BLUE, GREY, ORANGE, PALE, picture, say, show
from matplotlib.figure import Figure

from tinymistral import DEMO, MistralConfig, MistralTokenizer, StreamDecoder

tokenizer = MistralTokenizer.from_pretrained(DEMO)
text = "Once upon a time, there was a naïve fox 🦊"
ids = tokenizer.encode(text)
pieces = tokenizer.convert_ids_to_tokens(ids)
print(ids)
print(pieces)
assert tokenizer.decode(ids, skip_special_tokens=True) == text
assert tokenizer.convert_tokens_to_ids("▁a") != tokenizer.convert_tokens_to_ids("a")

# %% tags=["remove-input"]
say(f"""
These are {len(ids)} tokens. The vocabulary of this small model has V = {len(tokenizer):,} pieces,
that of Mistral 7B {MistralConfig().vocab_size:,}. Frequent words are one piece, rare ones are cut
into several. Look closely at three things:

* The first id, {ids[0]}, is `{pieces[0]}`. It stands for no text. It is a *special token*, which
  tells the model that a text begins here; every sequence starts with it. Its counterpart, `</s>`
  with the id {tokenizer.eos_token_id}, says that a text ends.
* `▁` stands for a space. A space belongs to the word after it, so `▁a` and `a` are two different
  pieces. At the start of a text the tokenizer adds a space that you did not write, so that a word
  has the same piece there as in the middle. Decoding takes it away again.
* Pieces such as `<0xC3>` are single bytes. We come to them soon.
""")

# %% [markdown]
# ## How the pieces are found
#
# The vocabulary was made once, by counting in a large text: start with single characters, find the
# two neighbours that stand side by side most often, join them into a new piece, and repeat until
# the list is full. This is called *byte-pair encoding*, BPE ([Sennrich and others,
# 2015](https://arxiv.org/abs/1508.07909)). A piece that was joined earlier has a higher *score*.
# Single characters are at the end of the list; no joining makes them.
#
# Cutting a text repeats what the counting did: begin with characters, and as long as two neighbours
# form a piece of the vocabulary, join those with the highest score. Here it is, whole:


# %%
def joined(text: str, steps: list[str] | None = None) -> list[str]:
    """Cut a text into pieces of the vocabulary, and single characters where it has none."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        if steps is not None:
            steps.append(" ".join(pieces))
        found = []
        for n, (left, right) in enumerate(pairwise(pieces)):
            new = tokenizer.convert_tokens_to_ids(left + right)
            if new != tokenizer.unk_token_id:  # the pair is in the vocabulary
                found.append((-tokenizer.processor.get_score(new), n))
        if not found:
            return pieces
        _, n = min(found)  # the highest score; the leftmost of equal ones
        pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]


# The ids are in the order of the scores; before 259 are special tokens and single bytes (see below)
scores = [tokenizer.processor.get_score(token) for token in range(259, len(tokenizer))]
assert scores == sorted(scores, reverse=True)

steps: list[str] = []
joined("the little fox", steps)
print("\n".join(steps))

# %% [markdown]
# ## No text is unknown
#
# What about a character that is not in the vocabulary, such as ï, or 🦊? A computer stores every
# text as bytes. In UTF-8, the usual way, an English letter is one byte, ï is two, and 🦊 is four.
# There are only 256 different bytes, so the vocabulary has one piece for each of them, and a
# character without a piece of its own is written with its bytes. This is *byte fallback*. Mistral
# keeps the byte b at id 3 + b, after the special tokens: 0 is `<unk>`, “unknown”, which is what
# `convert_tokens_to_ids` returns for what is not in the vocabulary; 1 is `<s>` and 2 is `</s>`.


# %%
def encode(text: str) -> list[int]:
    """Return the ids of a text."""
    ids = []
    for piece in joined(text) if text else []:
        known = tokenizer.convert_tokens_to_ids(piece)
        if known != tokenizer.unk_token_id:
            ids.append(known)
        else:
            ids += [3 + byte for byte in piece.encode("utf-8")]
    return ids


assert all(tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") == 3 + b for b in range(256))
odd = "naïve 🦊 fox"
odd_ids = tokenizer.encode(odd)
print("bytes:", list(odd.encode("utf-8")))
print("ids:  ", odd_ids)
assert odd_ids == [tokenizer.bos_token_id, *encode(odd)]  # the package's, with <s>, and ours

# %% tags=["remove-input"]
byte_count = sum(map(tokenizer.processor.is_byte, odd_ids))
assert len(odd.encode("utf-8")) == 15
say(f"""
“{odd}” has {len(odd)} characters and {len(odd.encode("utf-8"))} bytes. It becomes
{len(odd_ids)} tokens with `<s>`, and {byte_count} of them are bytes.
""")


# %% tags=["remove-input"]
def draw(axes, row: float, ids: list[int], marks: dict[int, tuple[int, str]]) -> float:
    """Draw tokens as boxes with ids below, `marks` above -> the right end."""
    left = 0.0
    for n, (token, piece) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)):
        width = 0.9 + 0.62 * len(piece)
        byte, special = tokenizer.processor.is_byte(token), token == tokenizer.bos_token_id
        colour = ORANGE if byte else PALE if special else ["#CFE6F5", "#A9D1EC"][n % 2]
        axes.barh(row, width, 0.62, left, color=colour, edgecolor="white", linewidth=1.5)
        axes.text(left + width / 2, row, piece, ha="center", va="center", size=11)
        axes.text(left + width / 2, row - 0.53, token, ha="center", va="center", size=8, color=GREY)
        if n in marks:
            count, name = marks[n]
            end = left + count * (0.9 + 0.62 * 6)
            axes.plot([left + 0.1, left + 0.1, end - 0.1, end - 0.1],
                      [row + 0.4, row + 0.5, row + 0.5, row + 0.4], color=GREY, lw=1)  # fmt: skip
            axes.text((left + end) / 2, row + 0.7, name, ha="center", va="center", size=9)
        left += width
    return left


figure = Figure(figsize=(8, 2.9))
axes = figure.subplots()
sentence = "Once upon a time, there was a little fox."
right = draw(axes, 2, tokenizer.encode(sentence), {})
odd_pieces = tokenizer.convert_ids_to_tokens(odd_ids)
fox = odd_pieces.index("<0xF0>")
marks = {odd_pieces.index("<0xC3>"): (2, "ï: 2 bytes"), fox: (4, "the fox face: 4 bytes")}
right = max(right, draw(axes, 0, odd_ids, marks))
axes.text(0, 2.75, f"“{sentence}”", size=10, color=BLUE)
axes.text(0, 1.0, "“naïve [fox face] fox”", size=10, color=BLUE)
axes.text(0, -1.0, "Boxes are pieces, orange ones single bytes; ▁ is a space. Below: ids.", size=9)
axes.set(xlim=(-0.5, right), ylim=(-1.2, 3.1))
axes.axis("off")
picture(figure, "01_pieces", "Two texts as rows of coloured pieces, with their ids below")

# %% [markdown]
# The package leaves the joining to SentencePiece, the library that made the vocabulary, which is
# much faster.

# %% tags=["remove-input"]
show(MistralTokenizer.encode)

# %% [markdown]
# ## Experiment: any text comes back
#
# Let us try it on a thousand texts of random characters from all of Unicode. Two claims: our code
# gives the ids of the package, and decoding gives the very text back. (One character cannot come
# back, `▁` itself: it becomes a space. We leave it out, and the numbers that Unicode keeps free for
# UTF-16.)

# %%
draws = random.Random(1)
codes = [draws.choice((draws.randrange(128), draws.randrange(0x110000))) for _ in range(9000)]
characters = [chr(n) for n in codes if n != ord("▁") and not 0xD800 <= n < 0xE000]
texts = ["".join(characters[n : n + 8]) for n in range(0, 8000, 8)]
same_ids = sum(tokenizer.encode(t, add_special_tokens=False) == encode(t) for t in texts)
came_back = sum(tokenizer.decode(tokenizer.encode(t), skip_special_tokens=True) == t for t in texts)
print(f"{len(texts)} texts: {same_ids} with the same ids, {came_back} came back unchanged")
assert same_ids == came_back == len(texts) == 1000

# %% [markdown]
# ## Experiment: half a character
#
# A model writes one token at a time, and a program wants to print the text as it grows. But a
# single byte of 🦊 is not text. Decode each token alone, and you print four times the sign for a
# broken character, �. Spaces are lost too: decoding takes away one at the start, and alone every
# token is a start. `StreamDecoder` ([streaming.py](../tinymistral/streaming.py)) keeps an
# incomplete character until the rest has come, and takes away the first space only:

# %%
stream = StreamDecoder(tokenizer)
for token, piece in zip(odd_ids, tokenizer.convert_ids_to_tokens(odd_ids), strict=True):
    alone = tokenizer.decode([token], skip_special_tokens=True)
    print(f"{token:5}  {piece:7} alone {alone!r:8} in the stream {stream.push(token)!r}")

# %% [markdown]
# ## Exercise: the ids of ï
#
# Fill in the function: it takes one character that has no piece of its own, and returns its ids by
# byte fallback. Then run the cell.


# %%
def byte_ids(character: str) -> list[int]:
    """Return the ids of the bytes of a character."""
    return []  # your turn


def check(answer) -> str:
    """Say whether `answer` is right, or where it is wrong."""
    for character, names in [("ï", ["<0xC3>", "<0xAF>"]), ("ß", ["<0xC3>", "<0x9F>"])]:
        expected = [tokenizer.convert_tokens_to_ids(name) for name in names]
        if (got := list(answer(character) or ())) != expected:
            hint = "one id for each byte of its UTF-8" if len(got) != 2 else "id 0 is not a byte"
            return f"Not yet: for {character!r} it returned {got}. Hint: {hint}."
    return "Right."


print(check(byte_ids))

# %% [markdown]
# <details><summary>Solution</summary>


# %%
def solution(character: str) -> list[int]:
    """Return the ids of the bytes of a character."""
    return [3 + byte for byte in character.encode("utf-8")]


print(solution("ï"), check(solution))
assert check(solution) == "Right."
assert check(lambda character: list(character.encode("utf-8"))) != "Right."

# %% [markdown]
# </details>
#
# ## What to remember
#
# A text becomes a row of *tokens*, each the *id* of a piece in the *vocabulary*. Joining by score
# makes the pieces, and bytes take over where there is none, so that no text is unknown. The model
# gets a row of ids, and they mean nothing to it yet: id 500 is not “more” than id 499. How an id
# becomes something to compute with is the next chapter.
#
# Next: [2. The residual stream](02_residual_stream.md)
