"""`python -m tinymistral convert`."""

from __future__ import annotations

import argparse
import re
import sys

from tinymistral.checkpoint.conversion import convert
from tinymistral.commands.console import Progress, interruptible, write


class ConversionProgress(Progress):
    """How much has been converted, in the manner of `Progress`."""

    def __call__(self, done: int, total: int) -> None:
        """Show it in place of what was shown before."""
        if self.wanted:
            self._shown = True
            line = f"converted: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
            self._write(f"\r{line:{self.WIDTH}}")


def run(options: argparse.Namespace) -> None:
    """Convert a checkpoint and say what was written."""
    source, target = _folders(options)
    if options.to == "raw" and options.max_shard_size is not None:
        raise ValueError("--max-shard-size is for --to hf; a raw checkpoint is one file")
    progress = ConversionProgress(sys.stderr.isatty())
    with interruptible():
        try:
            done = convert(
                source,
                target,
                to=options.to,
                model_size=options.model_size,
                max_shard_size=options.max_shard_size or "5GB",
                force=options.force,
                progress=progress,
            )
        finally:
            progress.clear()
    form = "Hugging Face's format" if options.to == "hf" else "raw"
    dtype = done.config.dtype or "several dtypes"
    size = f"{done.size / 1e9:.1f} GB" if done.size >= 1e9 else f"{done.size / 1e6:.1f} MB"
    write(f"wrote {target}: {done.parameters:,} parameters, {dtype}, {size}, {form}\n")


def _folders(options: argparse.Namespace) -> list[str]:
    """Return the input and the output, given by name, by place, or the one so and the other so.

    By place the model size may stand between them, as in the list of the named ones.
    """
    places = list(options.folders)
    if (
        len(places) == 3
        and not options.model_size
        and re.fullmatch(r"[\d.]+[KMB]?", places[1], re.IGNORECASE)
    ):
        options.model_size = places.pop(1)
    folders = [
        named if named is not None or not places else places.pop(0)
        for named in (options.input_dir, options.output_dir)
    ]
    if places:
        raise ValueError(f"unknown argument {places[0]!r:.60}; see tinymistral convert --help")
    if None in folders or "" in folders:
        name = "--output_dir" if folders[0] else "--input_dir"
        raise ValueError(f"no {name}; expected two folders, such as: tinymistral convert IN OUT")
    return folders
