"""Endless short stories for children, from a grammar and a seed, with the facts they recall.

words.py      the words that a story's facts are drawn from
scenes.txt    scenes that any plot may use: openings, little events on the way, endings
plots.txt     the plots, as lists of scenes
templates.py  the notation of those two files: parse, fill with facts, match with a sentence
grammar.py    a seed to a story; the parser of sentences
games.py      memory games, from which a model learns to copy
recalls.py    the facts that any text recalls, and whether it told them so
"""

from tinymistral.training.stories.games import game
from tinymistral.training.stories.grammar import (
    PLOTS,
    Fact,
    Story,
    closes,
    sentences,
    story,
    well_formed,
)

__all__ = ["PLOTS", "Fact", "Story", "closes", "game", "sentences", "story", "well_formed"]
