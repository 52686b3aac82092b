"""`golden run`: programs compute the cases of a suite, and what they write is whole or not there.

No other implementation is needed here: tests/fixtures/check_peers.py runs those.
"""

import dataclasses
import inspect
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from cli_runner import V1 as VOCABULARY
from cli_runner import good, refused, run
from goldens import FIXTURES
from safetensors.numpy import load_file

from tinymistral.commands.golden.run import PEERS
from tinymistral.golden.calls import at_positions
from tinymistral.golden.run import (
    CannotRun,
    Results,
    Settings,
    check_counted,
    dump,
    open_adapter,
    template,
)
from tinymistral.golden.run.transformers import (
    check_finite,
    check_padding,
    check_visible,
)
from tinymistral.golden.suite import Case, read_suite

SUITE = read_suite()
SOME = ("rms-norm", "left-padding", "raw-layout", "greedy-demo", "sampling-top-p", "tokenizer-demo")

# Somebody's program, which knows two operations by their formulas and shares no code with us.
PROGRAM = """
import json, pathlib, sys
import numpy as np
from safetensors.numpy import load_file
case, out = map(pathlib.Path, sys.argv[1:])
about = json.loads((case / "case.json").read_text())
if about["kind"] == "operation":
    x = load_file(case / "inputs.safetensors")
    if about["operation"] == "rms_norm":
        mean_square = (x["x"] ** 2).mean(-1, keepdims=True)
        result = x["x"] / np.sqrt(mean_square + about["parameters"]["eps"]) * x["weight"]
        np.save(out / "out.npy", result.astype(np.float32))
    if about["operation"] == "silu_mul":
        np.save(out / "out.npy", x["gate"] / (1 + np.exp(-x["gate"])) * x["up"])
"""


def only(*cases: str) -> list[str]:
    return [word for case in cases for word in ("--case", case)]


def program(folder: Path, code: str) -> str:
    """Write a program; return the command that runs it."""
    path = folder / "mine.py"
    path.write_text(code, encoding="utf-8")
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(path))} {{case}} {{out}}"


# tinymistral itself


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tinymistral_agrees_in_every_kind_of_case(tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "dump"
    text = good("golden", "run", "tinymistral", *only(*SOME), "--dtype", dtype, "-o", str(out))
    assert text == f"6 of 6 cases written to {out}\n"
    names = {f"{case}.safetensors" for case in SOME[:5]} | {"tokenizer-demo.json"}
    assert {path.name for path in out.iterdir()} == names
    assert "6 OK, 0 differ" in good("golden", "check", "v1", str(out))


def test_only_what_is_expected_is_written(tmp_path: Path) -> None:
    good("golden", "run", "tinymistral", *only("plain"), "-o", str(tmp_path))
    found = load_file(tmp_path / "plain.safetensors")
    assert found.keys() == (SUITE.case("plain").expected or {}).keys()
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}


def test_a_missing_vocabulary_is_requested(tmp_path: Path) -> None:
    code, text, _ = run("golden", "run", "tinymistral", *only("tokenizer-v1"), "-o", str(tmp_path))
    assert code == 2
    assert text.startswith("not run: tokenizer-v1\n")
    assert "--vocabulary" in text
    assert "0 of 1 cases written" in text
    given = ["--vocabulary", str(VOCABULARY)]
    good("golden", "run", "tinymistral", *only("tokenizer-v1"), "-o", str(tmp_path), *given)
    assert "1 OK, 0 differ" in good("golden", "check", "v1", str(tmp_path))


# a command of one's own


def test_a_command_of_another_program(tmp_path: Path) -> None:
    out, command = tmp_path / "dump", program(tmp_path, PROGRAM)
    cases = only("rms-norm", "silu-mul", "chat-v1")
    text = good("golden", "run", "--command", command, *cases, "-o", str(out))
    assert text == (
        f"not run: chat-v1\n    the command wrote no results.json\n2 of 3 cases written to {out}\n"
    )
    assert "2 OK, 0 differ" in good("golden", "check", "v1", str(out))


