"""Compare your own Mistral with golden outputs.

A suite has small models, inputs, and what every stage must compute, with a
tolerance for each tensor and dtype.

  tinymistral golden list
      what there is
  tinymistral golden check v1 FOLDER
      compares what your program computed with what is expected, and names the
      first stage that differs
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinymistral.golden.suite import Suite

COMMANDS = ("list", "check", "diagnose", "run", "record", "published")

DTYPES = ("float64", "float32", "float16", "bfloat16")


def add_candidate(parser: argparse.ArgumentParser) -> None:
    """Add a suite, what a program wrote for it, and how that is read."""
    add = parser.add_argument
    add("suite", metavar="SUITE", help="v1, which comes with tinymistral, or the folder of a suite")
    add("candidate", type=Path, metavar="CANDIDATE", help="what your program wrote; see below")
    text = "what your program computes in (default: what each tensor is in)"
    add("--dtype", choices=DTYPES, help=text)
    add(
        "--layout",
        choices=("auto", "hf", "raw"),
        default="auto",
        help="the order of the numbers of each head in q, k, q_rotated, k_rotated and cached keys: "
        "hf, where rope rotates i and i + d/2; raw, as in raw checkpoints, where it rotates 2i and "
        "2i+1; auto (default): hf, and for a case whose model is a raw checkpoint whichever agrees",
    )
    add_case(parser)


def add_case(parser: argparse.ArgumentParser) -> None:
    """Add --case."""
    text = "only this case; may be repeated"
    parser.add_argument("--case", action="append", default=[], metavar="ID", help=text)


def add_recorded_model(parser: argparse.ArgumentParser) -> None:
    """Add --model for a suite that does not contain the weights."""
    text = "the checkpoint that a recorded suite was made from"
    parser.add_argument("--model", metavar="FOLDER", help=text)


def add_vocabulary(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --vocabulary."""
    add = parser.add_argument
    add("--vocabulary", type=Path, action="append", default=[], metavar="FILE", help=text)


def find_suite(name: str, model: str | None = None) -> Suite:
    """Open v1 or a suite's folder, with the checkpoint it was recorded from; or ValueError."""
    from dataclasses import replace

    from tinymistral.golden.suite import V1, read_suite

    if name != "v1" and not (Path(name) / "manifest.json").is_file():
        raise ValueError(
            f"there is no suite {name!r:.200}; expected v1, or a folder with a manifest.json"
        )
    suite = read_suite(V1 if name == "v1" else name)
    return suite if model is None else replace(suite, checkpoint=Path(model))
