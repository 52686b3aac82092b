"""Show what happens inside the model for a text.

The text's tokens; the stages of the forward pass, with their shapes; what the
last token reads in one head; the ring of cached keys; the five likeliest next
tokens. The walkthrough explains each of them.

  tinymistral explain "Once upon a time there was"
  tinymistral explain --layer 2 --head 4 "The fox said that it"
  tinymistral explain --chunk 8 --model FOLDER < story.txt
  tinymistral explain --html page.html "Once upon a time"
"""

from __future__ import annotations

import argparse
import math
import shutil
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinymistral.commands import arguments
from tinymistral.commands.console import interruptible, write
from tinymistral.text import table

if TYPE_CHECKING:
    import numpy as np

    from tinymistral.cache import RollingCache
    from tinymistral.heads import MistralForCausalLM

EPILOG = """\
Layers and heads count from 0. A text of more than C tokens goes through the
model in pieces of C; the stages are those of the last piece, and the ring has
W + C - 1 slots, W being the window: a small --chunk shows how it wraps.

The letters of shapes: B texts (one), T tokens that go through together, S all
tokens so far, D width, F feed-forward width, H query heads, K key/value heads,
d head width, V vocabulary.
"""

MOST_READ = 8  # so many tokens are shown of those that a head reads
LIKELIEST = 5
SHOWN = 60  # so many tokens of the text, its last ones
NARROWEST, WIDEST = 60, 100  # columns
SECOND_LINE = 24  # columns, at least, of the second line of what a stage is

