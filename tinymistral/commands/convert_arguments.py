"""What `tinymistral convert` takes. What it does is in convert.py."""

from __future__ import annotations

import argparse

from tinymistral.commands.arguments import Parser
from tinymistral.files import parse_size

DESCRIPTION = """\
Turn a raw checkpoint, as Mistral publishes it, into Hugging Face's format,
or back. No bit of a weight changes.

  tinymistral convert --input_dir IN --model_size 7B --output_dir OUT
  tinymistral convert IN OUT --max-shard-size 2GB
  tinymistral convert --to raw IN OUT
"""

AFTER = """\
A raw checkpoint is params.json, consolidated.00.pth or
consolidated.safetensors, and tokenizer.model, or tokenizer.model.v1, .v2 or
.v3, which become tokenizer.model. OUT appears once it is whole. There is one
weight in memory at a time, and room on the disk for all is needed.
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "convert",
        help="turn a raw checkpoint into Hugging Face's format, or back",
        description=DESCRIPTION,
        epilog=AFTER,
    )
    add = parser.add_argument
    add("folders", nargs="*", metavar="IN [SIZE] OUT", help="the same as the three named below")
    add(
        "--input_dir",
        "--input-dir",
        metavar="IN",
        help="the checkpoint's folder, or its name on the Hugging Face hub if it is in the local "
        "cache",
    )
    add("--output_dir", "--output-dir", metavar="OUT", help="the folder that is made")
    add(
        "--model_size",
        "--model-size",
        metavar="SIZE",
        help="such as 7B: refuse a checkpoint of another size, give or take 10%%",
    )
    add("--to", choices=("hf", "raw"), default="hf", help="the format of OUT (default: hf)")
    add(
        "--max-shard-size",
        "--max_shard_size",
        type=_size,
        metavar="SIZE",
        help="of a file of weights for --to hf, in bytes or as 200MB (default: 5GB)",
    )
    add("--force", action="store_true", help="replace OUT, all of it, if it is a checkpoint")


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
