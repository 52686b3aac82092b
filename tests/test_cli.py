"""The command line in this process: what it prints.

The demo model's text is never expected word for word: outputs are compared with SentencePiece and
with each other. Mistakes are in `test_cli_mistakes.py`; Ctrl-C, pipes and terminals, which need a
process of their own, in `test_cli_process.py`.
"""

import io
import json
import re
import shlex
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import sentencepiece
from cli_runner import DEMO, copy_of_demo, generated, good, refused, run
from hypothesis import given
from hypothesis import strategies as st

import tinymistral
from tinymistral import commands, generation
from tinymistral.cli import main
from tinymistral.commands import generate, tokenize
from tinymistral.commands.generate import Report, continuation
from tinymistral.generation import GenerationStep
from tinymistral.streaming import StopStrings, StreamDecoder
from tinymistral.tokenizer import MistralTokenizer

REFERENCE = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))

# Greedy from <s> alone, as published with the weights (karpathy/tinyllamas, stories260K)
PUBLISHED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, "
)


# What is generated


def test_the_text_is_the_prompt_and_its_continuation() -> None:
    options = ("--greedy", "--max-new-tokens", "12")
    result = generated("The King said", *options)
    assert result["text"] == result["prompt"] + result["continuation"]
    assert result["prompt"] == "The King said"
    assert good("generate", "The King said", *options) == result["text"] + "\n"
    assert good("generate", "The King said", "--no-prompt", *options) == (
        result["continuation"] + "\n"
    )


@pytest.mark.parametrize("prompt", ["Once upon a time", "", " two  spaces ", "é日🙂\n\ttab"])
def test_the_ids_are_those_of_sentencepiece(prompt: str) -> None:
    result = generated(prompt, "--seed", "5", "--max-new-tokens", "9", "--ignore-eos")
    assert result["prompt_ids"] == [1, *REFERENCE.encode(prompt)]  # 1: <s>
    assert result["ids"] == result["prompt_ids"] + result["continuation_ids"]
    assert result["text"] == REFERENCE.decode(result["ids"])
    assert result["counts"] == {"prompt_tokens": len(result["prompt_ids"]), "new_tokens": 9}
    assert len(result["continuation_ids"]) == len(result["logprobs"]) == 9
    assert max(result["logprobs"]) <= 0
    assert result["finish_reason"] == "length"
    assert set(result["timings"]) == {"load_seconds", "prefill_seconds", "decode_seconds"}
    assert min(result["timings"].values()) > 0


def test_no_new_tokens_print_the_prompt() -> None:
    assert good("generate", "Once upon", "--max-new-tokens", "0") == "Once upon\n"
    assert generated("Once upon", "--max-new-tokens", "0")["continuation_ids"] == []


def test_a_prompt_comes_from_an_argument_a_file_or_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfOne \xc3\xa9\r\nTwo\r\n")  # as Windows saves it
    options = ("--greedy", "--max-new-tokens", "5")
    expected = good("generate", "One é\nTwo", *options)
    assert good("generate", "--prompt-file", str(file), *options) == expected
    assert good("generate", *options, stdin="One é\nTwo\n".encode()) == expected
    assert good("generate", *options, "--", "-x").startswith("-x")


def test_the_published_text_of_stories260k(test_models: Path) -> None:
    arguments = ("generate", "--model", str(test_models / "stories260k"), "--greedy", "")
    # 69 tokens: its last letter, a space, begins the 70th token, ▁"
    assert good(*arguments, "--max-new-tokens", "69") == PUBLISHED.rstrip() + "\n"
    assert good(*arguments, "--stop", '"') == PUBLISHED + "\n"


def test_a_stop_text_ends_the_text_before_it() -> None:
    options = ("Once upon a time", "--greedy", "--max-new-tokens", "30")
    whole = generated(*options)["continuation"]
    stop = whole[20:23]
    result = generated(*options, "--stop", "never, never", "--stop", stop)
    assert result["continuation"] == whole[: whole.index(stop)]
    assert result["finish_reason"] == "stop"
    assert REFERENCE.decode(result["ids"]).startswith(result["text"] + stop)
    before = REFERENCE.decode(result["ids"][:-1])
    assert not before.startswith(result["text"] + stop)  # it ended at once


