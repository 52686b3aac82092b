"""Grade how a model remembers the facts of held-out stories, and tells its own.

A fact, such as the hero's name, is told early in a story and asked for again
later. The model reads up to that place, and chooses among all the answers that
would fit there. The distance is that between the token which predicts the
answer and the last mention: the mention is inside the window, or beyond it.
The stories are those that `tinymistral train` generates: a model that learned
from other texts can only guess.

  tinymistral grade --model my-model
  tinymistral grade --model FOLDER --variants --plot recall.svg

--variants grades three more models, of the same weights: with half the window;
with a ring buffer of W slots, so that a piece of W tokens overwrites keys that
it needs itself; and without RoPE. They show what each of these is for.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinymistral.commands import arguments
from tinymistral.commands.console import Progress, finite, interruptible, print_json, write
from tinymistral.text import table

if TYPE_CHECKING:
    from tinymistral.training.grading import Grades, Row, Telling

EPILOG = """\
--json prints one object, on one line:
  stories, tokens     how many were read
  window, layers      of the model
  kinds, distances    lists of objects, recall by kind of fact and by distance:
    name, places      which, and how many
    chance            the share that a guess among the choices would have right
    right             how many each variant chooses rightly, an object
    said              for how many the answer is likelier than any other text,
                      though a story could often go on in another way
  readings            of each variant: perplexity, and perplexity_per_word
  greedy, sampled     continuations of the beginnings of stories:
    stories           how many
    ended, closed     that end by themselves; those whose last sentence ends a
                      plot too
    sentences         how many, without those of the beginnings
    well_formed       how many of these the grammar of the stories can say
    recalls, right    how many facts they recall, and how many of these as the
                      story has told them
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    arguments.add_model(parser)
    add = parser.add_argument
    text = "read N held-out stories (default: 200)"
    add("--stories", type=arguments.integer, default=200, metavar="N", help=text)
    text = "continue the first N of them, greedily and sampled (default: 50)"
    add("--continuations", type=arguments.integer, default=50, metavar="N", help=text)
    text = "seed of the sampled continuations (default: 0)"
    add("--seed", type=arguments.integer, default=0, metavar="N", help=text)
    add("--variants", action="store_true", help="grade also three models that lack something")
    text = "draw recall by distance, where there are enough facts, .svg or .png; needs matplotlib"
    add("--plot", type=Path, metavar="FILE", help=text)
    arguments.add_computation(parser)
    arguments.add_json(parser)


LIMITS = {"stories": (1, 100_000), "continuations": (1, 100_000), "seed": (0, 2**63 - 1)}


def run(options: argparse.Namespace) -> None:
    """Print how a model remembers and tells stories."""
    from tinymistral.training.documents import graded_stories
    from tinymistral.training.grading import grade
    from tinymistral.training.pictures import check_picture, draw_recall

    # What can be wrong is found before all is computed.
    for name, (least, most) in LIMITS.items():
        arguments.check_range(f"--{name}", getattr(options, name), least, most)
    if options.plot is not None:
        check_picture(options.plot)
    model, tokenizer = arguments.open_checkpoint(options)
    with interruptible(), Progress("{}: {} of {}") as progress:
        grades = grade(
            model,
            tokenizer,
            graded_stories(options.stories),
            continuations=options.continuations,
            with_variants=options.variants,
            seed=options.seed,
            progress=progress,
        )
        if options.plot is not None:
            draw_recall(grades, options.plot)
    if options.json:
        print_json(as_fields(grades))
    else:
        write(as_text(grades))


def as_fields(grades: Grades) -> dict[str, Any]:
    """Return what --json prints."""
    return {
        **{name: getattr(grades, name) for name in ("stories", "tokens", "window", "layers")},
        "kinds": [dataclasses.asdict(row) for row in grades.by_kind()],
        "distances": [dataclasses.asdict(row) for row in grades.by_distance()],
        "readings": {
            name: {
                "perplexity": finite(reading.perplexity),
                "perplexity_per_word": finite(reading.perplexity_per_word),
            }
            for name, reading in grades.readings.items()
        },
        "greedy": dataclasses.asdict(grades.greedy),
        "sampled": dataclasses.asdict(grades.sampled),
    }


def as_text(grades: Grades) -> str:
    """Return the tables."""
    read = f"{grades.stories} stories, {grades.tokens} tokens; {grades.layers} layers"
    if grades.window is not None:
        reach = grades.layers * (grades.window - 1)
        read += f", window W = {grades.window}, which N layers pass on over N(W - 1) = {reach}"
    names = list(grades.readings)
    head = ("places", "chance", *names)
    readings = [grades.readings[name] for name in names]
    others = [
        ("perplexity per token", *(f"{reading.perplexity:.3f}" for reading in readings)),
        ("perplexity per word", *(f"{reading.perplexity_per_word:.3f}" for reading in readings)),
        *(
            (
                f"says the answer, {row.name.removeprefix('all, ')}",
                *(f"{row.said[name] / row.places:.3f}" for name in names),
            )
            for row in grades.by_kind()
            if row.name.startswith("all, ")
        ),
    ]
    tellings = (grades.greedy, grades.sampled)
    tables = [
        [("recall by kind of fact", *head), *cells_of(grades.by_kind(), names)],
        [("recall by distance", *head), *cells_of(grades.by_distance(), names)],
        [("the next token", *names), *others],
        [(f"{grades.greedy.stories} continuations", "greedy", "sampled"), *told(tellings)],
    ]
    texts = ("".join(f"{line}\n" for line in table(rows, str.rjust)) for rows in tables)
    return "\n".join([f"{read}\n", *texts])


def cells_of(rows: Iterable[Row], variants: Sequence[str]) -> list[tuple[str, ...]]:
    """Return a line of a table for each row with places."""
    return [
        (
            row.name,
            str(row.places),
            f"{row.chance:.2f}",
            *(f"{row.recall(variant):.3f}" for variant in variants),
        )
        for row in rows
        if row.places
    ]


def told(tellings: Sequence[Telling]) -> list[tuple[str, ...]]:
    """Return the lines of the table of continuations."""
    shares = {
        "well-formed sentences": [(t.well_formed, t.sentences) for t in tellings],
        "facts recalled right": [(t.right, t.recalls) for t in tellings],
        "end by themselves": [(t.ended, t.stories) for t in tellings],
        "end, and close the plot": [(t.closed, t.stories) for t in tellings],
    }
    return [
        (name, *(f"{part / whole:.3f}" if whole else "-" for part, whole in counts))
        for name, counts in shares.items()
    ]
