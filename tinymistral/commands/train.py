"""Train a small model in NumPy, on generated stories or on your own text.

  tinymistral train my-model --seed 1
  tinymistral train my-model --corpus book.txt --steps 500
  tinymistral train my-model --from FOLDER --corpus book.txt
  tinymistral train my-model --resume

The first makes the demo model, from stories, in an hour or two on two cores;
the second a tokenizer and a model of the same size on your own text.
The third fine-tunes a checkpoint. The last goes on with a run that was
stopped, to the same bits as without the stop.

The gradients are computed in NumPy, as chapter 14 of the walkthrough explains.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tinymistral.commands import arguments
from tinymistral.commands.console import Progress, interruptible, say, stopping, write
from tinymistral.threads import cores

if TYPE_CHECKING:
    from tinymistral.training.run import Recipe, Run
    from tinymistral.training.train import StepDone

EPILOG = """\
OUT is an ordinary checkpoint, which opens from the first save on. Its folder
`training` holds the state to resume from and the loss curve; delete it if you
need neither. Ctrl-C ends the step, saves, and exits with code 130. The same
options give the same bits on the same machine, whatever --threads says.

Without --corpus the first 600 steps or so read memory games alone, from which
a model learns to look back; stories come after them.

FILE of --corpus is text in UTF-8; a line <|endoftext|> ends a document. One of
more than 3 characters for each token of --length is cut into several. Of 20 or
more documents every 20th is held out, to measure the loss on.
"""

LOG_EVERY = 50  # steps, from line to line where standard error is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; defaults are None here, so that --resume can refuse what is given."""
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="the folder to write")
    whole = arguments.integer
    add("--seed", type=whole, metavar="N", help="all randomness follows from it (default: 0)")
    add("--corpus", type=Path, metavar="FILE", help="your own text (default: generated stories)")
    text = "fine-tune a checkpoint, a folder or a name in the hub's local cache, with its tokenizer"
    add("--from", dest="base", metavar="MODEL", help=text)
    add("--resume", action="store_true", help="go on with the run that is in OUT")
    text = "steps of the optimizer (default: 12000; with --from 300)"
    add("--steps", type=whole, metavar="N", help=text)
    text = "tokens of a step, in whole documents (default: 2048)"
    add("--batch-tokens", type=whole, metavar="N", help=text)
    text = "most tokens that go through the model together (default: 640)"
    add("--length", type=whole, metavar="N", help=text)
    text = "the highest, reached after 100 steps or a tenth of all; it falls to a tenth of that "
    text += "(default: 0.0015; with --from 0.0003)"
    add("--learning-rate", type=arguments.number, metavar="X", help=text)
    text = "sliding window of the model (default: 256; with --from its own)"
    add("--window", type=whole, metavar="W", help=text)
    add("--vocabulary", type=whole, metavar="V", help="pieces of the tokenizer (default: 2048)")
    text = "of the checkpoint: bfloat16 (default), float16 or float32; training is in float32"
    add("--dtype", choices=("bfloat16", "float16", "float32"), metavar="TYPE", help=text)
    text = "save every N steps (default: 250)"
    add("--save-every", type=whole, default=250, metavar="N", help=text)
    add("--stop-after", type=whole, metavar="N", help="save and stop after step N, as by Ctrl-C")
    text = "draw the loss curve at the end, .svg or .png; needs matplotlib"
    add("--plot", type=Path, metavar="FILE", help=text)
    text = "rows of a batch computed at once, each by one thread (default: all cores)"
    add("--threads", dest="workers", type=whole, metavar="N", help=text)
    # For NumPy's linear algebra: with one thread a row has the same bits on any number of cores.
    parser.set_defaults(threads=1)


# What a run follows from, which --resume takes from OUT.
ONLY_NEW = (
    "seed corpus base steps batch_tokens length learning_rate window vocabulary dtype".split()
)

LIMITS = {
    **dict.fromkeys(("steps", "batch_tokens", "window"), (1, 2**31 - 1)),
    **dict.fromkeys(("save_every", "stop_after", "workers"), (1, 2**31 - 1)),
    "length": (2, 2**31 - 1),  # a token, and the one that it predicts
    "vocabulary": (260, 2**31 - 1),  # <unk>, <s>, </s>, a piece for each byte, and one more
    "seed": (0, 2**32 - 1),
}


def run(options: argparse.Namespace) -> int:
    """Train, and say what was written."""
    check(options)
    from tinymistral.training.pictures import check_picture, draw_curve
    from tinymistral.training.run import save
    from tinymistral.training.train import train

    if options.plot is not None:
        check_picture(options.plot)
    with stopping() as interrupted, ExitStack() as locks:
        training = begin(options, locks)
        if options.stop_after is not None and options.stop_after <= training.step:
            raise ValueError(
                f"--stop-after: {training.step} steps are done, expected more than that"
            )
        log = Log(training.recipe.steps)

        def stop() -> bool:
            return interrupted() or training.step == options.stop_after

        with log.progress:
            train(
                training,
                threads=min(options.workers or cores(), cores()),
                report=log,
                save=lambda: save(training, options.out),
                save_every=options.save_every,
                stop=stop,
            )
    if options.plot is not None and training.curve.loss:
        with interruptible():
            draw_curve(training.curve, options.plot)
    if training.step < training.recipe.steps:
        say(
            f"stopped after step {training.step} of {training.recipe.steps} and saved; to go on: "
            f"tinymistral train {options.out} --resume"
        )
        return 130 if interrupted() else 0
    parameters = sum(array.size for array in training.weights.values())
    held_out = training.curve.held_out_loss[-1:]
    write(
        f"wrote {options.out}: {parameters:,} parameters, {training.recipe.dtype}"
        + "".join(f", held-out loss {loss:.3f}" for loss in held_out)
        + "\n"
    )
    return 0


