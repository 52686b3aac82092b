"""Compare the real Mistral-7B-v0.1 with published numbers.

These are logits of one text, and greedy continuations.

  tinymistral golden published --model mistralai/Mistral-7B-v0.1
  tinymistral golden published --logits logits.npy
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tinymistral.commands import arguments
from tinymistral.commands.console import interruptible, write
from tinymistral.text import one_line

if TYPE_CHECKING:
    import numpy as np

EPILOG = """\
The logits are those of the ids 1 306 4658 278 6593 310 2834 338: their mean at
each position, and the first 30 at the first, are known to 0.01. --logits takes
those of any program: a .npy file of shape (8, 32000) or (1, 8, 32000).

Exit code: 0 if all agrees; 1 if something differs; 2 if it cannot be compared,
such as another model, which has other numbers.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="the checkpoint, or its name on the Hugging Face hub")
    add("--logits", type=Path, metavar="FILE", help="logits that a program of yours computed")
    add("--long", action="store_true", help="with --model: texts past the window of 4096 too")
    arguments.add_computation(parser)


def run(options: argparse.Namespace) -> int:
    """Compare a model, or logits of another program, with published numbers; 1 if they differ."""
    from tinymistral.golden.published_numbers import check_logits, check_model, read_published

    numbers = read_published()
    if (options.model is None) == (options.logits is None):
        raise ValueError(
            "expected either --model, the checkpoint's folder, or --logits, a .npy file with the "
            f"logits of ids {' '.join(map(str, numbers['logits']['ids']))}"
        )
    good = True
    with interruptible():
        if options.logits is not None:
            findings = iter(check_logits(numbers, read_logits(options.logits)))
        else:
            model, tokenizer = arguments.open_checkpoint(options)
            findings = check_model(numbers, model, tokenizer, options.long)
        for found in findings:
            good = good and found.agrees
            verdict = "OK" if found.agrees else "DIFFERS"
            write(f"{found.name:16} {verdict:8} {one_line(found.says, 400)}\n")
    return 0 if good else 1


def read_logits(path: Path) -> np.ndarray:
    """Read what another program wrote."""
    from tinymistral.golden.files import read_npy

    try:
        logits = read_npy(path)
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error, 300)}") from None
    if logits.dtype.kind in "iu":
        raise ValueError(f"{path}: expected an array of floating-point numbers")
    return logits