@pytest.mark.parametrize("case", ["plain", "raw-layout"])
def test_the_ten_lines_of_the_template(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    doc = inspect.cleandoc(template.__doc__ or "")
    lines = doc[doc.index("    import json") :].splitlines()
    (tmp_path / "my_mistral.py").write_text(
        "from tinymistral import MistralForCausalLM\n"
        "class MyMistral:\n"
        "    def __init__(self, folder):\n"
        "        self.model = MistralForCausalLM.from_pretrained(folder)\n"
        "    def __call__(self, ids, positions):\n"
        "        return self.model(ids, position_ids=positions).logits\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = program(tmp_path, "\n".join(line[4:] for line in lines))
    good("golden", "run", "--command", command, *only(case), "-o", str(tmp_path / "dump"))
    table = good("golden", "check", "v1", str(tmp_path / "dump"))
    assert "1 of 39" in table
    assert "1 OK, 0 differ" in table
    assert len(lines) == 10


def test_texts_are_passed_without_their_answers(tmp_path: Path) -> None:
    template.write_case(SUITE, SUITE.case("tokenizer-demo"), tmp_path)
    asked = json.loads((tmp_path / "inputs.json").read_text("utf-8"))
    whole = SUITE.document(SUITE.case("tokenizer-demo"))
    assert [set(entry) for entry in asked["strings"]] == [{"text"}] * len(whole["strings"])
    assert [set(entry) for entry in asked["decodings"]] == [{"ids"}] * len(whole["decodings"])


FAILING = (
    "\nimport os\n(out / 'out.npy').write_bytes(b'half')\nsys.stderr.write('it went wrong\\n')\n"
)


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.abort()", "(out / 'out.npy').unlink()", ""])
def test_a_failed_case_leaves_no_file(tmp_path: Path, end: str) -> None:
    """The last one ends well, but what it wrote is no array."""
    out = tmp_path / "dump"
    good("golden", "run", "tinymistral", *only("rms-norm", "silu-mul"), "-o", str(out))
    command = program(tmp_path, PROGRAM + FAILING + end)
    code, text, _ = run("golden", "run", "--command", command, *only("rms-norm"), "-o", str(out))
    assert code == 2
    assert "0 of 1 cases written" in text
    assert ("it went wrong" in text) == (end in ("sys.exit(3)", "os.abort()"))
    assert ("was ended by signal 6 (" in text) == (end == "os.abort()")
    assert [path.name for path in out.iterdir()] == ["silu-mul.safetensors"]


GRANDCHILD = """
import os, pathlib, time
(pathlib.Path(__file__).parent / "half").write_text(str(os.getpid()))
(pathlib.Path(__file__).parent / "half").rename(pathlib.Path(__file__).parent / "pid")
time.sleep(1000)
"""
SAYS_MUCH = "import sys\nwhile True: sys.{}.write('x' * 999_999)"


@pytest.mark.parametrize(
    ("code", "seconds", "says"),
    [
        ("import time; time.sleep(1000)", 1, "ended after 1 s, see --timeout"),
        (SAYS_MUCH.format("stdout"), 1, "ended after 1 s, see --timeout"),
        (SAYS_MUCH.format("stderr"), 1000, "ended after 1000000 bytes of error output"),
    ],
)
def test_a_command_without_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, seconds: int, says: str
) -> None:
    monkeypatch.setattr(template, "MOST_SAID", 1_000_000)
    command = program(tmp_path, code)
    exit_code, text, _ = run(
        *("golden", "run", "--command", command, *only("rms-norm")),
        *("--timeout", str(seconds), "-o", str(tmp_path / "dump")),
    )
    assert exit_code == 2
    assert f"failed: rms-norm\n    ValueError: the command was {says}\n" in text
    assert "0 of 1 cases written" in text


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="there are no process groups")
@pytest.mark.parametrize("end", ["", "time.sleep(1000)"])
def test_what_a_command_has_started_ends_with_it(tmp_path: Path, end: str) -> None:
    """Even where it holds the pipes of the command that started it."""
    (tmp_path / "grandchild.py").write_text(GRANDCHILD, encoding="utf-8")
    start = "\nimport subprocess, time\nsubprocess.Popen([sys.executable, %r])\n"
    start %= str(tmp_path / "grandchild.py")
    wait = "while not (pathlib.Path(__file__).parent / 'pid').exists(): time.sleep(0.01)\n"
    command = program(tmp_path, PROGRAM + start + wait + end)
    code, text, _ = run(
        *("golden", "run", "--command", command, *only("rms-norm")),
        *("--timeout", "8" if end else "100", "-o", str(tmp_path / "dump")),
    )
    assert (code, "1 of 1 cases written" in text) == ((2, False) if end else (0, True)), text
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not is_running(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("it is still there")


def is_running(pid: int) -> bool:
    """Return whether a process is there; one that has ended may still be listed."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_other_cases_run_after_one_that_fails(tmp_path: Path) -> None:
    def adapter(case: Case) -> Results:
        if case.id == "rms-norm":
            raise RuntimeError("out of\nregisters")
        if case.id == "linear":
            raise CannotRun("it has no matrices")
        return {"out": np.zeros(3, dtype=np.float16), "mine": np.zeros(1)}

    cases = ("rms-norm", "linear", "silu-mul")
    found = [(o.case.id, o.what, o.says) for o in dump(SUITE, adapter, tmp_path, cases)]
    assert found == [
        ("rms-norm", "failed", "RuntimeError: out of\nregisters"),
        ("linear", "not run", "it has no matrices"),
        ("silu-mul", "written", ""),
    ]
    assert list(load_file(tmp_path / "silu-mul.safetensors")) == ["out"]


def test_a_full_disk_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    adapter = open_adapter("tinymistral", SUITE, Settings())
    (outcome,) = dump(SUITE, adapter, tmp_path, ["rms-norm"])
    assert (outcome.what, "No space" in outcome.says) == ("failed", True)
    assert not list(tmp_path.iterdir())


# mistakes


@pytest.mark.parametrize(
    ("peer", "module", "extra"),
    [("transformers", "torch", "transformers"), ("llama-cpp", "llama_cpp", "llama-cpp")],
)
def test_a_peer_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    error = refused("golden", "run", peer, "-o", str(tmp_path / "dump"))
    assert f"{peer} cannot be imported" in error
    assert f"pip install 'tinymistral[{extra}]'" in error
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "either a PEER or --command"),
        ("tinymistral --command 'a {case} {out}'", "either a PEER or --command"),
        ("onnx", "unknown 'onnx'; expected tinymistral, transformers, llama-cpp"),
        ("transformers --backend numpy", "only tinymistral has backends"),
        ("tinymistral --backend abacus", "expected one of: numpy"),
        ("tinymistral --case rms_norm", "there is no case 'rms_norm'"),
        ("tinymistral --suite nowhere", "there is no suite 'nowhere'"),
        ("tinymistral --vocabulary nowhere", "nowhere: cannot be read"),
        ("tinymistral --dtype int8", "--dtype"),
        ("--command 'python mine.py'", "{case} and {out}"),
        ("tinymistral --timeout 9", "--timeout: has no effect without --command"),
        ("--command 'a {case} {out}' --timeout 0", "--timeout: expected 1 to 1000000, got 0"),
        ("--command 'a {case} {out}' --dtype float64", "--dtype: has no effect without a PEER"),
        ("--command 'no-such-program {case} {out}'", "there is no program 'no-such-program'"),
        ('--command "python \'{case} {out}"', "--command"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(
    tmp_path: Path, arguments: str, says: str
) -> None:
    error = refused("golden", "run", *shlex.split(arguments), "-o", str(tmp_path / "dump"))
    assert says in error


def test_each_peer_has_a_module_of_its_name() -> None:
    for peer in PEERS:
        name = peer.replace("-", "_")
        assert (Path(template.__file__).parent / f"{name}.py").exists()


# parts of the adapters that need no peer


def test_columns_are_found_by_position() -> None:
    """A row with two columns of padding, and one without; the last three columns are stored."""
    columns = np.array([[-1, -1, 0, 1], [0, 1, 2, 3]])
    held = np.arange(6.0).reshape(2, 3, 1)  # of columns 1, 2, 3
    wanted = np.array([[-1, 0, 1], [0, 2, 3]])
    found = at_positions(held, columns, wanted, missing=9.0)
    assert found[..., 0].tolist() == [[0, 1, 2], [9, 4, 5]]


@pytest.mark.parametrize(
    ("positions", "window", "calls", "float64", "runs"),
    [
        ([[-1, 0, 1]], 2, 1, False, True),
        ([[0, 1, -1]], 2, 1, False, True),
        ([[0, -1, 1]], 2, 1, False, False),
        ([[0, -1, 1]], None, 1, False, True),
        ([[0, 1, 2]], 1, 1, False, True),
        ([[0, 1, 2]], 1, 2, False, False),
        ([[-1, 0, 1]], 2, 1, True, False),
    ],
)
def test_what_transformers_runs(
    positions: list, window: int | None, calls: int, float64: bool, runs: bool
) -> None:
    try:
        check_padding(np.array(positions), window, calls, float64)
    except CannotRun:
        assert not runs
    else:
        assert runs


def test_transformers_does_not_run_a_query_with_no_visible_key() -> None:
    """In `attention-nothing-visible` that is row 0's first; padding is not compared."""
    keys = np.array([[3, 4, -1, 9]])
    for queries, window, runs in (
        ([[2, 3]], None, False),
        ([[-1, 3]], None, True),
        ([[3, 9]], 1, True),
        ([[5, 9]], 1, False),
        ([[5, 9]], 2, True),
    ):
        positions = {"q_positions": np.array(queries), "k_positions": keys}
        if runs:
            check_visible(positions, window)
        else:
            with pytest.raises(CannotRun, match="no visible key gets the mean"):
                check_visible(positions, window)
    case = SUITE.case("attention-nothing-visible")
    with pytest.raises(CannotRun):
        check_visible(SUITE.read(case).inputs, (case.parameters or {})["window"])


@pytest.mark.parametrize("kind", ["hidden", "visible"])
def test_transformers_does_not_run_attention_to_nan(kind: str) -> None:
    with pytest.raises(CannotRun, match="0 times NaN"):
        check_finite(SUITE.read(SUITE.case(f"attention-{kind}-nan")).inputs)
    check_finite(SUITE.read(SUITE.case("attention-many-keys")).inputs)


def test_transformers_does_not_count_past_2_24() -> None:
    check_counted(np.array([[-1, 2**24]]))
    for case, name in (("rope", "positions"), ("positions", "calls.0.positions")):
        inputs = SUITE.read(SUITE.case(f"{case}-past-2-24")).inputs
        with pytest.raises(CannotRun, match="angles are float32"):
            check_counted(inputs[name])


# writing arrays


def test_the_models_of_a_case_are_checkpoints(tmp_path: Path) -> None:
    """Of a recorded suite it is the folder itself."""
    template.write_model(SUITE, "raw", tmp_path / "raw")
    template.write_model(SUITE, "tied", tmp_path / "tied")
    assert {path.name for path in (tmp_path / "raw").iterdir()} == (
        {"params.json", "consolidated.safetensors"}
    )
    for name in ("raw", "tied"):
        good("golden", "record", "--model", str(tmp_path / name), "--ids", "1", "2", "--ways", "1",
             "--stages", "logits", "-o", str(tmp_path / "out"), "--case", name)  # fmt: skip
    recorded = dataclasses.replace(read_suite(tmp_path / "out"), checkpoint=FIXTURES)
    template.write_model(recorded, "tied", tmp_path / "link")
    assert (tmp_path / "link").resolve() == FIXTURES.resolve()
