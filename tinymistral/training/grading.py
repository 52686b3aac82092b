"""Grade a model on held-out stories: what it remembers of them, and how it tells its own.

A fact of a story, such as the hero's name, is told early and asked for again later. The model reads
the story up to the place where it is asked for, and has to choose the answer among all answers that
the grammar could have put there. The distance of such a place is i - j, as in the rule of
visibility `0 <= i - j < W`: i is the position of the token that predicts the answer, j that of the
last token of the last earlier mention. So a mention is inside the window if and only if it is
visible to that token. Beyond it, what is known of the fact has to be passed on from layer to layer;
N layers reach back N(W - 1) tokens.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tinymistral.heads import MistralForCausalLM
from tinymistral.mistakes import Mistake
from tinymistral.mistakes.cache import evict_before_attend
from tinymistral.mistakes.rope import nothing_turned
from tinymistral.sampling import log_softmax
from tinymistral.scoring import Score
from tinymistral.training.stories import (
    Fact,
    Recall,
    Story,
    closes,
    recalls,
    sentences,
    well_formed,
)

if TYPE_CHECKING:
    from tinymistral.tokenizer import MistralTokenizer

AS_IT_IS = "as it is"  # the name of the model itself, among its variants
BEGINNING = 2  # sentences of a story that a continuation begins with
UNWINDOWED = 128  # a model without a window is graded as if this were it, in bins of distances

Progress = Callable[[str, int, int], None]  # what is done, how many, of how many
Variants = dict[str, Callable[[], AbstractContextManager[MistralForCausalLM]]]


@dataclass(frozen=True)
class Fork:
    """A column of an answer where other choices, the same up to here, have other ids."""

    column: int
    right: int
    others: tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """A place in a story where a fact is asked for again; columns are those of the story's ids."""

    kind: str
    chance: float  # of guessing the answer among its choices
    distance: int  # i - j, in tokens
    start: int  # the first column of the answer
    stop: int  # the column after its last
    forks: tuple[Fork, ...]  # none if the tokens do not tell the answer from another choice


@dataclass(frozen=True)
class Reading:
    """How a model, or a variant of it, predicts each token of the stories from those before."""

    right: np.ndarray  # (places,), whether it chooses the answer among the choices
    said: np.ndarray  # (places,), whether the answer is likelier than all other continuations
    perplexity: float  # per token
    perplexity_per_word: float  # does not depend on the tokenizer


@dataclass(frozen=True)
class Telling:
    """How a model continues the beginnings of the stories; counts."""

    stories: int
    ended: int  # stories that end by themselves, with </s>
    closed: int  # of those: stories whose last sentence ends a plot
    sentences: int  # whole sentences, without those of the beginnings
    well_formed: int  # of those: sentences that the grammar can say
    recalls: int  # facts that these sentences recall, of the story's beginning or of their own
    right: int  # of those: as the story has told them


@dataclass(frozen=True)
class Row:
    """A line of the table: a group of places, and how each variant does there; counts."""

    name: str
    places: int
    chance: float
    right: dict[str, int]  # by variant, as in `Reading`
    said: dict[str, int]

    def recall(self, variant: str) -> float:
        """The share of places that are right; NaN if there are none."""
        return self.right[variant] / self.places if self.places else math.nan


