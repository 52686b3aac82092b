"""`tinymistral score`: compared with sentencepiece, and with generate's own log-probabilities."""

import json
import math
from pathlib import Path

import pytest
import sentencepiece
from cli_runner import DEMO, generated, good, refused

REFERENCE = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))


def test_a_generated_text_has_the_log_probabilities_of_generate(tmp_path: Path) -> None:
    # Text that a model writes re-tokenizes to the same ids more often than not; take one that does.
    options = ("Once upon a time", "--max-new-tokens", "100", "--seed")
    drawn = (generated(*options, str(seed)) for seed in range(20))
    result = next(r for r in drawn if [1, *REFERENCE.encode(r["text"])] == r["ids"])
    file = tmp_path / "story.txt"
    file.write_text(result["text"] + "\n", "utf-8")  # of which the last newline is no part
    scored = json.loads(good("score", "--json", str(file)), parse_constant=pytest.fail)
    assert scored["text"] == result["text"]
    assert scored["ids"] == result["ids"]
    assert scored["pieces"] == [REFERENCE.id_to_piece(i) for i in result["ids"]]
    new = scored["logprobs"][-len(result["logprobs"]) :]
    assert new == pytest.approx(result["logprobs"], abs=2e-4)  # float32, summed in another order


def test_the_figures_follow_from_the_log_probabilities() -> None:
    text = "The king had a daughter – „é“."
    scored = json.loads(good("score", "--json", stdin=text.encode("utf-8")))
    total, count = math.fsum(scored["logprobs"]), len(scored["ids"]) - 1
    assert len(scored["logprobs"]) == count
    assert scored["logprob"] == pytest.approx(total)
    assert scored["perplexity"] == pytest.approx(math.exp(-total / count))
    assert scored["bits_per_byte"] == pytest.approx(-total / math.log(2) / len(text.encode()))
    lines = dict(
        line.rsplit(maxsplit=1) for line in good("score", stdin=text.encode()).split("\n") if line
    )
    assert lines == {
        "tokens": str(count),
        "log-probability": f"{total:.3f}",
        "perplexity": f"{math.exp(-total / count):.3f}",
        "bits per byte": f"{scored['bits_per_byte']:.3f}",
    }


def test_mistakes_are_reported_in_one_line(tmp_path: Path) -> None:
    assert "at least one token" in refused("score", stdin=b"")
    assert "not UTF-8" in refused("score", stdin=b"\xff")
    assert "; give a file, or the text on standard input" in refused(
        "score", str(tmp_path / "none")
    )
