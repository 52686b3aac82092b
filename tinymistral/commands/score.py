"""Print how likely a model finds a text.

That is the log-probability of each of its tokens, given those before it. Texts
may be longer than any window.

  tinymistral score story.txt
  tinymistral score --model FOLDER --json story.txt
  echo "Once upon a time" | tinymistral score

A working language model has a perplexity of some 5 to 50 on plain prose in its
language; one whose weights are mixed up, one in the thousands.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from tinymistral.commands import arguments
from tinymistral.commands.console import Progress, finite, interruptible, print_json, write

EPILOG = """\
--json prints one object, on one line:
  text, ids, pieces   the text and its tokens, with <s> first
  logprobs            natural logarithms, of all tokens but <s>
  logprob             their sum
  perplexity          exp(-logprob / number of tokens); null if it is infinite
  bits_per_byte       -logprob / ln 2 / bytes of the text in UTF-8, which does
                      not depend on the tokenizer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    text = "the text, in UTF-8 (default: standard input)"
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help=text)
    arguments.add_model(parser)
    arguments.add_computation(parser)
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print the log-probability and perplexity of a text."""
    from tinymistral.scoring import score

    text = arguments.read_text(None, options.file, where="in a file, FILE")
    model, tokenizer = arguments.open_checkpoint(options)
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise ValueError("the text is empty; expected at least one token to score")
    long = len(ids) > model.backend.chunk
    with interruptible(), Progress("prompt: {} of {} tokens", wanted=long) as progress:
        result = score(model, [ids], progress)
    bits_per_byte = -result.total / math.log(2) / len(text.encode("utf-8"))
    if options.json:
        fields = {
            "text": text,
            "ids": ids,
            "pieces": tokenizer.convert_ids_to_tokens(ids),
            "logprobs": [finite(x) for x in result.logprobs.tolist()],
            "logprob": finite(result.total),
            "perplexity": finite(result.perplexity),
            "bits_per_byte": finite(bits_per_byte),
        }
        print_json(fields)
        return
    write(
        f"tokens           {len(ids) - 1}\n"
        f"log-probability  {result.total:.3f}\n"
        f"perplexity       {result.perplexity:.3f}\n"
        f"bits per byte    {bits_per_byte:.3f}\n"
    )