def test_text_that_was_held_back_comes_at_the_end() -> None:
    options = ("Once upon a time", "--greedy", "--max-new-tokens", "9")
    whole = generated(*options)["continuation"]
    result = generated(*options, "--stop", whole[-2:] + " but no more")
    assert (result["continuation"], result["finish_reason"]) == (whole, "length")

    half = REFERENCE.piece_to_id("<0xC3>")  # the first byte of two
    step = GenerationStep(np.array([half]), np.array([np.nan]), np.array([False]))
    report = Report("x", [1, *REFERENCE.encode("x")], None, 0)
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    assert (
        "".join(continuation([step], StreamDecoder(tokenizer), StopStrings([]), report)) == "\ufffd"
    )
    result = json.loads(json.dumps(report.as_fields(), allow_nan=False))
    assert result["text"] == "x\ufffd" == REFERENCE.decode(result["ids"])
    assert result["logprobs"] == [None]  # JSON has no NaN


def test_eos_ends_the_text_unless_ignored(tmp_path: Path) -> None:
    model = copy_of_demo(tmp_path / "model", {"eos_token_id": list(range(2048))})  # all there are
    options = ("x", "--model", model, "--max-new-tokens", "3")
    assert generated(*options)["finish_reason"] == "eos"
    assert generated(*options)["counts"]["new_tokens"] == 1
    assert generated(*options, "--ignore-eos")["finish_reason"] == "length"
    assert generated(*options, "--ignore-eos")["counts"]["new_tokens"] == 3


# Which token


def test_the_reported_seed_gives_the_same_text_again() -> None:
    options = ("Once upon a time", "--max-new-tokens", "60")
    result, other = generated(*options), generated(*options)
    assert result["seed"] != other["seed"]
    assert result["ids"] != other["ids"]  # the demo model samples; 60 tokens alike are no chance
    assert generated(*options, "--seed", str(result["seed"]))["ids"] == result["ids"]


def test_temperature_0_is_greedy() -> None:
    options = ("Once upon a time", "--max-new-tokens", "20")
    greedy, cold = generated(*options, "--greedy"), generated(*options, "--temperature", "0")
    assert greedy["ids"] == cold["ids"]
    assert greedy["seed"] is cold["seed"] is None
    best = generated(*options, "--top-k", "1")  # the only one left to draw is the likeliest
    assert best["ids"] == greedy["ids"]


@pytest.mark.parametrize(
    "option", ["--temperature 1", "--top-k 9", "--top-p 0.9", "--min-p 0.1", "--seed 3"]
)
def test_sampling_options_turn_sampling_on(option: str, tmp_path: Path) -> None:
    model = copy_of_demo(tmp_path / "model")  # without generation_config.json: greedy
    options = ("x", "--model", model, "--max-new-tokens", "1")
    assert generated(*options, "--repetition-penalty", "2")["seed"] is None
    assert generated(*options, *option.split())["seed"] is not None


def test_what_is_forbidden_does_not_come() -> None:
    options = ("Once upon a time", "--greedy", "--max-new-tokens", "40")
    free = generated(*options)["continuation_ids"]
    first, second, third = free[0], free[1], free[4:6]
    ids = generated(*options, "--suppress-tokens", f"{first},{second}")["continuation_ids"]
    assert not {first, second} & {*ids}
    forbidden = ",".join(map(str, third))
    words = ("--bad-words-ids", forbidden, "--bad-words-ids", str(first))
    ids = generated(*options, *words)["continuation_ids"]
    assert first not in ids
    assert third not in [ids[n : n + 2] for n in range(len(ids))]
    whole = generated(*options, "--no-repeat-ngram-size", "1")["ids"]
    assert len({*whole}) == len(whole)
    assert "expected ids such as 13,28705" in refused(
        "generate", *options, "--suppress-tokens", "a"
    )