def check(options: argparse.Namespace) -> None:
    """Raise a ValueError for options that do not fit, before NumPy is imported."""
    for name, (least, most) in LIMITS.items():
        value = getattr(options, name)
        if value is not None:
            arguments.check_range(flag(name), value, least, most)
    if options.learning_rate is not None and not 0 < options.learning_rate < 1:
        raise ValueError(f"--learning-rate: expected 0 to 1, got {options.learning_rate}")
    if options.base is not None and options.vocabulary is not None:
        raise ValueError("--vocabulary is for a new tokenizer; --from takes that of the checkpoint")
    given = [flag(name) for name in ONLY_NEW if getattr(options, name) is not None]
    if options.resume and given:
        raise ValueError(
            f"{given[0]} is for a new run; --resume goes on with what OUT was begun with"
        )
    if not options.resume:
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"{options.out}: is a file; give a folder that is not there yet")
        if options.out.is_dir() and any(options.out.iterdir()):
            raise there_already(options.out)


def there_already(out: Path) -> ValueError:
    """Return the error for a new run in a folder that is not empty."""
    from tinymistral.training.run import FOLDER, RECIPE_FILE

    advice = ", or --resume" if (out / FOLDER / RECIPE_FILE).is_file() else ""
    return ValueError(f"{out}: is there already; give another folder{advice}")


def flag(name: str) -> str:
    """Return the option whose value has this name."""
    names = {"base": "--from", "workers": "--threads"}
    return names.get(name, f"--{name.replace('_', '-')}")


def begin(options: argparse.Namespace, locks: ExitStack) -> Run:
    """Begin a run and save it, or open the one in OUT; no other process writes to it meanwhile."""
    from tinymistral.files import make_folder, only_writer
    from tinymistral.training.run import FOLDER, fine_tuning, new_run, resume, save

    inside = options.out / FOLDER
    if options.resume:
        with suppress(FileNotFoundError):  # `resume` says that there is no run
            locks.enter_context(only_writer(inside))
        return resume(options.out)
    recipe = recipe_of(options)
    with Progress("preparing the tokenizer") as progress:
        progress()
        if options.base is not None:
            training = fine_tuning(recipe, options.base, options.window)
        else:
            sizes = {"vocab_size": options.vocabulary, "window": options.window}
            training = new_run(recipe, **{k: v for k, v in sizes.items() if v is not None})
        make_folder(inside)
        locks.enter_context(only_writer(inside))
        if any(path != inside for path in options.out.iterdir()):  # since `check`
            raise there_already(options.out)
        save(training, options.out)  # now, so that a folder that cannot be written costs no hours
    return training


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the recipe that the options ask for."""
    from tinymistral.training.run import Recipe

    names = ("seed", "steps", "batch_tokens", "length", "learning_rate", "dtype")
    chosen = {name: getattr(options, name) for name in names}
    if options.base is not None:
        chosen = {"steps": 300, "learning_rate": 3e-4} | {
            name: value for name, value in chosen.items() if value is not None
        }
    if options.corpus is not None:
        chosen["corpus"] = str(options.corpus.absolute())
    return Recipe.of(**{name: value for name, value in chosen.items() if value is not None})


class Log:
    """Shows each step on a terminal, and leaves a line for some of them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.progress = Progress("{}")
        self.recent = deque([(time.monotonic(), 0)], maxlen=LOG_EVERY)  # when, tokens so far

    def __call__(self, done: StepDone) -> None:
        """Report a step."""
        self.recent.append((time.monotonic(), self.recent[-1][1] + done.tokens))
        (start, before), (now, tokens) = self.recent[0], self.recent[-1]
        seconds = (now - start) / (len(self.recent) - 1)
        line = (
            f"step {done.step} of {self.steps}, loss {done.loss:.3f}, "
            f"{(tokens - before) / max(now - start, 1e-9):,.0f} tokens/s, "
            f"{duration(seconds * (self.steps - done.step))} left"
        )
        if done.held_out_loss is not None:
            self.progress.clear()
            say(f"{line}, held-out loss {done.held_out_loss:.3f}")
        elif self.progress.wanted:
            self.progress(line)
        elif done.step % LOG_EVERY == 0 or done.step == self.steps:
            say(line)


def duration(seconds: float) -> str:
    """Return a time such as 2 h 05 min, 7 min or 40 s."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
