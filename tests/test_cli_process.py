"""The command line in a process of its own: Ctrl-C, pipes, terminals, locales, threads."""

import importlib.resources
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinymistral.commands.console import fitted

REPOSITORY = Path(str(importlib.resources.files("tinymistral"))).parent
ENDLESS = ("--ignore-eos", "--max-new-tokens", "4000")  # within the positions of the demo model
CLOSED_LOCALE = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii:strict",
}
# Where tests run in the background Ctrl-C is ignored, and a new process would inherit that.
WITH_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
MAIN = """
from tinymistral.__main__ import run
run()
"""

# A program asks for a bracketed paste, and terminals then send what is pasted between two codes.
ASK_FOR_BRACKETS, PASTE, END_OF_PASTE = "\x1b[?2004h", "\x1b[200~", "\x1b[201~"

posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals as on POSIX")


def start(*arguments: str, code: str | None = None, **settings) -> subprocess.Popen[bytes]:
    """Start `python -m tinymistral`, or Python code with the same arguments."""
    # PYTHONUNBUFFERED would make up for what is not flushed.
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""}
    env |= {"OMP_NUM_THREADS": "1"} | settings.pop("env", {})
    what = ["-m", "tinymistral"] if code is None else ["-c", code]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) | {"stdin": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, *what, *arguments], env=env, **(pipes | settings))


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def read_terminal(ours: int) -> bytes:
    """Return all that a process writes to the other end of a pseudo-terminal; close this end."""
    shown = b""
    try:
        while part := os.read(ours, 10_000):
            shown += part
    except OSError:  # on Linux a terminal ends so, elsewhere with nothing to read
        pass
    os.close(ours)
    return shown


@posix
def test_text_is_printed_as_it_is_generated_and_stays_after_ctrl_c() -> None:
    process = start("generate", "Once upon a time", *ENDLESS, code=WITH_CTRL_C + MAIN)
    seen = process.stdout.read(100)  # more than the prompt, long before the end
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err) == (130, b"")
    assert seen.startswith(b"Once upon a time")
    assert out.endswith(b"\n")


@posix
@pytest.mark.parametrize("module", ["tinymistral.cli", "numpy", "tinymistral.numpy_backend"])
def test_ctrl_c_during_imports(module: str) -> None:
    interrupt = f"""
import os, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
    process = start("generate", "Once upon a time", code=WITH_CTRL_C + interrupt + MAIN)
    assert finish(process) == (130, b"", b"")


@posix
@pytest.mark.slow
def test_ctrl_c_leaves_no_half_of_the_json() -> None:
    process = start("generate", "x", "--json", *ENDLESS, code=WITH_CTRL_C + MAIN)
    time.sleep(1)  # for it to generate; nothing else shows that it does
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, b"", b"")


@posix
@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["generate", "x", *ENDLESS],
        ["generate", "x", "--json", "--max-new-tokens", "2"],
        ["tokenize", "x"],
    ],
    ids=" ".join,
)
def test_a_reader_that_leaves_is_no_error(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(*command, stdout=write)
    os.close(write)
    assert finish(process) == (141, None, b"")


@posix
@pytest.mark.parametrize("closed", [[1], [2], [1, 2]])
def test_standard_output_or_error_that_is_closed_from_the_start(closed: list[int]) -> None:
    """As by `>&-` and `2>&-`."""
    code = "import os, sys; [os.close(n) for n in CLOSED]; "
    code += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    code = code.replace("CLOSED", str(closed))
    process = start("-m", "tinymistral", "generate", "x", "--max-new-tokens", "0", code=code)
    error = b"standard output is closed; direct it to a file, or to /dev/null"
    assert finish(process) == (
        2 if 1 in closed else 0,
        b"" if 1 in closed else b"x\n",
        b"" if 2 in closed else b"tinymistral: error: %b\n" % error,
    )


def test_text_is_utf_8_whatever_the_locale() -> None:
    text = "é日🙂 \u2028"
    process = start("generate", text, "--max-new-tokens", "0", env=CLOSED_LOCALE)
    assert finish(process) == (0, text.encode() + os.linesep.encode(), b"")


@posix
@pytest.mark.parametrize(
    ("columns", "second"),
    [(0, "prompt: 512 of 702 tokens"), (24, "512 of 702 tokens")],  # 0: it does not say
)
def test_a_long_prompt_shows_its_progress_on_a_terminal(
    tmp_path: Path, columns: int, second: str
) -> None:
    import fcntl
    import pty
    import termios

    prompt = "a " * 700  # a token each and the last space: two pieces of at most 512
    (tmp_path / "prompt.txt").write_text(prompt, "utf-8")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    process = start(
        *("generate", "--prompt-file", str(tmp_path / "prompt.txt"), "--max-new-tokens", "2"),
        *("--stats", "--greedy", "--ignore-eos"),
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
    )
    os.close(theirs)
    shown = read_terminal(ours)
    assert finish(process)[0] == 0
    *progress, text = shown.decode().removesuffix("\r\n").replace("\r\n", "\n").split("\r")
    steps = [part.strip() for part in progress if part.strip()]
    assert steps[0] == "prompt: 0 of 702 tokens"
    assert steps[1] == second
    assert progress[-1] == " " * len(steps[1])  # cleared
    story, stats = text.split("\n")
    assert story.startswith(prompt)
    assert stats.startswith("load ")


@posix
def test_a_conversation_at_a_terminal(tmp_path: Path) -> None:
    import pty

    if "GNU" not in (pytest.importorskip("readline").__doc__ or ""):
        pytest.skip("libedit does not know bracketed paste")
    file = tmp_path / "talk.json"
    file.write_text("before", "utf-8")
    ours, theirs = pty.openpty()
    options = ("--greedy", "--max-new-tokens", "2")
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = start("chat", *options, env={"TERM": "xterm"}, **streams)
    os.close(theirs)

    def until_prompt() -> str:
        shown = b""
        while not shown.endswith(b"> "):
            shown += os.read(ours, 10_000)
        return shown.decode()

    def typed(keys: str) -> str:
        os.write(ours, f"{keys}\r".encode())
        return until_prompt()

    greeting = until_prompt()
    assert "/help" in greeting
    assert greeting.endswith(f"{ASK_FOR_BRACKETS}> ")
    assert "While talking:" in typed("/help")
    typed(f"{PASTE}Who\rare {END_OF_PASTE}you?")
    assert "replace it? y or n" in typed(f"/save {file}")
    assert "it stays as it is" in typed("")
    assert file.read_text("utf-8") == "before"
    typed(f"/save {file}")
    assert "saved 2 messages" in typed("y")
    assert "with the system prompt: Be brief. Be kind." in typed(
        f"/system {PASTE}Be brief.\rBe kind.\r{END_OF_PASTE}"
    )
    os.write(ours, b"exit\r\x04")  # Ctrl-D, if exit does not end it
    assert b"> " not in read_terminal(ours)
    assert finish(process)[0] == 0
    assert json.loads(file.read_text("utf-8"))["messages"][0]["content"] == "Who\nare you?"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("prompt: 131072 of 262144 tokens", "131072 of 262144 tokens"),
        ("converted: 14,483.1 of 14,483.1 MB", "14,483.1 of 14,483.1 MB"),
        ("step 3599 of 3600, loss 2.345, 1,234 tokens/s, 40 s left", "step 3599 of 3600"),
        ("step 3 of 9, loss 2.345, 1,234 tokens/s, 40 s left", "step 3 of 9, loss 2.345"),
        ("half the window: 120 of 200", "the window: 120 of 200"),
        ("x" * 30, "x" * 23),
    ],
)
def test_a_line_of_progress_in_24_columns_keeps_its_numbers_whole(line: str, shown: str) -> None:
    assert fitted(line, 24 - 1) == shown


def test_help_and_usage_errors_do_not_import_numpy() -> None:
    code = """
