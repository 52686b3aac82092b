"""Measure how fast a model is, beside other programs and the machine's limits.

  tinymistral bench
  tinymistral bench --preset mistral-7b-v0.1 --layers 2 --lengths 64,512
  tinymistral bench --preset 125m --against transformers
  tinymistral bench --preset 125m --lengths 512,1024,2048,4096 --plot speed.svg

All programs generate from the same random prompts with the same weights and as
many threads. They take turns, so that what else the machine does hits all of
them; the first round is not counted, and medians of the others are printed.
"""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tinymistral.commands import arguments
from tinymistral.commands.console import Progress, interruptible, print_json, write
from tinymistral.commands.generate import peak_memory
from tinymistral.text import did_you_mean, table

if TYPE_CHECKING:
    from tinymistral.bench import Limits, Speed

EPILOG = """\
prefill           tokens of the prompts a second, up to the first new token
decode            new tokens a second, from the first on
of products       of the time to the first token, the share that the float32
                  products of the same matrices take by themselves
of reading        of the time of a new token, the share that takes to read the
                  weights once, with as many threads; both shares can exceed
                  1, since a limit is measured by itself, at another moment
ratio             how many times as long the other program takes: above 1
                  where this one is faster; the median of the rounds' ratios

--preset writes a checkpoint with random weights to ~/.cache/tinymistral, or
below XDG_CACHE_HOME, once; delete it there. --plot shows the time to the first
token by length, also for the same weights without a window.

--json prints one object: machine, model, speeds and limits, each with the
seconds of all rounds: `first` to the first new token, `each` of another one,
`products` and `reading` as above; peak_memory in bytes, of this program alone.
"""

