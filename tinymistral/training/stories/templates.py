"""Sentences with gaps: the notation of scenes.txt and plots.txt.

    (glad|happy)      one of these, drawn each time
    {colour}          the story's colour; the same one all through the story
    {colour!}         the same, where the story so far has told it: a fact that is recalled
    {a colour}        with its indefinite article: "a red", "an orange"
    {s fruit}         its plural
    {Hero} {A toy}    with a capital letter

A plot is a list of steps, and a step a list of alternatives, of which one is drawn:

    == name           begins a plot or a scene
    toy = kite, ball  in this plot the toy is one of these
    - sentence / sentence
                      begins a step; `/` parts the sentences of one alternative
    | sentence        another alternative of the same step
    | [weather=rainy, snowy] sentence
                      an alternative for these weathers only
    -? sentence       a step that half of the stories leave out
    @name             a step that stands in scenes.txt; `@? name` is left out by half
    ~name             some steps out of a scene's alternatives, often none
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PART = re.compile(r"\{(?P<slot>[^{}]+)\}|\((?P<choice>[^()]+)\)")


@dataclass(frozen=True)
class Slot:
    """A gap for a fact: which, and in what form."""

    name: str
    form: str = ""  # "a": with its article; "s": plural
    capital: bool = False
    recall: bool = False


Part = str | Slot | tuple["Parts", ...]
Parts = tuple[Part, ...]


@dataclass(frozen=True)
class Alternative:
    """One way to tell a step: its sentences, and what must hold for it to be told."""

    sentences: tuple[Parts, ...]
    sources: tuple[str, ...]
    opening_word: str
    tells: frozenset[str]  # the slots that it fills
    recalls: frozenset[str]  # the slots that it asks for again
    condition: tuple[str, frozenset[str]] | None = None


@dataclass(frozen=True)
class Step:
    """A step of a plot: alternatives, or the name of a scene that holds them."""

    alternatives: tuple[Alternative, ...] = ()
    scene: str = ""
    optional: bool = False
    repeated: bool = False


@dataclass(frozen=True)
class Plot:
    """Steps in order, and the slots whose words this plot restricts."""

    steps: tuple[Step, ...]
    words: Mapping[str, tuple[str, ...]]


def parse(source: str) -> Parts:
    """Return the parts of a template: literal text, slots and choices."""
    parts: list[Part] = []
    position = 0
    for found in PART.finditer(source):
        if found.start() > position:
            parts.append(source[position : found.start()])
        if found["slot"]:
            parts.append(_slot(found["slot"]))
        else:
            parts.append(tuple(parse(option) for option in found["choice"].split("|")))
        position = found.end()
    if position < len(source):
        parts.append(source[position:])
    return tuple(parts)


def _slot(text: str) -> Slot:
    form, _, name = text.removesuffix("!").rpartition(" ")
    first = (form or name)[0]
    return Slot(name.lower(), form.lower(), first.isupper(), text.endswith("!"))


def slots_in(parts: Parts) -> Iterator[Slot]:
    """Yield the slots of a template, those inside choices too."""
    for part in parts:
        if isinstance(part, Slot):
            yield part
        elif isinstance(part, tuple):
            for option in part:
                yield from slots_in(option)


def read(text: str) -> dict[str, Plot]:
    """Read plots or scenes in the notation above, by name."""
    plots: dict[str, Plot] = {}
    for block in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        title, _, body = block.partition("\n")
        steps: list[Step] = []
        words: dict[str, tuple[str, ...]] = {}
        for line in filter(None, map(str.strip, body.splitlines())):
            mark, _, rest = line.partition(" ")
            if line[0] in "@~":
                name = line.lstrip("@~?").strip()
                optional, repeated = line.startswith("@?"), line[0] == "~"
                steps.append(Step(scene=name, optional=optional, repeated=repeated))
            elif mark in ("-", "-?"):
                steps.append(Step((_alternative(rest),), optional=mark == "-?"))
            elif mark == "|":
                last = steps.pop()
                both = (*last.alternatives, _alternative(rest))
                steps.append(Step(both, optional=last.optional))
            else:
                slot, _, values = line.partition("=")
                words[slot.strip()] = tuple(value.strip() for value in values.split(","))
        plots[title.strip()] = Plot(tuple(steps), words)
    return plots


def _alternative(line: str) -> Alternative:
    condition = None
    if line.startswith("["):
        test, _, line = line[1:].partition("] ")
        slot, _, values = test.partition("=")
        condition = (slot, frozenset(value.strip() for value in values.split(",")))
    sources = tuple(line.split(" / "))
    parsed = tuple(parse(source) for source in sources)
    slots = [slot for parts in parsed for slot in slots_in(parts)]
    tells = frozenset(slot.name for slot in slots if not slot.recall)
    recalls = frozenset(slot.name for slot in slots if slot.recall)
    return Alternative(parsed, sources, line.split()[0], tells, recalls, condition)