@dataclass(frozen=True)
class Grades:
    """All that `grade` measures."""

    stories: int
    tokens: int
    window: int | None
    layers: int
    places: tuple[Place, ...]
    readings: dict[str, Reading]  # of the model itself and its variants, by name
    greedy: Telling
    sampled: Telling

    def row(self, name: str, chosen: np.ndarray) -> Row:
        """Count the chosen places, booleans (places,)."""
        chances = [place.chance for place, is_in in zip(self.places, chosen, strict=True) if is_in]
        return Row(
            name,
            places=len(chances),
            chance=math.fsum(chances) / max(1, len(chances)),
            right={key: int(one.right[chosen].sum()) for key, one in self.readings.items()},
            said={key: int(one.said[chosen].sum()) for key, one in self.readings.items()},
        )

    def by_kind(self) -> list[Row]:
        """Return recall inside and beyond the window, of each kind of fact and of all."""
        kinds = np.array([place.kind for place in self.places], dtype=object)
        inside = self.distances < (math.inf if self.window is None else self.window)
        rows = []
        for kind in (*sorted(set(kinds)), "all"):
            of_kind = (kinds == kind) | (kind == "all")
            rows.append(self.row(f"{kind}, inside", of_kind & inside))
            rows.append(self.row(f"{kind}, beyond", of_kind & ~inside))
        return [row for row in rows if row.places]

    def by_distance(self) -> list[Row]:
        """Return recall in bins of distances, see `edges`."""
        return [
            self.row(f"{start} to {stop - 1}", (self.distances >= start) & (self.distances < stop))
            for start, stop in pairwise(self.edges())
        ]

    def edges(self) -> list[int]:
        """Return where bins of distances begin, and where the last ends: after all places.

        A bin is a quarter of the window wide, and from two windows on a whole one.
        """
        window = self.window or UNWINDOWED
        windows = (int(self.distances.max(initial=0)) + 1) / window
        quarters = range(math.ceil(4 * min(windows, 2)) + 1)
        far = range(3, math.ceil(windows) + 1)
        return sorted({window * n // 4 for n in quarters} | {window * n for n in far})

    @property
    def distances(self) -> np.ndarray:
        """The distance of each place (places,)."""
        return np.array([place.distance for place in self.places], dtype=np.int64)


def grade(
    model: MistralForCausalLM,
    tokenizer: MistralTokenizer,
    stories: Sequence[Story],
    *,
    continuations: int | None = None,
    with_variants: bool = False,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Grades:
    """Let a model read the stories, and continue the beginnings of the first `continuations`.

    Of all stories, if that is None. With `with_variants` each of `variants` reads them too. `seed`
    is that of the sampled continuations.
    """
    if not stories:
        raise ValueError("stories: expected at least one to grade on, got none")
    rows = [np.array(tokenizer.encode(each.text), dtype=np.int64) for each in stories]
    places = [places_of(each, row, tokenizer) for each, row in zip(stories, rows, strict=True)]
    words = sum(len(each.text.split()) for each in stories)
    every: Variants = {AS_IT_IS: lambda: nullcontext(model)}
    if with_variants:
        every |= variants(model)
    readings = {}
    for name, opened in every.items():
        with opened() as variant:
            readings[name] = read(variant, rows, places, words, partial(progress, f"read {name}"))
    longest = max(len(row) for row in rows)
    begun = stories[:continuations]
    tell = partial(continue_stories, model, tokenizer, begun, max_new_tokens=longest)
    return Grades(
        stories=len(stories),
        tokens=sum(len(row) for row in rows),
        window=model.config.sliding_window,
        layers=model.config.num_hidden_layers,
        places=tuple(place for of_story in places for place in of_story),
        readings=readings,
        greedy=tell(progress=partial(progress, "greedy tokens"), do_sample=False),
        sampled=tell(progress=partial(progress, "sampled tokens"), do_sample=True, seed=seed),
    )


# Where the facts are


def places_of(told: Story, ids: np.ndarray, tokenizer: MistralTokenizer) -> list[Place]:
    """Return where a story with these ids (T,) asks for facts."""
    places = []
    for fact in told.facts:
        start = count_tokens(told.text[: fact.recalled].rstrip(), ids, tokenizer)
        stop = count_tokens(
            to_word_end(told.text, fact.recalled + len(fact.answer)), ids, tokenizer
        )
        mention = count_tokens(to_word_end(told.text, fact.told), ids, tokenizer)
        distance = start - mention  # i - j: i = start - 1 predicts the answer, j = mention - 1
        forks = forks_of(told, fact, ids, tokenizer)
        places.append(Place(fact.kind, 1 / len(fact.choices), distance, start, stop, forks))
    return places


def forks_of(
    told: Story, fact: Fact, ids: np.ndarray, tokenizer: MistralTokenizer
) -> tuple[Fork, ...]:
    """Return where the answer's tokens, in a story with these ids (T,), part from the choices'.

    They are compared with the text around them up to the next spaces, since a token never goes on
    past one.
    """
    start, stop = fact.recalled, fact.recalled + len(fact.answer)
    before = told.text[:start].rpartition(" ")[2]  # such as a quotation mark
    after = to_word_end(told.text, stop)[stop:]
    spelled = {
        choice: tokenizer.encode(before + choice + after, add_special_tokens=False)
        for choice in fact.choices
    }
    right = spelled[fact.answer]
    first = count_tokens(told.text[: start - len(before)].rstrip(), ids, tokenizer)
    if [*spelled.values()].count(right) > 1 or ids[first : first + len(right)].tolist() != right:
        return ()
    forks = []
    for n, token in enumerate(right):
        same = [row for row in spelled.values() if len(row) > n and row[:n] == right[:n]]
        others = {row[n] for row in same} - {token}
        if others:
            forks.append(Fork(first + n, token, tuple(sorted(others))))
    return tuple(forks)


def to_word_end(text: str, offset: int) -> str:
    """Return the text up to the end of the word that goes on at `offset`: a token may end there."""
    return re.match(rf".{{{offset}}}\w*", text, re.DOTALL)[0]  # type: ignore[index]


def count_tokens(beginning: str, ids: np.ndarray, tokenizer: MistralTokenizer) -> int:
    """Return how many of a text's ids (T,) are those of its beginning.

    It should not end with a space, which belongs to the next word: it may be a token of its own.
    """
    alone = tokenizer.encode(beginning)[: len(ids)]
    differs = np.flatnonzero(ids[: len(alone)] != alone)
    return int(differs[0]) if len(differs) else len(alone)


# Reading: each token is predicted from the true ones before it


def read(
    model: MistralForCausalLM,
    rows: Sequence[np.ndarray],
    places: Sequence[Sequence[Place]],
    words: int,
    progress: Callable[[int, int], None],
) -> Reading:
    """Let a model read stories, each of ids (T,), with `words` words in all.

    One pass says what the model would choose, or say, token by token: it has said the answer's
    tokens so far itself up to the first that is wrong.
    """
    right, said, logprobs = [], [], []
    for n, (ids, of_story) in enumerate(zip(rows, places, strict=True)):
        logits = next_logits(model, ids)
        is_likeliest = logits.argmax(axis=-1) == ids[1:]
        for place in of_story:
            right.append(chooses(logits, place.forks))
            said.append(bool(is_likeliest[place.start - 1 : place.stop - 1].all()))
        logprobs.append(log_softmax(logits)[np.arange(len(logits)), ids[1:]])
        progress(n + 1, len(rows))
    score = Score(np.concatenate(logprobs))
    with np.errstate(over="ignore"):
        per_word = float(np.exp(-score.total / words))
    return Reading(np.array(right, bool), np.array(said, bool), score.perplexity, per_word)


def chooses(logits: np.ndarray, forks: Sequence[Fork]) -> bool:
    """Return whether the right token has the largest of logits (T - 1, V) at each fork.

    If there are no forks, or if another token is as likely, it does not.
    """
    return bool(forks) and all(
        logits[fork.column - 1, fork.right] > logits[fork.column - 1, list(fork.others)].max()
        for fork in forks
    )


def next_logits(model: MistralForCausalLM, ids: np.ndarray) -> np.ndarray:
    """Return the logits (T - 1, V) of the tokens that follow each of ids (T,) but the last.

    The text goes through in pieces no longer than the window, so that the ring of a story longer
    than two pieces wraps, and a wrong ring shows. A right one gives the same logits in any pieces.
    """
    window = model.config.sliding_window
    chunk = model.backend.chunk if window is None else min(window, model.backend.chunk)
    cache = model.new_cache(rows=1, chunk=chunk)
    logits: np.ndarray = model([ids[:-1]], past_key_values=cache).logits[0]
    return logits


# Variants: what the window, the ring and RoPE are for


def variants(model: MistralForCausalLM) -> Variants:
    """Return models with the same weights that lack a part of what they were trained with.

    Each is a context, since planting a mistake in the cache changes the caches of all models
    meanwhile. The mistakes are planted in the NumPy backend, whatever the model's own.
    """
    window = model.config.sliding_window
    found: Variants = {}
    if window is not None and window > 1:
        found[f"window {window // 2}"] = lambda: nullcontext(with_window(model, window // 2))
        found[f"ring of {window}"] = partial(with_mistake, model, evict_before_attend)
    found["no RoPE"] = partial(with_mistake, model, nothing_turned)
    return found


def with_window(model: MistralForCausalLM, window: int) -> MistralForCausalLM:
    """Return the model with another window."""
    config = dataclasses.replace(model.config, sliding_window=window)
    return MistralForCausalLM(config, backend=model.backend, tensors=model.tensors)


@contextmanager
def with_mistake(model: MistralForCausalLM, mistake: Mistake) -> Iterator[MistralForCausalLM]:
    """Yield the model with a mistake of the catalogue."""
    with mistake.planted(model.backend.dtype) as backend:
        yield MistralForCausalLM(model.config, backend=backend, tensors=model.tensors)


# Telling: the model continues by itself


def continue_stories(
    model: MistralForCausalLM,
    tokenizer: MistralTokenizer,
    stories: Sequence[Story],
    *,
    max_new_tokens: int,
    progress: Callable[[int, int], None],
    **options: object,
) -> Telling:
    """Continue the beginning of each story, with options of `generate`, and look at the result."""
    beginnings = [beginning_of(each.text) for each in stories]
    inputs = tokenizer(beginnings)
    steps = []
    for step in model.generate_stream(
        **inputs, max_new_tokens=max_new_tokens, num_return_sequences=1, **options
    ):
        steps.append(step)
        progress(len(steps), max_new_tokens)
    tokens = np.stack([step.tokens for step in steps], axis=1)
    texts = tokenizer.batch_decode(
        np.concatenate([inputs.input_ids, tokens], axis=1), skip_special_tokens=True
    )
    return telling_of(beginnings, texts, steps[-1].finished.tolist())


def beginning_of(text: str) -> str:
    """Return the first sentences of a story."""
    return " ".join(sentences(text)[:BEGINNING])


def telling_of(beginnings: Sequence[str], texts: Sequence[str], ended: Sequence[bool]) -> Telling:
    """Count what the whole texts, which start with `beginnings`, are like."""
    new: list[str] = []
    recalled: list[Recall] = []
    for beginning, text, is_whole in zip(beginnings, texts, ended, strict=True):
        recalled += recalls(text)[len(recalls(beginning)) :]
        added = sentences(text)[len(sentences(beginning)) :]
        new += added if is_whole else added[:-1]  # the last one is cut off
    return Telling(
        stories=len(texts),
        ended=sum(ended),
        closed=sum(is_whole and closes(text) for text, is_whole in zip(texts, ended, strict=True)),
        sentences=len(new),
        well_formed=sum(map(well_formed, new)),
        recalls=len(recalled),
        right=sum(recall.right for recall in recalled),
    )
