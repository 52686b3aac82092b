"""`python -m tinymistral tokenize`."""

from __future__ import annotations

import argparse
import json

from tinymistral.commands.prompts import read_text
from tinymistral.tokenizer import MistralTokenizer


def run(options: argparse.Namespace) -> None:
    """Print ids and pieces of a text, or the text of ids."""
    tokenizer = MistralTokenizer.from_pretrained(options.model)
    if options.decode is not None:
        if options.text is not None:
            raise ValueError("give a text or --decode with ids, not both")
        text = tokenizer.decode(options.decode)
        print(json.dumps({"text": text}, ensure_ascii=False) if options.json else text)
        return
    ids = tokenizer.encode(read_text(options.text), add_special_tokens=not options.no_bos)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    if options.json:
        print(json.dumps({"ids": ids, "pieces": pieces}, ensure_ascii=False))
        return
    for token, piece in zip(ids, pieces, strict=True):
        print(f"{token:>6}  {piece}")
