"""Print the tokens of a text, or the text of tokens.

One token a line: its id and its piece, in which '▁' is a space and <0x0A> a
byte.

  tinymistral tokenize "Once upon a time"
  tinymistral tokenize --decode 680 726 261 473
  tinymistral tokenize "Hi" | awk '{print $1}' | tinymistral tokenize --decode
"""

from __future__ import annotations

import argparse
import re

from tinymistral.commands import arguments
from tinymistral.commands.console import print_json, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("text", nargs="?", type=arguments.utf8, help="the text (default: standard input)")
    text = "print the text of these ids, or of those on standard input; special tokens have none"
    add("--decode", nargs="*", metavar="ID", help=text)
    add("--no-bos", action="store_true", help="leave out <s>, which begins every sequence")
    arguments.add_json(parser, "one JSON object: text, ids and pieces")
    arguments.add_model(parser)


def run(options: argparse.Namespace) -> None:
    """Print ids and pieces of a text, or the text of ids."""
    from tinymistral.tokenizer import MistralTokenizer

    decoding = options.decode is not None
    if decoding and options.text is not None:
        raise ValueError("give a text, or --decode and ids, not both")
    if decoding and options.no_bos:
        raise ValueError("--no-bos is for a text; --decode leaves out <s> by itself")
    tokenizer = MistralTokenizer.from_pretrained(options.model)
    if decoding:
        given = " ".join(options.decode) or None
        ids = parse_ids(arguments.read_text(given, what="ids to decode", where="after --decode"))
        text = tokenizer.decode(ids, skip_special_tokens=True)
    else:
        text = arguments.read_text(options.text)
        ids = tokenizer.encode(text, add_special_tokens=not options.no_bos)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    if options.json:
        print_json({"text": text, "ids": ids, "pieces": pieces})
    elif decoding:
        write(f"{text}\n")
    else:
        lines = [f"{token:>6}  {piece}" for token, piece in zip(ids, pieces, strict=True)]
        write("\n".join(lines) + "\n")


def parse_ids(text: str) -> list[int]:
    """Parse ids separated by white space, commas or the brackets of a list."""
    words = [word for word in re.split(r"[\s,\[\]]+", text) if word]
    for word in words:
        if not re.fullmatch(r"-?\d{1,18}", word):
            raise ValueError(f"ids to decode: expected integers, got {word[:40]!r}")
    return [int(word) for word in words]