# What each stage of `tap.STAGES` is; those of a layer without "layers.N.".
MEANINGS = {
    "embedding": "a row of a table for each token",
    "input_layernorm": "scaled to mean square 1",
    "q": "queries: what a token looks for",
    "k": "keys: what it is found by",
    "v": "values: what it passes on",
    "q_rotated": "queries turned by position",
    "k_rotated": "keys turned by position",
    "attention_weights": "how much of each token is read",
    "attention_mix": "values summed with these",
    "attention_output": "all heads together, D wide",
    "attention_residual": "added to the stream",
    "post_attention_layernorm": "scaled again",
    "gate": "decides what goes through",
    "up": "what may go through",
    "silu_mul": "silu(gate) · up",
    "mlp_output": "D wide again",
    "output": "added: the next layer's input",
    "norm": "scaled a last time",
    "logits": "a score for each next token",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("text", nargs="?", type=arguments.utf8, help="the text (default: standard input)")
    add("--layer", type=arguments.integer, metavar="N", help="which layer (default: the last)")
    add("--head", type=arguments.integer, metavar="N", help="which head (default: 0)")
    text = "C, the most tokens that go through at once (default: the backend's)"
    add("--chunk", type=arguments.integer, metavar="C", help=text)
    text = "write a page instead, in which the model runs, for a browser; it needs no network"
    add("--html", type=Path, metavar="FILE", help=text)
    arguments.add_model(parser)
    arguments.add_computation(parser)


def run(options: argparse.Namespace) -> None:
    """Run a text through the model, and print what happens; or write a page that does it."""
    text = arguments.read_text(options.text)
    if options.html is not None:
        _check_options_of_page(options)
        from tinymistral.files import check_can_be_written
        from tinymistral.page import write_page

        check_can_be_written(options.html)
        with interruptible():
            write_page(options.html, options.model, text)
        size = options.html.stat().st_size / 1e6
        write(f"{printable(str(options.html))}: {size:.1f} MB; open it in a browser\n")
        return
    from tinymistral.sampling import softmax

    model, tokenizer = arguments.open_checkpoint(options)
    config = model.config
    layer = config.num_hidden_layers - 1 if options.layer is None else options.layer
    head = 0 if options.head is None else options.head
    arguments.check_range("--layer", layer, 0, config.num_hidden_layers - 1)
    arguments.check_range("--head", head, 0, config.num_attention_heads - 1)
    if not model.backend.has_attention_weights:
        raise ValueError(
            f"--backend: {model.backend.name!r} does not give attention weights, which are shown "
            "here; use numpy"
        )
    ids = tokenizer.encode(text)
    if not ids:
        raise ValueError("the text is empty, and the tokenizer has no <s>; expected a token")
    cache = model.new_cache(1, options.chunk)
    stages, logits = last_piece(model, ids, cache)

    width = max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST)) - 2
    names = [printable(piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
    weights = stages[f"layers.{layer}.attention_weights"][0, head, -1]
    read = [int(n) for n in largest(weights, MOST_READ) if weights[n] > 0]
    probabilities = softmax(logits)
    likeliest = [int(token) for token in largest(probabilities, LIKELIEST)]
    pieces = [printable(tokenizer.convert_ids_to_tokens(token)) for token in likeliest]
    left_out = f", the last {SHOWN}" if len(ids) > SHOWN else ""
    noun = "token" if len(ids) == 1 else "tokens"
    last_layer = config.num_hidden_layers - 1
    sections = {
        f"{len(ids)} {noun}{left_out}: position, id, piece": token_table(ids, names, width),
        f"The forward pass; of layers 0 to {last_layer}, layer {layer}": stage_table(
            stages, layer, width
        ),
        f"In layer {layer}, head {head}, the last token, {names[-1]}, reads most": bars(
            [(n, names[n], float(weights[n])) for n in read], width
        ),
        f"The cache of each layer: {slot_count(cache)}": slot_table(cache),
        f"The likeliest next tokens of {len(logits)}": bars(
            [(n, p, float(probabilities[n])) for n, p in zip(likeliest, pieces, strict=True)], width
        ),
    }
    texts = ("".join([title, *(f"\n  {line}" for line in sections[title])]) for title in sections)
    write("\n\n".join(texts) + "\n")


def _check_options_of_page(options: argparse.Namespace) -> None:
    for name in ("layer", "head", "chunk", "backend", "dtype"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name} is for the terminal; leave it out: the page of --html computes by "
                "itself, and has buttons for layers and heads"
            )


def last_piece(
    model: MistralForCausalLM, ids: Sequence[int], cache: RollingCache
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Run ids through the model -> the last piece's stages, and the last token's logits (V,)."""
    import numpy as np

    from tinymistral.generation import check_finite

    start = (len(ids) - 1) // cache.chunk * cache.chunk
    if start:
        model([ids[:start]], past_key_values=cache, logits_to_keep=1)
    stages: dict[str, np.ndarray] = {}
    model([ids[start:]], past_key_values=cache, tap=stages.__setitem__)
    logits = stages["logits"][0, -1].astype(np.float64)
    check_finite(logits, model.backend.dtype)
    return stages, logits


def largest(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return where the largest of the numbers are, the largest first."""
    return (-numbers).argsort(kind="stable")[:count]


def printable(piece: str) -> str:
    """Return a piece with escapes for what a terminal would not print, or would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in piece)


def columns(text: str) -> int:
    """Return how many columns of a terminal a printable text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me") for c in text)


def pad(text: str, width: int) -> str:
    """Return the text with spaces up to a width in columns."""
    return text + " " * (width - columns(text))


def token_table(ids: Sequence[int], names: Sequence[str], width: int) -> Iterator[str]:
    """Yield lines of the last tokens, as many in each as the width has room for."""
    cells = [f"{n:5} {i:5} {name}" for n, (i, name) in enumerate(zip(ids, names, strict=True))]
    cells = cells[-SHOWN:]
    cell = max(map(columns, cells)) + 2
    a_line = max(1, width // cell)
    for first in range(0, len(cells), a_line):
        yield "".join(pad(text, cell) for text in cells[first : first + a_line]).rstrip()


def stage_table(stages: dict[str, np.ndarray], layer: int, width: int) -> Iterator[str]:
    """Yield a line for each stage outside the layers and in this layer, or two if it is narrow."""
    from tinymistral.tap import STAGES

    rows = []
    for stage, letters in STAGES.items():
        shape = "×".join(map(str, stages[stage.replace("N", str(layer), 1)].shape))
        name = stage.rpartition(".")[2]
        rows.append((" " * ("." in stage) + name, letters, shape, MEANINGS[name]))
    for row, line in zip(rows, table(rows), strict=True):
        indent = " " * min(len(line) - len(row[-1]), width - SECOND_LINE)
        yield from textwrap.wrap(line, width, subsequent_indent=indent)


def bars(rows: Sequence[tuple[int, str, float]], width: int) -> Iterator[str]:
    """Yield a line for each row (number, piece, a part of 1), with a bar as long as the part."""
    names = max((columns(name) for _, name, _ in rows), default=0)
    for number, name, part in rows:
        line = f"{number:5}  {pad(name, names)}  {part:6.4f}  "
        length = part * max(10, width - columns(line)) if math.isfinite(part) else 0
        yield (line + "█" * round(length)).rstrip()


def slot_count(cache: RollingCache) -> str:
    """Say how many slots there are, and why."""
    used = cache.key_positions.shape[1]
    if cache.window is None:
        return f"{used} slots, one for each token: no window"
    return (
        f"a ring of W + C - 1 = {cache.window} + {cache.chunk} - 1 = {cache.capacity} slots, "
        f"{used} used"
    )


def slot_table(cache: RollingCache) -> Iterator[str]:
    """Yield a line for each run of slots with successive positions, then what comes next."""
    positions = cache.key_positions[0].tolist()
    starts = [n for n, p in enumerate(positions) if n == 0 or p != positions[n - 1] + 1]
    for start, stop in zip(starts, [*starts[1:], len(positions)], strict=True):
        yield (
            f"slots {start} to {stop - 1} hold the keys and values of positions "
            f"{positions[start]} to {positions[stop - 1]}"
        )
    new = int(cache.last[0]) + 1
    first = 0 if cache.window is None else max(0, new - cache.window + 1)
    slot = new if cache.capacity is None else new % cache.capacity
    yield f"the next token, at position {new}, goes to slot {slot} and reads {first} to {new}"