def test_tokens_that_are_guessed_ahead_change_no_text() -> None:
    command = ("one two three. one two three. one", "--greedy", "--max-new-tokens", "20")
    plain, ahead = generated(*command), generated(*command, "--prompt-lookup-num-tokens", "4")
    assert ahead["ids"] == plain["ids"]
    says = refused("generate", "x", "--prompt-lookup-num-tokens", "-1")
    assert "--prompt-lookup-num-tokens: expected an integer from 0 on, got -1" in says


def test_min_new_tokens_keep_the_text_from_ending(tmp_path: Path) -> None:
    free = generated("x", "--greedy", "--max-new-tokens", "9")["continuation_ids"]
    model = copy_of_demo(tmp_path / "model", {"eos_token_id": free[2]})
    options = ("x", "--model", model, "--max-new-tokens", "9")
    assert generated(*options)["counts"]["new_tokens"] == 3
    assert generated(*options, "--min-new-tokens", "5")["counts"]["new_tokens"] > 4


def test_max_new_tokens_is_the_option_else_the_models_else_200(tmp_path: Path) -> None:
    silent = copy_of_demo(tmp_path / "silent")
    saying = copy_of_demo(tmp_path / "saying", {"max_new_tokens": 3})
    options = ("x", "--ignore-eos", "--model")
    assert generated(*options, silent)["counts"]["new_tokens"] == 200
    assert generated(*options, saying)["counts"]["new_tokens"] == 3
    assert generated(*options, saying, "--max-new-tokens", "4")["counts"]["new_tokens"] == 4


def test_one_text_even_if_the_model_asks_for_several(tmp_path: Path) -> None:
    model = copy_of_demo(tmp_path / "model", {"do_sample": True, "num_return_sequences": 3})
    options = ("x", "--model", model, "--max-new-tokens", "5")
    assert generated(*options, "--greedy")["seed"] is None  # several of these would be an error


# Messages


def test_stats_are_one_line_on_standard_error() -> None:
    code, out, err = run(
        *("generate", "Once upon a time", "--stats", "--max-new-tokens", "3", "--ignore-eos"),
        *("--seed", "12", "--dtype", "float64"),
    )
    speed = r"in \d+\.\d{3} s, \d+ tokens/s"
    prompt_tokens = 1 + len(REFERENCE.encode("Once upon a time"))
    assert code == 0
    assert out.startswith("Once upon a time")
    assert re.fullmatch(
        rf"load \d+\.\d{{3}} s; prefill {prompt_tokens} tokens {speed}; "
        rf"decode 2 tokens {speed}; backend numpy float64; (peak memory \d+ MB; )?seed 12\n",
        err,
    )


@pytest.mark.filterwarnings("default")  # as outside of pytest
@pytest.mark.parametrize("command", [["generate", "Once", "--max-new-tokens", "9"], ["score"]])
def test_a_warning_is_one_line_before_a_long_run(command: list[str], tmp_path: Path) -> None:
    model = copy_of_demo(tmp_path / "model", max_position_embeddings=6)
    last = 1 + len(REFERENCE.encode("Once")) + 9 - 2  # the last new token is not computed with
    if command == ["score"]:
        (tmp_path / "text").write_text("Once upon a time there was a king", "utf-8")
        command = ["score", str(tmp_path / "text")]
        last = len(REFERENCE.encode("Once upon a time there was a king")) - 1
    console = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n")
    with redirect_stdout(console), redirect_stderr(console):
        assert main([*command, "--model", model]) == 0
    shown = console.buffer.getvalue().decode("utf-8")
    assert re.fullmatch(
        rf"tinymistral: warning: position {last} is past .+\n(Once|tokens) [^\0]+", shown
    )
    assert shown.count("tinymistral") == 1


