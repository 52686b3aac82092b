"""`tinymistral convert`: its arguments, what it prints, and Ctrl-C."""

import os
import shutil
from pathlib import Path

import pytest
from cli_runner import DEMO, copy_of_demo, good, refused, run
from goldens import FIXTURES
from test_cli_process import MAIN, WITH_CTRL_C, finish, posix, read_terminal, start

from tinymistral.checkpoint import read_tensors

RAW, TWIN = FIXTURES / "raw" / "no_window", FIXTURES / "models" / "no_window"
# 19,808 parameters: two tables of 67·32, and in each of two layers 2·32·32 + 2·16·32 of attention,
# 3·32·48 of the feed-forward and 2·32 of norms; 32 of the last norm.
SAYS = "19,808 parameters, float32, 0.1 MB, Hugging Face's format\n"


@pytest.fixture
def raw(tmp_path: Path) -> str:
    shutil.copytree(RAW, tmp_path / "raw")
    shutil.copyfile(DEMO / "tokenizer.model", tmp_path / "raw" / "tokenizer.model")
    return str(tmp_path / "raw")


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def test_the_arguments_of_the_hugging_face_page(raw: str, out: str) -> None:
    result = good("convert", "--input_dir", raw, "--model_size", "20K", "--output_dir", out)
    assert result == f"wrote {out}: {SAYS}"
    written = (Path(out) / "model.safetensors").read_bytes()
    assert written == (TWIN / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        "--input-dir RAW --model-size 20K --output-dir OUT",
        "RAW OUT",
        "--output_dir OUT RAW",
        "--input_dir RAW OUT --model_size 19808 --to hf",
        "RAW 20K OUT",
        "--force RAW OUT",
    ],
)
def test_other_ways_to_say_it(raw: str, out: str, command: str) -> None:
    words = command.replace("RAW", raw).replace("OUT", out).split()
    assert good("convert", *words) == f"wrote {out}: {SAYS}"


def test_there_and_back(raw: str, out: str, tmp_path: Path) -> None:
    good("convert", raw, out)
    result = good("convert", "--to", "raw", out, str(tmp_path / "back"))
    assert result == f"wrote {tmp_path / 'back'}: 19,808 parameters, float32, 0.1 MB, raw\n"
    good("convert", str(tmp_path / "back"), out, "--force")
    written = (Path(out) / "model.safetensors").read_bytes()
    assert written == (TWIN / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "size", "files"),
    [
        ("--max-shard-size", "79232", 1),
        ("--max-shard-size", "79231", 2),
        ("--max_shard_size", "79KB", 2),
        ("--max-shard-size", "1MB", 1),
    ],
)
def test_shards(raw: str, out: str, name: str, size: str, files: int) -> None:
    good("convert", raw, out, name, size)  # 19,808 weights of four bytes
    assert len(list(Path(out).glob("*.safetensors"))) == files


@pytest.mark.filterwarnings("default")  # as outside of pytest
def test_lost_settings_are_a_warning_after_success(out: str, tmp_path: Path) -> None:
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 40}
    model = copy_of_demo(tmp_path / "model", settings, max_position_embeddings=4096)
    code, result, warned = run("convert", "--to", "raw", model, out)
    assert code == 0
    assert result == f"wrote {out}: 2,361,408 parameters, bfloat16, 4.7 MB, raw\n"
    assert warned == (
        "tinymistral: warning: params.json has no place for max_position_embeddings (4096), "
        "initializer_range (0.07), do_sample (True), temperature (0.7), top_k (40)\n"
    )


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "no --input_dir"),
        ("RAW", "no --output_dir"),
        ("--output_dir OUT", "no --input_dir"),
        ("RAW OUT more", "unknown argument 'more'"),
        ("RAW OUT --input_dir RAW", "unknown argument"),
        ("RAW OUT --model_size big", "expected a number such as 7B, 260K or 19808"),
        ("RAW OUT --model_size 7B", "7B was given, but the checkpoint has 19,808 parameters"),
        ("RAW OUT --max-shard-size 0", "--max-shard-size"),
        ("RAW OUT --max-shard-size many", "--max-shard-size"),
        ("RAW OUT --max-shard-size 5GB --to raw", "a raw checkpoint is one file"),
        ("RAW OUT --to gguf", "--to"),
        ("RAW OUT --to raw", "is raw already"),
        (f"{DEMO} OUT", "is in Hugging Face's format already"),
        ("RAW RAW", "input's own folder"),
        ("RAW RAW/hf", "input's own folder"),
        ("OUT RAW", "neither an existing folder nor a name"),
        ("RAW OTHER", "is there already; give another folder\n"),
        ("RAW OTHER --force", "holds 'file', which no conversion wrote, so it is not replaced"),
        ("RAW OTHER/file", "is a file"),
        ("RAW OTHER/file/hf", "cannot be written"),
    ],
)
def test_mistakes_are_reported_in_one_line(raw: str, out: str, command: str, says: str) -> None:
    other = Path(out).with_name("other")
    other.mkdir()
    (other / "file").write_text("x", "utf-8")
    words = command.replace("RAW", raw).replace("OUT", out).replace("OTHER", str(other)).split()
    assert says in refused("convert", *words)
    assert not Path(out).exists()
    assert [path.name for path in other.iterdir()] == ["file"]


@posix
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_ctrl_c_leaves_nothing_behind(raw: str, out: str, force: tuple[str, ...]) -> None:
    if force:
        good("convert", raw, out)
    code = """
import os
from tinymistral.checkpoint import conversion
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return conversion.Path  # never reached
conversion.rotate_halves = interrupted
"""
    process = start("convert", raw, out, *force, code=WITH_CTRL_C + code + MAIN)
    assert finish(process) == (130, b"", b"")
    there = {path.name for path in Path(out).parent.iterdir()}
    assert there == ({"raw", "out"} if force else {"raw"})
    if force:
        assert read_tensors(Path(out)).keys() == read_tensors(TWIN).keys()


@posix
def test_progress_is_shown_on_a_terminal_and_goes_away(raw: str, out: str) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = start("convert", raw, out, stderr=theirs)
    os.close(theirs)
    shown = read_terminal(ours)
    assert finish(process) == (0, f"wrote {out}: {SAYS}".encode(), None)
    steps = shown.decode().split("\r")
    assert steps[1].strip() == "converted: 0.0 of 0.1 MB"
    assert len(steps) == 1 + 21 + 2  # a step a tensor, then cleared
    assert steps[-2:] == [" " * len(steps[1]), ""]
