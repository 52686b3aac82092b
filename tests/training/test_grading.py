"""The grader: on stories written by hand, with models of which one knows what they say.

Distances, places and counts are counted by hand; what a variant of a model sees is computed with
the model itself, on another text.
"""

import dataclasses
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from tinymistral import DEMO, MistralConfig, MistralForCausalLM, MistralTokenizer
from tinymistral.generation import GenerationStep
from tinymistral.tokenizer import BatchEncoding
from tinymistral.training.documents import graded_stories
from tinymistral.training.grading import (
    AS_IT_IS,
    Fork,
    Grades,
    Place,
    Reading,
    Telling,
    beginning_of,
    chooses,
    forks_of,
    grade,
    next_logits,
    places_of,
    read,
    telling_of,
    to_word_end,
    variants,
)
from tinymistral.training.stories import Fact, Story, sentences

# A word, or a mark, is a token here; <s> is token 0, so "Mia" is 3, and its last mention before the
# first question is 6.
TEXT = "Here is Mia. Then Mia sang, and who sang? Mia sang of red hats. Red hats? Yes, red."
MIA = Fact("name", "Mia", ("Mia", "Tom", "Ben", "Ann"), TEXT.index("Mia sang,") + 3, 42)
RED = Fact("colour", "red", ("red", "blue"), TEXT.index("red hats") + 3, TEXT.rindex("red"))
STORY = Story(TEXT, "song", (MIA, RED))


class Words:
    """A tokenizer: a token for each word, with the space before it, and for each mark."""

    PATTERN = r" ?\w+| ?[^\w ]| "

    def __init__(self) -> None:
        self.pieces = ["<s>", "</s>"]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        found = re.findall(self.PATTERN, f" {text}")  # begins with a space, as SentencePiece
        self.pieces += [piece for piece in dict.fromkeys(found) if piece not in self.pieces]
        return [0] * add_special_tokens + [self.pieces.index(piece) for piece in found]

    def __call__(self, texts: list[str]) -> BatchEncoding:
        rows = [self.encode(text) for text in texts]
        width = max(map(len, rows))
        return BatchEncoding(  # padded on the left
            input_ids=np.array([[0] * (width - len(row)) + row for row in rows]),
            attention_mask=np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        )

    def batch_decode(self, rows: np.ndarray, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(self.pieces[i] for i in row if i > 1)[1:] for row in rows]


class Parrot:
    """A model that says the stories it is given, or for some ids another id instead."""

    V = 200
    backend = SimpleNamespace(chunk=16, dtype="float32")

    def __init__(self, texts: list[str], tokenizer: Words, instead: dict[int, int] | None = None):
        self.config = MistralConfig(vocab_size=self.V, sliding_window=8, num_hidden_layers=2)
        self.rows = [[*tokenizer.encode(text), 1] for text in texts]
        self.instead = instead or {}
        self.said: list[dict] = []
        self.rather: int | None = None  # an id that it finds likelier than all others

    def new_cache(self, rows: int, chunk: int) -> None:
        assert (rows, chunk) == (1, 8)

    def next(self, ids: list[int]) -> int:
        whole = next(row for row in self.rows if row[: len(ids)] == ids)
        return self.instead.get(whole[len(ids)], whole[len(ids)])

    def __call__(self, input_ids: list[np.ndarray], past_key_values: None) -> SimpleNamespace:
        ids = list(input_ids[0])
        logits = np.zeros((1, len(ids), self.V), dtype=np.float32)
        for t in range(len(ids)):
            logits[0, t, self.next(ids[: t + 1])] = math.log(2 * (self.V - 1))  # 2/3, and 1/3/199
        if self.rather is not None:
            logits[..., self.rather] = 100
        return SimpleNamespace(logits=logits)

    def generate_stream(self, input_ids, attention_mask, max_new_tokens, **options):
        self.said.append(options)
        rows = [list(i[m == 1]) for i, m in zip(input_ids, attention_mask, strict=True)]
        ended = np.zeros(len(rows), dtype=bool)
        for _ in range(max_new_tokens):
            new = [1 if row[-1] == 1 else self.next(row) for row in rows]
            for row, token in zip(rows, new, strict=True):
                row.append(token)
            ended = np.array(new) == 1
            yield GenerationStep(np.array(new), np.zeros(len(rows)), ended)
            if ended.all():
                return