import sys
from tinymistral.cli import main
print(main(["--help"]), main(["generate", "--top-k", "x"]), "numpy" in sys.modules)
"""
    code, out, _ = finish(start(code=code))
    assert out.splitlines()[-1] == b"0 2 False"


@pytest.mark.skipif(
    not Path("/proc/self/task").exists() or len(os.sched_getaffinity(0)) == 1,
    reason="threads are counted on Linux, and a single core has one in any case",
)
def test_threads_are_as_many_as_asked_for() -> None:
    count = """
import os, sys
from tinymistral.cli import main
main(["generate", "x", "--max-new-tokens", "1", "--threads", sys.argv[1]])
print(len(os.listdir("/proc/self/task")))
"""
    outputs = [finish(start(n, code=count))[1] for n in ("1", "2", "100000")]
    most = len(os.sched_getaffinity(0))
    assert [int(out.splitlines()[-1]) for out in outputs] == [1, 2, most]  # at most one a core


@pytest.mark.slow
def test_an_error_has_its_traceback_in_development_mode() -> None:
    code = """
from tinymistral.cli import main
main(["generate", "x", "--threads", "0"])
"""
    code, _, err = finish(start(code=code, env={"PYTHONDEVMODE": "1"}))
    assert code == 1
    assert err.startswith(b"Traceback")
    assert b"--threads: expected" in err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="as Linux tells it")
def test_the_peak_memory_is_that_of_this_process_alone() -> None:
    ballast = bytearray(b"x" * 400_000_000)  # counted in what the kernel tells of children
    _, _, err = finish(start("generate", "x", "--max-new-tokens", "2", "--stats"))
    megabytes = int(err.split(b"peak memory ")[1].split()[0])
    assert 20 < megabytes < len(ballast) / 2e6


@pytest.mark.slow
def test_json_through_a_pipe() -> None:
    code, out, err = finish(start("generate", "é日", "--json", "--stats", env=CLOSED_LOCALE))
    result = json.loads(out.decode("utf-8"))
    assert code == 0
    assert result["prompt"] == "é日"
    assert "é日".encode() in out
    assert err.count(b"\n") == 1
