"""Mistakes at the command line: one line on standard error, exit code 2, no traceback.

An error that is not the user's is not reported as one.
"""

import io
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
from cli_runner import V1, copy_of_demo, good, refused, run

from tinymistral.cli import main

NONE = Path(__file__).parent / "no such folder"
IN_ONE_LINE = [
    # the command line itself
    ("sing", "sing"),
    ("genrate x", "unknown 'genrate'; did you mean generate?"),
    ("convert --to hff a b", "--to: unknown 'hff'; did you mean hf?"),
    ("convert --to gguf a b", "--to: unknown 'gguf'; expected hf, raw"),
    ("generate x --prompt y", "unknown argument --prompt; did you mean --prompt-file?"),
    *(
        (
            f"generate x {given}",
            f"unknown argument {given.split('=')[0].split()[0]}; did you {hint}",
        )
        for given, hint in {
            "--modle x": "mean --model?",
            "--modle=x": "mean --model?",
            "-model x": "mean --model?",
            "--max_new_tokens 5": "mean --max-new-tokens?",
            "--temprature 1": "mean --temperature?",
        }.items()
    ),
    ("generate x --wild", "unknown argument --wild; see tinymistral generate --help"),
    ("backends foo", "unknown argument foo; see tinymistral backends --help"),
    ("score a b", "unknown argument b; see tinymistral score --help"),
    ("--model x generate y", "--model before the command; expected: tinymistral COMMAND"),
    ("--vresion", "unknown argument --vresion; did you mean --version?"),
    ("generate Once upon", "quotes"),
    ("generate Once 'upon\na'", "quotes"),
    ("generate -once", "after --"),
    ("generate x --prompt-file f", "--prompt-file"),
    ("generate x --json --no-prompt", "--no-prompt"),
    ("generate", "no prompt"),
    ("tokenize", "no text"),
    ("tokenize --decode", "no ids"),
    # values
    *((f"generate x --{name} wild", f"--{name}: expected a number") for name in ("top-p", "min-p")),
    *((f"generate x --top-k {value}", "--top-k: expected an integer") for value in ("1.5", "''")),
    *(
        (f"generate x --{name} {value}", f"error: --{name}: expected a number from ")
        for name in ("temperature", "top-p", "min-p", "repetition-penalty")
        for value in ("nan", "inf", "-1", "1e999")
    ),
    *(
        (f"generate x --{name} -1", f"error: --{name}: expected an integer from 0 on, got -1")
        for name in ("top-k", "seed", "max-new-tokens")
    ),
    ("generate x --temperature -1", "got -1.0; 0 is the same as --greedy"),
    ("generate x --repetition-penalty 0", "error: --repetition-penalty: expected a number from"),
    ("generate x --threads 0", "--threads: expected 1 to"),
    (f"generate x --threads {10**30}", "--threads: expected 1 to"),
    ("generate x --stop ''", "stop"),
    ("generate x --dtype int8", "float32, float64, float16, bfloat16"),
    ("generate x --backend abacus", "expected one of: numpy"),
    # contradictions
    ("generate x --greedy --top-k 5", "--top-k"),
    ("generate x --greedy --temperature 1", "--temperature"),
    ("generate x --temperature 0 --seed 5", "--seed"),
    ("tokenize x --decode 1", "not both"),
    ("tokenize --decode 1 --no-bos", "--no-bos"),
    # files
    (f"generate x --model '{NONE}'", "no such folder"),
    (f"generate x --model '{__file__}'", "is a file"),
    *(
        (
            f"{command} --model '{Path(__file__).parent}'",
            "holds no checkpoint: it has no config.json",
        )
        for command in ("generate x", "tokenize x", "golden record --prompt x -o x")
    ),
    ("generate x --model nobody/nothing", "hf download nobody/nothing"),
    (f"generate --prompt-file '{NONE}'", "cannot be read"),
    (f"generate --prompt-file '{Path(__file__).parent}'", "cannot be read"),
    (f"generate --prompt-file '{V1}'", "not UTF-8"),
    # what is no text, or no id
    ("generate 'a\udcffb'", "not UTF-8"),
    ("generate x --stop '\udcff'", "not UTF-8"),
    ("tokenize '\udcff'", "not UTF-8"),
    ("tokenize --decode one", "'one'"),
    ("tokenize --decode 1 -1", "-1"),
    ("tokenize --decode 2048", "2047"),
    (f"tokenize --decode {10**400}", "expected integers"),
]


