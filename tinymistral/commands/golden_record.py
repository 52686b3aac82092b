"""`python -m tinymistral golden record`."""

from __future__ import annotations

import argparse
import sys

from tinymistral.commands.console import Progress, interruptible, write
from tinymistral.commands.prompts import read_text
from tinymistral.golden.record.recorder import Request, record
from tinymistral.text import one_line
from tinymistral.tokenizer import MistralTokenizer


class RecordingProgress(Progress):
    """How far a recording is, in the manner of `Progress`."""

    def show(self, what: str, done: int, total: int) -> None:
        """Show it in place of what was shown before."""
        if self.wanted:
            self._shown = True
            self._write(f"\r{f'{what}: {done:,} of {total:,}':{self.WIDTH}}")


def run(options: argparse.Namespace) -> None:
    """Record a suite, or go on with one, and say what it holds."""
    if options.ids is not None:
        ids = options.ids
        says = f"ids {' '.join(map(str, ids[:20]))}{' ...' if len(ids) > 20 else ''}"
    else:
        text = read_text(options.prompt, options.prompt_file, what="prompt")
        ids = MistralTokenizer.from_pretrained(options.model).encode(text)
        says = f"the text {text[:60]!r}{' ...' if len(text) > 60 else ''}"
    request = Request(
        options.case,
        one_line(f"{says}, {len(ids)} tokens", 200),
        tuple(ids),
        options.stages,
        options.layers,
        options.new,
        options.dtype,
        options.ways,
    )
    progress = RecordingProgress(sys.stderr.isatty())
    with interruptible():
        try:
            cases = record(options.out, options.model, request, options.hash_files, progress.show)
        finally:
            progress.clear()
    write(f"{options.out}: {', '.join(cases)}\n")