PRESETS = ("mistral-7b-v0.1", "smollm2-135m", "125m")
PEERS = ("transformers", "llama-cpp")
OURS = "tinymistral"
NO_WINDOW = "tinymistral, no window"
LIMITS = {
    **dict.fromkeys(("layers", "batch", "rounds"), (1, 10_000)),
    "new_tokens": (2, 2**31 - 1),
    "window": (0, 2**31 - 1),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    whole = arguments.integer
    source = parser.add_mutually_exclusive_group()
    arguments.add_model(source)
    text = f"random weights in this shape: {', '.join(PRESETS)}"
    source.add_argument("--preset", choices=PRESETS, metavar="NAME", help=text)
    add = parser.add_argument
    add("--layers", type=whole, metavar="N", help="with --preset: so many layers (default: all)")
    text = "with --preset: of the file: bfloat16 (default), float16 or float32"
    add("--weights", choices=("bfloat16", "float16", "float32"), metavar="TYPE", help=text)
    add("--window", type=whole, metavar="W", help="another window than the model's; 0: none")
    text = "lengths of the prompts (default: 64,256,1024)"
    lengths = arguments.checked(lambda text: [int(n) for n in text.split(",")], "such as 64,1024")
    add("--lengths", type=lengths, default=[64, 256, 1024], metavar="N,...", help=text)
    text = "new tokens after each prompt (default: 32)"
    add("--new-tokens", type=whole, default=32, metavar="N", help=text)
    add("--batch", type=whole, default=1, metavar="N", help="prompts at once (default: 1)")
    add("--rounds", type=whole, default=5, metavar="N", help="rounds that count (default: 5)")
    text = f"programs to compare with, which take turns: {', '.join(PEERS)} (without a window)"
    names = arguments.checked(lambda text: text.split(","))
    add("--against", type=names, default=[], metavar="NAME,...", help=text)
    text = "draw the time to the first token by length, .svg or .png; needs matplotlib"
    add("--plot", type=Path, metavar="FILE", help=text)
    arguments.add_computation(parser)
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Measure, and print a table or one JSON object."""
    check(options)
    from tinymistral.bench import limits_of, measure, ours, peers, with_window
    from tinymistral.bench.presets import checkpoint
    from tinymistral.files.hub import find_checkpoint
    from tinymistral.heads import MistralForCausalLM
    from tinymistral.threads import keep_freed_memory, threads
    from tinymistral.training.pictures import check_picture

    if options.plot is not None:
        check_picture(options.plot)
    for name in options.against:
        peers.check_installed(name)
    keep_freed_memory()  # as `generate` does
    with interruptible():
        if options.preset is None:
            folder = find_checkpoint(options.model)
        else:
            folder = checkpoint(options.preset, options.layers, options.weights or "bfloat16")
        model = MistralForCausalLM.from_pretrained(
            folder, backend=options.backend, dtype=options.dtype
        )
        if options.window is not None:
            model = with_window(model, options.window or None)
        # Before another program uses memory too
        for length in options.lengths:
            ours(model)(length_of_threes(options.batch, length), options.new_tokens)
        peak = peak_memory()
        programs = {OURS: ours(model)}
        if options.plot is not None and model.config.sliding_window is not None:
            programs[NO_WINDOW] = ours(with_window(model, None))
        for name in options.against:
            programs[name] = peers.PEERS[name](folder, model, threads())
        with Progress("round {} of {}") as progress:
            speeds, limits = measure(
                programs,
                limits_of(model, options.batch),
                model.config,
                lengths=options.lengths,
                batch=options.batch,
                new=options.new_tokens,
                rounds=options.rounds,
                progress=progress,
            )
    if options.plot is not None:
        draw(speeds, options.plot)
    machine = {
        "processor": processor(),
        "device": type(model.backend).device(),
        "threads": threads(),
        "python": platform.python_version(),
    }
    matrix = next(x for name, x in model.tensors.items() if name.endswith("up_proj.weight"))
    what = {
        "folder": str(folder),
        "parameters": model.num_parameters(),
        "window": model.config.sliding_window,
        "weights": str(matrix.dtype),
        "backend": model.backend.name,
        "dtype": model.backend.dtype,
        "batch": options.batch,
    }
    if options.json:
        print_json(
            {
                "machine": machine,
                "model": what,
                "peak_memory": peak,
                "speeds": [vars(speed) for speed in speeds],
                "limits": [vars(limit) for limit in limits],
            }
        )
    else:
        about = [", ".join(f"{n} {x}" for n, x in part.items()) for part in (machine, what)]
        memory = [f"peak memory {peak / 1e6:.0f} MB"] if peak else []
        rows = as_table(speeds, limits, options.batch)
        write("\n".join([*about, *memory, "", *rows]) + "\n")


def check(options: argparse.Namespace) -> None:
    """Raise a ValueError for options that do not fit."""
    for name, (least, most) in LIMITS.items():
        if (value := getattr(options, name)) is not None:
            arguments.check_range(f"--{name.replace('_', '-')}", value, least, most)
    for length in options.lengths:
        arguments.check_range("--lengths", length, 1, 2**31 - 1)
    for name in options.against:
        if name not in PEERS:
            hint = did_you_mean(name, PEERS) or f"; expected {', '.join(PEERS)}"
            raise ValueError(f"--against: unknown {name!r}{hint}")
    if "llama-cpp" in options.against and options.batch > 1:
        raise ValueError(f"--against llama-cpp: expected --batch 1, got {options.batch}")
    for name in ("layers", "weights"):
        if options.preset is None and getattr(options, name) is not None:
            raise ValueError(f"--{name} is of random weights; give --preset too")


def length_of_threes(batch: int, length: int) -> Any:
    """Return prompts (batch, length) of one token."""
    import numpy as np

    return np.full((batch, length), 3, dtype=np.int64)


def as_table(speeds: Sequence[Speed], limits: Sequence[Limits], batch: int) -> list[str]:
    """Return the lines of a table: medians, shares of the limits, ratios."""
    from tinymistral.bench import ratio

    head = ("program", "tokens", "first token", "prefill", "of products", "ratio")
    rows = [(*head, "decode", "of reading", "ratio")]
    bounds = {limit.length: limit for limit in limits}
    ours = {speed.length: speed for speed in speeds if speed.program == OURS}
    for speed in speeds:
        first, each = median(speed.first), median(speed.each)
        us, bound = ours[speed.length], bounds.get(speed.length)
        rows.append(
            (
                speed.program,
                str(speed.length),
                f"{first:.3f} s",
                f"{batch * speed.length / first:.0f}/s",
                f"{median(bound.products) / first:.2f}" if bound else "",
                f"{ratio(us.first, speed.first):.2f}" if speed is not us else "",
                f"{batch / each:.1f}/s",
                f"{median(bound.reading) / each:.2f}" if bound else "",
                f"{ratio(us.each, speed.each):.2f}" if speed is not us else "",
            )
        )
    return table(rows, str.rjust)


def draw(speeds: Sequence[Speed], path: Path) -> None:
    """Draw the time to the first token by the prompt's length, a line for each program."""
    from tinymistral.training.pictures import STYLES, picture

    names = list(dict.fromkeys(speed.program for speed in speeds))
    with picture(path, width=7, height=4) as axes:
        axes.set(xlabel="tokens of the prompt", ylabel="seconds to the first new token")
        for name, (colour, marker) in zip(names, STYLES, strict=False):
            points = [(x.length, median(x.first)) for x in speeds if x.program == name]
            axes.plot(*zip(*points, strict=True), f"{marker}-", color=colour, label=name)
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.legend(frameon=False)


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    text = path.read_text("utf-8") if path.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