# Where facts are


def test_places_are_counted_in_tokens() -> None:
    # <s> Here is Mia . Then Mia sang , and who sang ? Mia sang of red hats . Red hats ? Yes , red .
    # 0   1    2  3   4 5    6   7    8 9   10  11  12 13 14  15 16  17   18 19 20  21 22 23 24 25
    words = Words()
    places = places_of(STORY, np.array(words.encode(TEXT)), words)
    mia, tom, ben, ann, red, blue = words.encode("Mia Tom Ben Ann red blue")[1:]
    assert places == [
        Place("name", 1 / 4, 6, start=13, stop=14, forks=(Fork(13, mia, (tom, ben, ann)),)),
        Place("colour", 1 / 2, 7, start=24, stop=25, forks=(Fork(24, red, (blue,)),)),
    ]


def test_forks_are_where_choices_part() -> None:
    words = Words()
    said = 'We saw a sea horse. What? "Sea horse," we said.'
    choices = ("Sea horse", "Sea lion", "Sea", "Fox", "Old fox")
    fact = Fact("animal", "Sea horse", choices, 18, said.index("Sea"))
    (place,) = places_of(Story(said, "sea", (fact,)), np.array(words.encode(said)), words)
    # <s> We saw a sea horse . What ? "Sea horse , " we said .
    # 0   1  2   3 4   5     6 7    8 9 10 11   12
    # after the quotation mark, without a space
    sea, fox, old = (words.pieces.index(piece) for piece in ("Sea", "Fox", "Old"))
    lion, horse = words.encode("lion horse")[1:]
    assert place.forks == (Fork(10, sea, tuple(sorted((fox, old)))), Fork(11, horse, (lion,)))
    assert (place.start, place.stop, place.distance) == (10, 12, 4)


def test_a_space_may_be_a_token_of_its_own() -> None:
    class Spaced(Words):
        PATTERN = r" (?=red)| ?\w+| ?[^\w ]| "

    words = Spaced()
    ids = np.array(words.encode(TEXT))
    (red,) = places_of(Story(TEXT, "song", (RED,)), ids, words)
    # ... Mia sang of _  red hats . Red hats ? Yes , _  red .
    #     13  14   15 16 17  18  19 20  21  22 23 24 25 26 27
    space, answer, other = (words.pieces.index(piece) for piece in (" ", "red", " blue"))
    assert red == Place(
        "colour", 1 / 2, distance=7, start=25, stop=27, forks=(Fork(25, space, (other,)),)
    )
    assert ids[26] == answer


def test_choices_end_as_the_word_in_the_story_does() -> None:
    words = Words()
    said = "We saw a hen. We like hens."
    fact = Fact("animal", "hen", ("hen", "cow"), 12, said.index("hens"))
    ids = np.array(words.encode(said))
    hens, cows = words.encode("hens cows")[1:]
    assert forks_of(Story(said, "hen", (fact,)), fact, ids, words) == (Fork(8, hens, (cows,)),)


def test_a_tokenizer_that_joins_words_is_not_taken_for_one_that_does_not() -> None:
    words = Words()
    ids = np.array(words.encode(TEXT))
    assert forks_of(STORY, MIA, ids, words)
    ids[13] = 1
    assert not forks_of(STORY, MIA, ids, words)


def test_choices_that_are_the_same_tokens_cannot_be_told_apart() -> None:
    class Lower(Words):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return super().encode(text.lower(), add_special_tokens)

    words = Lower()
    fact = dataclasses.replace(MIA, choices=("Mia", "mia", "Tom"))
    (place,) = places_of(Story(TEXT, "song", (fact,)), np.array(words.encode(TEXT)), words)
    assert place.forks == ()
    assert not chooses(np.zeros((30, 30)), place.forks)


