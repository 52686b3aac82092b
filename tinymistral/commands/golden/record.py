r"""Record golden outputs of any checkpoint.

They are a suite like v1, for `golden check`. It does not contain the weights,
but a fingerprint of them.

  tinymistral golden record --model FOLDER --prompt "My name is" -o recorded
  tinymistral golden record --model FOLDER --ids 1 1984 16020 -o recorded \
      --case short --stages logits 'layers.*.output' --new 40
  tinymistral golden check recorded my-dump

Each run adds a case to the suite; with --new a second one, CASE-greedy. To
continue a run that was interrupted, give the same command again: the files will
be the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tinymistral.commands import arguments
from tinymistral.commands.console import Progress, interruptible, write
from tinymistral.text import one_line

EPILOG = """\
Expected numbers are computed in float64, a layer at a time, from the weights
as they are stored. The text is also computed in --ways other ways, each in
float32, float16 and bfloat16: the tolerance of a tensor in a dtype is 8 times
the largest error of these. The checkpoint is read once, and memory is needed
for a few layers of it: 7B takes less than 4 GB, and for a short text some 7
minutes. OUT/.recording holds what is recorded until a case is complete.

Without --stages or --layers all stages are recorded if they take 64 MB at most;
of a larger model, those of layer 0, the outputs of all layers, norm and logits.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    arguments.add_model(parser)
    source = parser.add_mutually_exclusive_group()
    text = "the text (default: standard input)"
    source.add_argument("--prompt", type=arguments.utf8, metavar="TEXT", help=text)
    arguments.add_prompt_file(source)
    source.add_argument("--ids", type=arguments.integer, nargs="+", metavar="ID", help="its tokens")
    add = parser.add_argument
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder of the suite")
    add("--case", default="prompt", metavar="ID", help="the case's name (default: prompt)")
    text = "only these, such as logits, 'layers.*.output' or 'cache.*'"
    add("--stages", nargs="+", metavar="STAGE", help=text)
    text = "only of these layers, from 0 on"
    add("--layers", type=arguments.integer, nargs="+", metavar="N", help=text)
    text = "record a greedy continuation of N tokens too (default: none)"
    add("--new", type=arguments.integer, default=0, metavar="N", help=text)
    text = "what expected numbers are computed in (default: float64)"
    add("--dtype", choices=("float64", "float32"), default="float64", help=text)
    text = "ways of measuring tolerances (default: 20, with more than 50 million weights 6)"
    add("--ways", type=arguments.integer, metavar="N", help=text)
    arguments.add_threads(parser)


def run(options: argparse.Namespace) -> None:
    """Record a case, or continue one, and say which cases were recorded."""
    from tinymistral.golden.record.recorder import Request, record

    if options.ids is not None:
        ids = options.ids
        says = f"ids {' '.join(map(str, ids[:20]))}{' ...' if len(ids) > 20 else ''}"
    else:
        text = arguments.read_text(
            options.prompt, options.prompt_file, what="prompt", where="with --prompt"
        )
        ids = arguments.open_tokenizer(options.model).encode(text)
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
    with interruptible(), Progress("{}: {:,} of {:,}") as progress:
        cases = record(options.out, options.model, request, progress)
    write(f"{options.out}: {', '.join(cases)}\n")
