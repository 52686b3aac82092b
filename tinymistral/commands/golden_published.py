"""`python -m tinymistral golden published`."""

from __future__ import annotations

import argparse

import numpy as np

from tinymistral.commands.console import interruptible, write
from tinymistral.commands.opening import open_checkpoint
from tinymistral.golden.files import read_npy
from tinymistral.golden.published_numbers import check_logits, check_model, read_published
from tinymistral.text import one_line


def run(options: argparse.Namespace) -> int:
    """Hold a model, or logits of another program, to published numbers; 1 if they differ."""
    numbers = read_published(options.numbers) if options.numbers else read_published()
    if (options.model is None) == (options.logits is None):
        raise ValueError(
            "expected either --model, the checkpoint's folder, or --logits, a .npy file with the "
            f"logits of ids {' '.join(map(str, numbers['logits']['ids']))}"
        )
    good = True
    with interruptible():
        if options.logits is not None:
            findings = iter(check_logits(numbers, read_logits(options)))
        else:
            model, tokenizer = open_checkpoint(options)
            findings = check_model(numbers, model, tokenizer, options.long)
        for found in findings:
            good = good and found.agrees
            verdict = "OK" if found.agrees else "DIFFERS"
            write(f"{found.name:16} {verdict:8} {one_line(found.says, 400)}\n")
    return 0 if good else 1


def read_logits(options: argparse.Namespace) -> np.ndarray:
    """Read what another program wrote."""
    try:
        found = read_npy(options.logits)
    except ValueError as error:
        raise ValueError(f"{options.logits}: {one_line(error, 300)}") from None
    if found.dtype.kind in "iu":
        raise ValueError(f"{options.logits}: expected an array of floating-point numbers")
    return found