def test_an_answer_ends_with_its_word_since_a_token_may_end_there() -> None:
    assert to_word_end("two\nred hats", 11) == "two\nred hats"
    assert to_word_end("two\nred hats", 7) == "two\nred"


@pytest.mark.parametrize("told", graded_stories(5))
def test_the_tokens_of_a_place_are_those_of_the_answer(told: Story) -> None:
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    ids = tokenizer.encode(told.text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == told.text
    places = places_of(told, np.array(ids), tokenizer)
    assert len(places) == len(told.facts) > 0
    for place, fact in zip(places, told.facts, strict=True):
        before, asked, mention = (
            tokenizer.decode(ids[:n], skip_special_tokens=True)
            for n in (place.start, place.stop, place.start - place.distance)
        )
        assert before.rstrip() == told.text[: fact.recalled].rstrip()
        assert asked.startswith(told.text[: fact.recalled + len(fact.answer)])
        assert mention.startswith(told.text[: fact.told])
        assert len(mention) < fact.told + len("berries")  # the rest of the word
        assert place.forks
        assert place.start <= place.forks[0].column
        assert all(ids[fork.column] == fork.right for fork in place.forks)


# Reading


def test_a_model_that_knows_the_stories_recalls_everything() -> None:
    words = Words()
    other = Story("Tom hid. Who hid? Tom.", "hide", (Fact("name", "Tom", ("Tom", "Mia"), 3, 18),))
    parrot = Parrot([TEXT, other.text], words)
    grades = grade(parrot, words, [STORY, other])
    assert grades.readings[AS_IT_IS].right.tolist() == [True] * 3
    assert {row.name: (row.places, row.recall(AS_IT_IS)) for row in grades.by_kind()} == {
        "colour, inside": (1, 1.0), "name, inside": (2, 1.0), "all, inside": (3, 1.0),
    }  # fmt: skip
    assert [row.chance for row in grades.by_kind()] == pytest.approx([1 / 2, 3 / 8, 5 / 12])
    # 25 + 8 tokens without <s>, and 18 + 5 words. Each token has probability 2/3, but the first of
    # the second story, where this model would begin the first one.
    assert grades.tokens == 26 + 9
    total = 32 * math.log(2 / 3) + math.log(1 / 3 / 199)
    assert grades.readings[AS_IT_IS].perplexity == pytest.approx(math.exp(-total / 33))
    assert grades.readings[AS_IT_IS].perplexity_per_word == pytest.approx(math.exp(-total / 23))


def reading_of(parrot: Parrot, told: Story, words: Words) -> Reading:
    ids = np.array(words.encode(told.text))
    return read(parrot, [ids], [places_of(told, ids, words)], 18, lambda *_: None)


def test_another_answer_is_wrong() -> None:
    words = Words()
    mia, tom, away = words.encode("Mia Tom away")[1:]
    for other in (tom, away):  # if it would say "away", no name is likelier than the others
        reading = reading_of(Parrot([TEXT], words, instead={mia: other}), STORY, words)
        assert reading.right.tolist() == reading.said.tolist() == [False, True]


def test_the_answer_is_chosen_among_the_choices() -> None:
    forks = (Fork(1, 5, (3, 4)), Fork(3, 7, (2,)))
    logits = np.zeros((3, 10))
    logits[0, 5] = logits[2, 7] = 1  # a column's logits are those before it
    logits[:, 9] = 2  # what is no choice may be likelier
    assert chooses(logits, forks)
    logits[2, 2] = 1
    assert not chooses(logits, forks)
    logits[2, 2], logits[0, 4] = 0, 2
    assert not chooses(logits, forks)
    logits[0, 4] = np.nan
    assert not chooses(logits, forks)


def test_all_tokens_of_an_answer_count() -> None:
    words = Words()
    said = "We saw a sea horse. What? A sea horse."
    fact = Fact("animal", "sea horse", ("sea horse", "sea lion", "fox"), 18, said.rindex("sea"))
    told = Story(said, "sea", (fact,))
    horse, lion = words.encode("horse lion")[1:]
    for instead, right in (({}, True), ({horse: lion}, False)):
        reading = reading_of(Parrot([said], words, instead), told, words)
        assert reading.right.tolist() == reading.said.tolist() == [right]


def test_a_model_that_chooses_rightly_may_say_something_else() -> None:
    words = Words()
    parrot = Parrot([TEXT], words)
    parrot.rather = words.encode("away")[-1]
    reading = reading_of(parrot, STORY, words)
    assert reading.right.tolist() == [True, True]
    assert reading.said.tolist() == [False, False]


def test_no_stories_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        grade(Parrot([], Words()), Words(), [])


# The table


def grades_of(distances: list[int], right: list[bool], window: int | None = 8) -> Grades:
    places = tuple(Place("name", 0.5, distance, 1, 2, ()) for distance in distances)
    telling = Telling(1, 1, 1, 1, 1, 1, 1)
    readings = {AS_IT_IS: Reading(np.array(right), np.zeros(len(right), dtype=bool), 1, 1)}
    return Grades(1, 10, window, 2, places, readings, telling, telling)


def test_the_window_ends_where_keys_are_no_longer_visible() -> None:
    # 0 <= i - j < 8
    grades = grades_of([0, 7, 8, 30], [True, True, False, True])
    rows = {row.name: (row.places, row.right[AS_IT_IS]) for row in grades.by_kind()}
    assert rows["all, inside"] == (2, 2)
    assert rows["all, beyond"] == (2, 1)


def test_choosing_rightly_and_saying_are_counted_apart() -> None:
    grades = grades_of([1, 2, 3], [True, True, False])
    reading = dataclasses.replace(grades.readings[AS_IT_IS], said=np.array([True, False, False]))
    row = dataclasses.replace(grades, readings={AS_IT_IS: reading}).by_kind()[0]
    assert (row.right, row.said, row.places) == ({AS_IT_IS: 2}, {AS_IT_IS: 1}, 3)


def test_bins_of_distances() -> None:
    grades = grades_of([0, 1, 2, 7, 8, 30], [True, False, True, True, False, False])
    rows = [(row.name, row.places, row.right[AS_IT_IS]) for row in grades.by_distance()]
    assert [row for row in rows if row[1]] == [
        ("0 to 1", 2, 1), ("2 to 3", 1, 1), ("6 to 7", 1, 1), ("8 to 9", 1, 0), ("24 to 31", 1, 0),
    ]  # fmt: skip
    assert math.isnan(grades.by_distance()[2].recall(AS_IT_IS))


@pytest.mark.parametrize("window", [None, 1, 2, 3, 7, 64])
def test_every_place_is_in_one_bin(window: int | None) -> None:
    grades = grades_of(list(range(200)), [True] * 200, window)
    assert sum(row.places for row in grades.by_distance()) == 200
    assert all(row.places for row in grades.by_distance()[:-1])
    assert sum(row.places for row in grades.by_kind()) == 400  # names and all


# Variants


@pytest.fixture(scope="module")
def model() -> MistralForCausalLM:
    config = MistralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=6, initializer_range=0.4,
    )  # fmt: skip
    return MistralForCausalLM(config, seed=1)


