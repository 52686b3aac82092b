"""`python -m tinymistral score`."""

from __future__ import annotations

import argparse
import json
import math
import sys

from tinymistral.commands.console import Progress, interruptible, write
from tinymistral.commands.opening import open_checkpoint
from tinymistral.commands.prompts import read_text
from tinymistral.scoring import score


def run(options: argparse.Namespace) -> None:
    """Print the log-probability and perplexity of a text."""
    text = read_text(None, options.file)
    model, tokenizer = open_checkpoint(options)
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise ValueError("the text is empty; expected at least one token to score")
    progress = Progress(len(ids) > model.backend.chunk and sys.stderr.isatty())
    with interruptible():
        try:
            result = score(model, [ids], progress)
        finally:
            progress.clear()
    size = len(text.encode("utf-8"))
    bits_per_byte = -result.total / math.log(2) / size
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
        write(f"{json.dumps(fields, ensure_ascii=False, allow_nan=False)}\n")
        return
    write(
        f"tokens           {len(ids) - 1}\n"
        f"log-probability  {result.total:.3f}\n"
        f"perplexity       {result.perplexity:.3f}\n"
        f"bits per byte    {bits_per_byte:.3f}\n"
    )


def finite(x: float) -> float | None:
    """Return what JSON can hold; a broken checkpoint may give NaN."""
    return x if math.isfinite(x) else None
