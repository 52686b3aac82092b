"""What a text recalls, compared with the facts that the generator reports of its own stories."""

from tinymistral.training.stories import story
from tinymistral.training.stories.recalls import Recall, recalls

SEEDS = range(40)


def test_a_text_by_hand() -> None:
    text = 'The sun shone. It was Mia! "Nothing at all," nobody said ever.'
    assert recalls(text) == [Recall("friend", "Mia", right=False)]  # nobody told of her


def test_stories_recall_what_they_told() -> None:
    found = [recalls(story(seed).text) for seed in SEEDS]
    assert all(recall.right for recalled in found for recall in recalled)
    same = 0
    for recalled, seed in zip(found, SEEDS, strict=True):
        facts = [(fact.kind, fact.answer) for fact in story(seed).facts]
        same += [(recall.kind, recall.answer) for recall in recalled] == facts
    assert same > 0.9 * len(SEEDS)  # in some a sentence fits a template that recalls less or more


def test_another_answer_is_wrong() -> None:
    changed = 0
    for told in map(story, range(12)):
        if len(recalls(told.text)) != len(told.facts):  # a sentence fits several templates
            continue
        for n, fact in enumerate(told.facts):
            other = next(one for one in fact.choices if one[0] != fact.answer[0])
            end = told.text[fact.recalled + len(fact.answer) :]
            found = recalls(told.text[: fact.recalled] + other + end)
            assert [recall.right for recall in found[: n + 1]] == [True] * n + [False]
            assert found[n].answer == other
            changed += 1
    assert changed > 30