IDS = np.random.default_rng(0).integers(0, 50, 20)


def test_the_model_itself_is_read_in_pieces_that_do_not_matter(model: MistralForCausalLM) -> None:
    expected = model([IDS[:-1]]).logits[0]
    assert next_logits(model, IDS) == pytest.approx(expected, abs=1e-4)


def test_half_the_window_shows_half_the_keys(model: MistralForCausalLM) -> None:
    with variants(model)["window 3"]() as half:
        weights = half([IDS], output_attentions=True).attentions[0]
        visible = weights[0].any(axis=0)
        assert half.config.num_hidden_layers == 2
    i, j = np.indices((20, 20))
    assert (visible == ((i - j >= 0) & (i - j < 3))).all()


def test_in_a_ring_of_w_slots_a_full_piece_sees_itself_alone(model: MistralForCausalLM) -> None:
    right = next_logits(model, IDS)
    with variants(model)["ring of 6"]() as small:
        logits = next_logits(small, IDS)
    for start in (0, 6, 12):
        piece = slice(start, start + 6)
        alone = model([IDS[piece]]).logits[0]  # RoPE depends on distances alone
        assert logits[piece] == pytest.approx(alone, abs=1e-4)
    assert np.abs(logits - right)[6:].max() > 0.1
    assert next_logits(model, IDS) == pytest.approx(right)  # the mistake is gone again


