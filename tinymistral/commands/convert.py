"""Convert a raw checkpoint or GGUF file to Hugging Face's format, or back to raw.

A raw checkpoint is one as Mistral publishes it. No bit of a weight changes. A
GGUF file is one for llama.cpp; its quantized weights become 16-bit ones.

  tinymistral convert --input_dir IN --model_size 7B --output_dir OUT
  tinymistral convert IN OUT --max-shard-size 2GB
  tinymistral convert --to raw IN OUT
  tinymistral convert mistral-7b.Q4_K_M.gguf OUT
"""

from __future__ import annotations

import argparse
import re

from tinymistral.commands import arguments
from tinymistral.commands.console import Progress, interruptible, write
from tinymistral.text import short

EPILOG = """\
A raw checkpoint is params.json, consolidated.00.pth or
consolidated.safetensors, and tokenizer.model, or tokenizer.model.v1, .v2 or
.v3, which become tokenizer.model, and back. OUT appears once it is complete.
One weight at a time is in memory; the disk needs room for all of them. What
a run that is killed leaves beside OUT, .OUT.unfinished-..., the next run
removes.

Of a GGUF model in several files give the first, -00001-of-0000N.gguf. This
needs pip install 'tinymistral[gguf]'. llama.cpp does not write down the
sliding window of Mistral-7B-v0.1: write "sliding_window": 4096 into OUT's
config.json.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, under the names of Hugging Face's script too."""
    add = parser.add_argument
    add("folders", nargs="*", metavar="IN [SIZE] OUT", help="the same as the three named below")
    text = (
        "folder of a checkpoint, or its name on the Hugging Face hub if it is in the local cache; "
        "or a GGUF file"
    )
    add("--input_dir", "--input-dir", metavar="IN", help=text)
    add("--output_dir", "--output-dir", metavar="OUT", help="the folder to write")
    text = "such as 7B: refuse a checkpoint whose size differs by more than 10%%"
    add("--model_size", "--model-size", metavar="SIZE", help=text)
    add("--to", choices=("hf", "raw"), default="hf", help="the format of OUT (default: hf)")
    text = "of the weights that a GGUF file becomes (default: bfloat16)"
    add("--dtype", choices=("bfloat16", "float16", "float32"), help=text)
    text = "size of a file of weights for --to hf, in bytes or as 200MB (default: 5GB)"
    names = ("--max-shard-size", "--max_shard_size")
    add(*names, type=arguments.checked(_size), metavar="SIZE", help=text)
    text = "replace OUT, if it holds a checkpoint and nothing else"
    add("--force", action="store_true", help=text)


def run(options: argparse.Namespace) -> None:
    """Convert a checkpoint and say what was written."""
    from tinymistral.checkpoint.conversion import convert

    source, target = _folders(options)
    if options.to == "raw" and options.max_shard_size is not None:
        raise ValueError("--max-shard-size is for --to hf; a raw checkpoint is one file")
    with interruptible(), Progress("converted: {:,.1f} of {:,.1f} MB") as progress:
        done = convert(
            source,
            target,
            to=options.to,
            dtype=options.dtype,
            model_size=options.model_size,
            max_shard_size=options.max_shard_size or "5GB",
            force=options.force,
            progress=lambda done, total: progress(done / 1e6, total / 1e6),
        )
    form = "Hugging Face's format" if options.to == "hf" else "raw"
    dtype = done.config.dtype or "several dtypes"
    size = f"{done.size / 1e9:.1f} GB" if done.size >= 1e9 else f"{done.size / 1e6:.1f} MB"
    write(f"wrote {target}: {done.parameters:,} parameters, {dtype}, {size}, {form}\n")


def _size(text: str) -> int:
    from tinymistral.files import parse_size

    return parse_size(text)


def _folders(options: argparse.Namespace) -> list[str]:
    """Return the input and the output, each of which is given by its name or by its position.

    The model size may stand between the two.
    """
    positional = list(options.folders)
    if (
        len(positional) == 3
        and not options.model_size
        and re.fullmatch(r"[\d.]+[KMB]?", positional[1], re.IGNORECASE)
    ):
        options.model_size = positional.pop(1)
    folders = [
        named if named is not None or not positional else positional.pop(0)
        for named in (options.input_dir, options.output_dir)
    ]
    if positional:
        raise ValueError(f"unknown argument {short(positional[0])}; see tinymistral convert --help")
    if None in folders or "" in folders:
        name = "--output_dir" if folders[0] else "--input_dir"
        raise ValueError(f"no {name}; expected two folders, such as: tinymistral convert IN OUT")
    return folders
