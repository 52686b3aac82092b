"""Endless short stories for children, from a grammar and a seed, with the facts they recall.

words.py      the words that a story's facts are drawn from
scenes.txt    scenes that any plot may use: openings, little events on the way, endings
plots.txt     the plots, as lists of scenes
templates.py  the notation of those two files
grammar.py    a seed to a story
games.py      memory games, from which a model learns to copy
parser.py     which sentences the grammar can say, and what a text recalls in them
"""

from tinymistral.training.stories.games import growing_list, rounds
from tinymistral.training.stories.grammar import Fact, Story, story
from tinymistral.training.stories.parser import Recall, closes, recalls, sentences, well_formed

__all__ = [
    "Fact",
    "Recall",
    "Story",
    "closes",
    "growing_list",
    "recalls",
    "rounds",
    "sentences",
    "story",
    "well_formed",
]