def test_without_rope_distances_do_not_matter(model: MistralForCausalLM) -> None:
    ids, spread = [IDS[:3]], np.array([[0, 1, 5]])
    with variants(model)["no RoPE"]() as without:
        logits = without(ids).logits
        assert without(ids, position_ids=spread).logits == pytest.approx(logits, abs=1e-5)
    assert np.abs(model(ids).logits - logits).max() > 0.1
    assert np.abs(model(ids, position_ids=spread).logits - model(ids).logits).max() > 0.1


@pytest.mark.parametrize(("window", "names"), [(None, {"no RoPE"}), (1, {"no RoPE"})])
def test_without_a_window_there_is_none_to_halve(
    model: MistralForCausalLM, window: int | None, names: set[str]
) -> None:
    config = dataclasses.replace(model.config, sliding_window=window)
    other = MistralForCausalLM(config, tensors=model.tensors)
    assert variants(other).keys() == names
    assert next_logits(other, IDS).shape == (19, 50)


# Telling


def test_sentences_are_counted_and_the_unfinished_one_is_not() -> None:
    whole = graded_stories(1)[0].text
    parts = sentences(whole)
    beginning = beginning_of(whole)
    assert sentences(beginning) == parts[:2]
    broken = whole.replace(parts[3], "Of hats the the sang.", 1)
    cut = whole[: whole.index(parts[6]) + 5]
    telling = telling_of([beginning] * 3, [whole, broken, cut], [True, True, False])
    assert (telling.stories, telling.ended, telling.closed) == (3, 2, 2)
    assert telling.sentences == (len(parts) - 2) * 2 + 4
    assert telling.well_formed == telling.sentences - 1
    # a plot that closes, but a story that goes on; a story that ends, but not with a plot's end
    assert telling_of([beginning], [whole], [False]).closed == 0
    other = telling_of([beginning], [" ".join(parts[:5])], [True])
    assert (other.ended, other.closed, other.sentences) == (1, 0, 3)


def test_facts_that_a_continuation_recalls_are_counted() -> None:
    told = graded_stories(1)[0]
    beginning, fact = beginning_of(told.text), told.facts[-1]
    assert fact.recalled > len(beginning)
    other = next(choice for choice in fact.choices if choice != fact.answer)
    end = told.text[fact.recalled + len(fact.answer) :]
    wrong = told.text[: fact.recalled] + other + end
    telling = telling_of([beginning] * 2, [told.text, wrong], [True, True])
    assert telling.recalls == 2 * len(told.facts)
    assert telling.right == telling.recalls - 1
    later = told.text[: told.text.index(sentences(told.text)[-1])]
    after = [fact for fact in told.facts if fact.recalled > len(later)]
    assert telling_of([later], [told.text], [True]).recalls == len(after) < len(told.facts)


def test_continuations_are_greedy_and_sampled_and_go_on_from_beginnings() -> None:
    words = Words()
    stories = graded_stories(4)
    parrot = Parrot([story.text for story in stories], words)
    parrot.V = 2000
    shown = []
    grades = grade(
        parrot,
        words,
        stories,
        continuations=3,
        seed=5,
        progress=lambda *values: shown.append(values),
    )
    assert grades.greedy == grades.sampled
    assert grades.greedy == telling_of(
        [beginning_of(story.text) for story in stories[:3]],
        [story.text for story in stories[:3]],
        [True] * 3,
    )
    assert parrot.said == [
        {"num_return_sequences": 1, "do_sample": False},
        {"num_return_sequences": 1, "do_sample": True, "seed": 5},
    ]
    assert shown[3] == ("read as it is", 4, 4)
    assert {what for what, _, _ in shown[4:]} == {"greedy tokens", "sampled tokens"}