@pytest.mark.parametrize(("command", "said"), IN_ONE_LINE, ids=[c[:50] for c, _ in IN_ONE_LINE])
def test_a_mistake_is_reported_in_one_line(command: str, said: str) -> None:
    assert said in refused(*shlex.split(command))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("generate", "no prompt: expected as an argument, in quotes, or on standard input"),
        ("score", "no text: expected in a file, FILE, or on standard input"),
        ("tokenize", "no text: expected as an argument, in quotes, or on standard input"),
        ("tokenize --decode", "no ids to decode: expected after --decode, or on standard input"),
        ("golden record -o x", "no prompt: expected with --prompt, or on standard input"),
    ],
)
def test_a_terminal_is_not_read_but_the_text_asked_for(command: str, says: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with patch("sys.stdin", Terminal()), redirect_stderr(io.StringIO()) as err:
        assert main(command.split()) == 2
    assert err.getvalue() == f"tinymistral: error: {says}\n"


def test_standard_input_that_is_no_text() -> None:
    assert "byte 3 is 0xff" in refused("generate", stdin=b"abc\xff")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a file that never ends")
@pytest.mark.parametrize("command", ["generate --prompt-file", "score"])
def test_a_text_that_never_ends(command: str) -> None:
    assert "/dev/zero is over 10000000 bytes" in refused(*command.split(), "/dev/zero")


@pytest.mark.parametrize("command", ["generate", "tokenize", "explain", "tokenize --decode"])
def test_standard_input_that_never_ends(command: str) -> None:
    assert "standard input is over 10000000 bytes" in refused(
        *command.split(), stdin=b"1" * (10**7 + 1)
    )


def test_an_unknown_backend_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYMISTRAL_BACKEND", "abacus")
    assert "expected one of: numpy" in refused("generate", "x")
    assert good("generate", "x", "--backend", "numpy", "--max-new-tokens", "0")


def test_a_checkpoint_that_is_broken(tmp_path: Path) -> None:
    model = copy_of_demo(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert "model.safetensors" in refused("generate", "x", "--model", model)
    (tmp_path / "model" / "config.json").write_text("{", "utf-8")
    assert "config.json" in refused("generate", "x", "--model", model)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    model = copy_of_demo(tmp_path / "model")
    shutil.copyfile(V1, tmp_path / "model" / "tokenizer.model")
    result = refused("generate", "x", "--model", model)
    assert "32000" in result
    assert "2048" in result


@pytest.mark.parametrize(
    "command",
    [
        "generate x --model",
        "chat --model",
        "golden record --prompt x -o {} --model",
        "train {} --from",
        "convert --to raw {} --input_dir",
    ],
)
def test_another_model_is_named_before_anything_about_its_tokenizer(
    command: str, tmp_path: Path, one_thread: None
) -> None:
    model = copy_of_demo(tmp_path / "model", model_type="mixtral")
    words = [*command.format(tmp_path / "out").split(), model]
    (tmp_path / "model" / "tokenizer.model").unlink()
    result = refused(*words)
    assert "model_type: 'mixtral' is not supported; expected 'mistral'" in result
    assert "tokenizer" not in result


@pytest.mark.parametrize("error", [TypeError, IndexError, AssertionError])
def test_an_internal_error_is_not_hidden(error: type[Exception]) -> None:
    with patch("tinymistral.commands.generate.choose", side_effect=error), pytest.raises(error):
        run("generate", "x")


@pytest.mark.parametrize("said", ["", "Unable to allocate 9 GiB"])
def test_out_of_memory_is_reported_with_what_to_do(said: str) -> None:
    with patch("tinymistral.commands.generate.choose", side_effect=MemoryError(said)):
        result = refused("generate", "x")
    assert result.startswith(f"tinymistral: error: out of memory ({said or 'MemoryError'}); take a")


def test_standard_output_that_cannot_be_written_to() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with redirect_stdout(Full()), redirect_stderr(io.StringIO()) as err:
        assert main(["generate", "x", "--max-new-tokens", "0"]) == 2
    assert err.getvalue().endswith("No space left on device\n")
    assert err.getvalue().count("\n") == 1
