"""`tinymistral golden`: the suite that comes with listing it, and comparing dumps with it."""

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch
from xml.etree import ElementTree

import numpy as np
import pytest
from cli_runner import good, refused, run
from safetensors.numpy import load_file, save_file

import tinymistral
from tinymistral.commands import golden

V1 = Path(tinymistral.__file__).parent / "golden" / "v1"
MANIFEST = json.loads((V1 / "manifest.json").read_text("utf-8"))
CASES = {case["id"]: case for case in MANIFEST["cases"]}


def truth(case: str) -> dict[str, np.ndarray]:
    """What the file of a case expects, in float32: a dump without a mistake."""
    arrays = load_file(V1 / CASES[case]["file"])
    return {
        name.removeprefix("expected."): x.astype(np.float32) if x.dtype == np.float64 else x
        for name, x in arrays.items()
        if name.startswith("expected.")
    }


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Two cases without a mistake."""
    for case in ("rms-norm", "plain"):
        save_file(truth(case), tmp_path / f"{case}.safetensors")
    return tmp_path


def with_a_mistake(dump: Path) -> None:
    arrays = truth("plain")
    arrays["calls.0.layers.1.up"][1, 2, 3] += 1
    arrays["calls.0.logits"] += 1
    save_file(arrays, dump / "plain.safetensors")


# list


def test_list_has_a_line_for_each_case() -> None:
    lines = good("golden", "list").splitlines()
    assert lines == good("golden", "list", "v1").splitlines()
    assert lines == good("golden", "list", str(V1)).splitlines()
    assert lines[-1] == f"{len(CASES)} cases, in {V1}"
    for line, case in zip(lines[:-2], CASES.values(), strict=True):
        name, kind, says = line.split(maxsplit=2)
        assert [name, kind, says] == [case["id"], case["kind"], " ".join(case["says"].split())]


def test_list_as_json_has_the_names_in_the_order_of_computation() -> None:
    out = good("golden", "list", "--json")
    assert out.count("\n") == 1
    result = json.loads(out)
    assert (result["suite"], result["folder"]) == ("v1", str(V1))
    assert [case["id"] for case in result["cases"]] == list(CASES)
    for case in result["cases"]:
        assert case["says"] == CASES[case["id"]]["says"]
        expected = CASES[case["id"]].get("expected")
        assert (sorted(expected) if expected else None) == (
            sorted(case["expected"]) if case["expected"] else None
        )
    plain = next(case["expected"] for case in result["cases"] if case["id"] == "plain")
    assert plain[:3] == [
        "calls.0.embedding",
        "calls.0.layers.0.input_layernorm",
        "calls.0.layers.0.q",
    ]
    assert plain[-2:] == ["calls.0.norm", "calls.0.logits"]


# check


def test_agreement_is_exit_code_0(dump: Path) -> None:
    out = good("golden", "check", "v1", str(dump))
    assert out.splitlines()[1].split()[:2] == ["rms-norm", "OK"]
    assert f"2 of {len(CASES)} cases given: 2 OK, 0 differ\n" in out
    assert "diagnose" not in out


def test_a_difference_is_exit_code_1_and_named(dump: Path) -> None:
    with_a_mistake(dump)
    code, out, err = run("golden", "check", "v1", str(dump))
    assert (code, err) == (1, "")
    assert "plain     DIFFERS at calls.0.layers.1.up" in out
    assert "layer 1, row 1, token 2 (position 2), dimension 3: [1, 2, 3]" in out
    assert "the last to agree before it is calls.0.layers.1.gate\n" in out
    assert out.endswith(f"tinymistral golden diagnose v1 {dump}\n")
    code, out, _ = run("golden", "check", str(V1), str(dump), "--json")
    result = json.loads(out)
    assert (code, result["suite"], result["verdict"]) == (1, "v1", "differs")
    firsts = {c["id"]: c["first"] for c in result["cases"] if c["verdict"] != "absent"}
    assert firsts == {"rms-norm": None, "plain": "calls.0.layers.1.up"}


def test_what_cannot_be_compared_is_exit_code_2(dump: Path) -> None:
    (dump / "rms-norm.safetensors").write_bytes(b"broken")
    code, out, err = run("golden", "check", "v1", str(dump))
    assert (code, err) == (2, "")
    assert "cannot be compared: cannot read" in out
    with_a_mistake(dump)  # which is certain, and outweighs it
    assert run("golden", "check", "v1", str(dump)).code == 1


@pytest.mark.parametrize("name", ["plain.safetensors", "tokenizer-demo.json", "plain"])
def test_an_empty_case_is_no_success(tmp_path: Path, name: str) -> None:
    """Of an empty one, as an export that went wrong leaves it."""
    if name == "plain":
        (tmp_path / name).mkdir()
    elif name.endswith("json"):
        (tmp_path / name).write_text("{}", "utf-8")
    else:
        save_file({}, tmp_path / name)
    code, out, err = run("golden", "check", "v1", str(tmp_path))
    assert (code, err) == (2, "")
    assert "CANNOT BE COMPARED" in out
    assert "there is no " in out
    assert json.loads(run("golden", "check", "v1", str(tmp_path), "--json").out)["verdict"] == (
        "incomparable"
    )


def test_a_ci_may_want_every_case(dump: Path, tmp_path: Path) -> None:
    code, out, _ = run("golden", "check", "v1", str(dump), "--complete")
    assert code == 1
    assert "diagnose" not in out
    (line,) = (line for line in out.splitlines() if line.startswith("--complete: "))
    absent = [case for case in CASES if case not in ("rms-norm", "plain")]
    assert line == f"--complete: {len(absent)} are missing: {', '.join(absent)}"
    report = tmp_path / "report.xml"
    options = ("--complete", "--json", "--junit", str(report))
    code, out, _ = run("golden", "check", "v1", str(dump), *options)
    assert (code, json.loads(out)["verdict"]) == (1, "incomplete")
    group = ElementTree.parse(report).getroot()[0]
    assert (group.get("failures"), group.get("skipped")) == (str(len(absent)), "0")
    only = ("--complete", "--case", "rms-norm", "--case")
    assert good("golden", "check", "v1", str(dump), *only, "plain")
    code, out, _ = run("golden", "check", "v1", str(dump), *only, "rope")
    assert (code, out.splitlines()[-1]) == (1, "--complete: 1 are missing: rope")


def test_a_window_of_1_leaves_caches_of_no_width(tmp_path: Path) -> None:
    arrays = truth("window-1") | {
        f"calls.{n}.cache.layers.{layer}.{kind}": np.zeros((1, 0, 2, 6), np.float32)
        for n in range(3) for layer in range(2) for kind in "kv"
    }  # fmt: skip
    save_file(arrays, tmp_path / "window-1.safetensors")
    assert "there is no name" not in good("golden", "check", "v1", str(tmp_path))


def test_only_some_cases(dump: Path) -> None:
    with_a_mistake(dump)
    out = good("golden", "check", "v1", str(dump), "--case", "rms-norm")
    assert "1 of 1 cases given: 1 OK, 0 differ" in out
    options = ("--case", "rms-norm", "--case", "plain")
    assert "2 of 2 cases" in run("golden", "check", "v1", str(dump), *options).out


def test_verbose_lists_the_tensors(dump: Path) -> None:
    out = good("golden", "check", "v1", str(dump), "--verbose")
    assert out.count("\n  OK  ") == len(truth("plain")) + len(truth("rms-norm"))


def test_the_dtype_chooses_the_tolerance(dump: Path) -> None:
    arrays = truth("plain")
    tolerance = CASES["plain"]["expected"]["calls.0.logits"]["tolerance"]
    arrays["calls.0.logits"] += np.float32(tolerance["bfloat16"] * 0.9)
    save_file(arrays, dump / "plain.safetensors")
    code, out, _ = run("golden", "check", "v1", str(dump))
    assert code == 1
    assert "say --dtype bfloat16" in out
    assert good("golden", "check", "v1", str(dump), "--dtype", "bfloat16")


def test_the_order_of_a_raw_checkpoint(dump: Path) -> None:
    arrays = truth("plain")
    for name, x in arrays.items():
        if name.rpartition(".")[2] in ("q", "k", "q_rotated", "k_rotated"):
            pairs = np.empty_like(x)
            half = x.shape[-1] // 2
            pairs[..., ::2], pairs[..., 1::2] = x[..., :half], x[..., half:]
            arrays[name] = pairs
    save_file(arrays, dump / "plain.safetensors")
    assert good("golden", "check", "v1", str(dump), "--layout", "raw")
    code, out, _ = run("golden", "check", "v1", str(dump))
    assert code == 1
    assert "DIFFERS at calls.0.layers.0.q\n" in out.replace("  ", "\n")
    assert "it agrees in the order of --layout raw" in out


def test_junit(dump: Path, tmp_path: Path) -> None:
    with_a_mistake(dump)
    report = tmp_path / "report.xml"
    assert run("golden", "check", "v1", str(dump), "--junit", str(report)).code == 1
    group = ElementTree.parse(report).getroot()[0]
    assert (group.get("tests"), group.get("failures")) == (str(len(CASES)), "1")


# What is wrong with the command line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sing",), "sing"),
        (("check",), "SUITE, CANDIDATE"),
        (("check", "v1"), "CANDIDATE"),
        (("check", "v7", "DUMP"), "there is no suite 'v7'; expected v1, or a folder"),
        (("list", "v7"), "there is no suite 'v7'"),
        (("check", "v1", "nowhere"), "there is no such file"),
        (("check", "v1", "TEXT"), "it is text, which begins '# A dump"),
        (("check", "v1", "TEXT"), "; as CANDIDATE, expected a folder with embedding.safetensors"),
        (("check", "TEXT"), "CANDIDATE; expected: tinymistral golden check SUITE CANDIDATE"),
        (("check", "v1", "EMPTY"), "no output of any case"),
        (("check", "v1", "DUMP", "--case", "x"), "there is no case 'x' in suite 'v1'; its cases"),
        (("check", "v1", "DUMP", "--case", "plian"), "in suite 'v1'; did you mean plain?"),
        (("run", "transformer", "-o", "x"), "did you mean transformers?"),
        (("chek", "v1", "DUMP"), "did you mean check?"),
        (("check", "v1", "DUMP", "--case", "rope"), "no output of case rope, only of rms"),
        (("check", "v1", "DUMP", "--dtype", "int8"), "bfloat16"),
        (("check", "v1", "DUMP", "--junit", "EMPTY/no/report.xml"), "cannot be written"),
        (("check", "v1", "DUMP", "--junit", ""), "expected the name of a file for the report"),
        (("check", "v1", str(V1)), "it is a suite, with a manifest.json; expected as CANDIDATE"),
        (("check", "v1", "DUMP", "--layout", "pairs"), "raw"),
        (("check", "v1", "DUMP", "more"), "unknown argument more"),
    ],
)
def test_a_mistake_is_reported_in_one_line(dump: Path, arguments: tuple, says: str) -> None:
    (dump / "empty").mkdir()
    (dump / "README.md").write_text("# A dump\n", "utf-8")
    places = {"DUMP": str(dump), "EMPTY": str(dump / "empty"), "TEXT": str(dump / "README.md")}
    given = [places.get(a, a.replace("EMPTY", places["EMPTY"])) for a in arguments]
    assert says in refused("golden", *given)


def test_a_suite_that_was_changed(dump: Path) -> None:
    manifest = json.loads((V1 / "manifest.json").read_text("utf-8"))
    (dump / "suite" / "cases").mkdir(parents=True)
    (dump / "suite" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (dump / "suite" / CASES["rms-norm"]["file"]).write_bytes(b"other numbers")
    assert "the manifest says" in refused("golden", "check", str(dump / "suite"), str(dump))


def test_without_a_subcommand_it_helps() -> None:
    assert good("golden") == good("golden", "--help")
    for name in golden.COMMANDS:
        assert f"\n    {name}" in good("golden")
        assert f"usage: tinymistral golden {name}" in good("golden", name, "--help")


def test_an_internal_error_is_not_hidden(dump: Path) -> None:
    with (
        patch("tinymistral.golden.compare.cases.check", side_effect=IndexError),
        pytest.raises(IndexError),
    ):
        run("golden", "check", "v1", str(dump))


def test_in_a_process_of_its_own(dump: Path) -> None:
    with_a_mistake(dump)
    command = [sys.executable, "-m", "tinymistral", "golden", "check", "v1", str(dump)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    script = """
import sys
from tinymistral.cli import main
print(main(["golden", "check", "--help"]), "numpy" in sys.modules)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("\n0 False\n")