@pytest.mark.filterwarnings("default")
def test_a_warning_in_the_middle_of_a_text_comes_after_it() -> None:
    def step(*arguments: object) -> np.ndarray:
        warnings.warn("overflow", stacklevel=1)
        return next_step(*arguments)

    next_step = generation.step
    console = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n")
    with (
        redirect_stdout(console),
        redirect_stderr(console),
        patch("tinymistral.generation.step", step),
    ):
        assert main(["generate", "Once", "--greedy", "--max-new-tokens", "9"]) == 0
    shown = console.buffer.getvalue().decode("utf-8")
    assert re.fullmatch(r"Once [^\0]+\ntinymistral: warning: overflow\n", shown)


def test_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert good() == good("--help")
    assert good("--version") == f"tinymistral {tinymistral.__version__}\n"
    for command in commands.COMMANDS:
        assert f"    {command} " in good()
        text = good(command, "--help")
        assert text.startswith(f"usage: tinymistral {command} ")
        assert max(len(line) for line in text.splitlines()) < 80


def test_the_examples_in_the_help_run() -> None:
    texts = "".join(f"{module.__doc__}\n" for module in (commands, generate, tokenize))
    examples = re.findall(r"^  tinymistral ([^|\n]+)$", texts, re.MULTILINE)
    here = [shlex.split(example) for example in examples if "--model" not in example]
    assert len(here) >= 4
    for example in here:
        few = ("--max-new-tokens", "3") if example[0] == "generate" else ()
        assert good(*example, *few)


# Tokens


def test_the_ids_in_the_help_and_in_the_readme_are_those_of_the_demo() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    for text in (tokenize.__doc__ or "", readme):
        ids = re.findall(r"tokenize --decode ((?:\d+ ?)+)$", text, re.MULTILINE)
        assert ids
        for some in ids:
            decoded = good("tokenize", "--decode", *some.split())
            assert "Once upon a time\n".startswith(decoded.strip())
            assert decoded.strip()


def test_tokenize_prints_ids_and_pieces() -> None:
    ids = [1, *REFERENCE.encode("Once\n")]
    pieces = [REFERENCE.id_to_piece(i) for i in ids]
    lines = [f"{i:>6}  {piece}\n" for i, piece in zip(ids, pieces, strict=True)]
    assert good("tokenize", "Once\n") == "".join(lines)
    assert good("tokenize", stdin=b"Once\n\n") == "".join(lines)
    assert good("tokenize", "Once\n", "--no-bos") == "".join(lines[1:])
    result = json.loads(good("tokenize", "--json", "Once\n"))
    assert result == {"text": "Once\n", "ids": ids, "pieces": pieces}
    assert json.loads(good("tokenize", "--json", "--decode", str(ids))) == result


@given(text=st.text() | st.text(" \n\ta日\u2581<s>"), no_bos=st.booleans())
def test_the_ids_that_tokenize_prints_decode_to_the_text(text: str, no_bos: bool) -> None:
    options = ["--no-bos"] if no_bos else []
    lines = good("tokenize", *options, "--", text).split("\n")
    ids = [line.split()[0] for line in lines if line]
    # U+2581 stands for a space in a piece, and so is one in a text
    expected = text.replace("\u2581", " ") + "\n"
    assert good("tokenize", "--decode", *ids, stdin=b"") == expected
    assert good("tokenize", "--decode", stdin="\n".join(ids).encode()) == expected


def test_ctrl_c_is_130_and_keeps_the_text() -> None:
    class Impatient(io.TextIOWrapper):
        """A console at which someone presses Ctrl-C once there is something to read."""

        def write(self, text: str) -> int:
            if len(self.buffer.getvalue()) > 20 and text != "\n":
                raise KeyboardInterrupt
            return super().write(text)

    out = Impatient(io.BytesIO(), "ascii", newline="\n")
    with redirect_stdout(out), redirect_stderr(io.StringIO()) as err:
        assert main(["generate", "Once upon a time", "--ignore-eos"]) == 130
    assert re.fullmatch(r"Once upon a time.+\n", out.buffer.getvalue().decode(), re.DOTALL)
    assert err.getvalue() == ""
