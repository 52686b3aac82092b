"""`tinymistral backends`, and plugins at the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import generated, good, refused, run
from fake_plugins import GOOD, Plugins, distribution, plugins_fixture  # noqa: F401

import tinymistral

REPOSITORY = Path(tinymistral.__file__).parents[1]
BROKEN = "raise ImportError('no\\nlibrary')"
UNFIT = """
from tinymistral import BackendUnavailable
from tinymistral.numpy_backend import NumpyBackend

class Unfit(NumpyBackend):
    name = "unfit"

    @classmethod
    def device(cls):
        raise BackendUnavailable("there is no abacus", "buy one")
"""


def listed() -> dict[str, dict]:
    """What --json prints of each distribution's backend."""
    out = good("backends", "--json")
    assert out.count("\n") == 1
    rows = json.loads(out)["backends"]
    return {row["distribution"]: row for row in rows if row["name"] != "plain"}


def test_each_has_a_row_with_what_it_computes_on(plugins: Plugins) -> None:
    plugins.install("thing", GOOD, "good = thing:Good")
    header, *rows = good("backends").splitlines()
    columns = [header.index(word) for word in header.split()]
    cells = {
        tuple(
            row[start:end].strip() for start, end in zip(columns, [*columns[1:], None], strict=True)
        )
        for row in rows
    }
    assert header.split() == ["name", "distribution", "version", "device", "dtypes"]
    assert rows[0].split()[:5] == ["*", "numpy", "tinymistral", tinymistral.__version__, "CPU"]
    assert ("good", "thing", "1.2", "Abacus 3000", "float64, float32") in cells


def test_json_has_the_same_and_more(plugins: Plugins) -> None:
    plugins.install("thing", GOOD, "good = thing:Good")
    rows = listed()
    assert rows["thing"] == {
        "name": "good",
        "distribution": "thing",
        "version": "1.2",
        "entry_point": "thing:Good",
        "default": False,
        "device": "Abacus 3000",
        "dtypes": ["float64", "float32"],
        "details": None,
        "reason": None,
        "remedy": None,
    }
    assert next(iter(rows)) == "tinymistral"
    assert rows["tinymistral"]["default"] is True
    assert json.loads(good("backends", "--json"))["default"] == "numpy"


def test_what_else_one_says_of_itself_is_on_the_line_below(plugins: Plugins) -> None:
    details = "    @classmethod\n    def details(cls): return 'with  beads of\\nwood'\n"
    plugins.install("thing", f"{GOOD}\n{details}", "good = thing:Good")
    lines = good("backends").splitlines()
    row = next(number for number, line in enumerate(lines) if line.split()[:1] == ["good"])
    assert lines[row + 1] == "       with beads of wood"
    assert listed()["thing"]["details"] == "with beads of wood"


def test_why_one_cannot_run_and_what_to_do_are_on_separate_lines(plugins: Plugins) -> None:
    plugins.install("thing", UNFIT, "unfit = thing:Unfit")
    plugins.install("other", BROKEN, "broken = other:Broken")
    lines = [line.strip() for line in good("backends").splitlines()]
    row = next(number for number, line in enumerate(lines) if line.startswith("unfit "))
    assert lines[row].split() == ["unfit", "thing", "1.2"]
    assert lines[row + 1 : row + 3] == ["cannot run: there is no abacus", "buy one"]
    row = next(number for number, line in enumerate(lines) if line.startswith("broken "))
    assert lines[row + 1 : row + 3] == [
        "cannot run: importing it fails: ImportError: no library",
        "reinstall other, or uninstall it",
    ]
    result = listed()["thing"]
    assert (result["reason"], result["remedy"]) == ("there is no abacus", "buy one")
    assert result["device"] is result["dtypes"] is None


@pytest.mark.parametrize(("source", "name"), [(GOOD, "good"), (BROKEN, "broken")])
def test_the_one_that_the_environment_names_is_marked(
    source: str, name: str, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.install("thing", source, f"{name} = thing:Good")
    monkeypatch.setenv("TINYMISTRAL_BACKEND", name)
    marked = [line for line in good("backends").splitlines() if line.startswith("*")]
    assert [line.split()[:3] for line in marked] == [["*", name, "thing"]]
    assert [row["name"] for row in listed().values() if row["default"]] == [name]


def test_one_that_the_environment_names_and_that_is_not_installed(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYMISTRAL_BACKEND", "ab\nacus")
    code, out, err = run("backends")
    assert code == 0
    assert "*" not in out
    assert out.startswith("   name ")  # the columns stay where they are
    assert err.startswith(
        "tinymistral: warning: TINYMISTRAL_BACKEND names 'ab\\nacus', which is not installed"
    )
    assert err.count("\n") == 1
    code, out, err = run("backends", "--json")
    assert json.loads(out)["default"] == "ab\nacus"
    assert "not installed" in err


def test_a_plugin_that_calls_itself_numpy_is_shown_as_never_used(plugins: Plugins) -> None:
    plugins.install("thing", GOOD.replace('"good"', '"numpy"'), "numpy = thing:Good")
    rows = listed()
    assert rows["tinymistral"]["device"] == "CPU"
    assert [rows[name]["default"] for name in ("tinymistral", "thing")] == [True, False]
    assert "which nothing replaces" in rows["thing"]["reason"]
    assert rows["thing"]["remedy"] == "uninstall thing"


def test_two_of_one_name_are_both_shown_as_unusable(plugins: Plugins) -> None:
    plugins.install("thing", GOOD, "good = thing:Good")
    plugins.install("other", GOOD, "good = other:Good")
    rows = listed()
    for name in ("thing", "other"):
        assert "those of other 1.2 and thing 1.2" in rows[name]["reason"]


def test_a_broken_plugin_breaks_nothing_until_it_is_asked_for(plugins: Plugins) -> None:
    plugins.install("thing", "raise SystemExit('go away')", "broken = thing:Broken")
    options = ("generate", "x", "--max-new-tokens", "0")
    assert good("--help")
    assert good("generate", "--help")
    assert good(*options) == good(*options, "--backend", "numpy") == "x\n"
    assert "thing" not in sys.modules
    result = refused(*options, "--backend", "broken")
    assert "backend: 'broken' of thing 1.2 cannot run: " in result
    assert "SystemExit: go away; reinstall thing" in result


def test_generate_computes_on_the_one_asked_for(plugins: Plugins) -> None:
    counting = f"""{GOOD}
    count = 0
    def silu_mul(self, gate, up):
        Good.count += 1
        return super().silu_mul(gate, up)
"""
    plugins.install("thing", counting, "good = thing:Good")
    options = ("Once upon a time", "--greedy", "--max-new-tokens", "5")
    result = generated(*options, "--backend", "good")
    assert sys.modules["thing"].Good.count > 0
    assert result["ids"] == generated(*options, "--dtype", "float64")["ids"]
    assert "float64, float32" in refused("generate", "x", "--backend", "good", "--dtype", "float16")


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    distribution(tmp_path, "thing", GOOD, "good = thing:Good")
    distribution(tmp_path, "other", BROKEN, "broken = other:Broken")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    env |= {"TINYMISTRAL_BACKEND": "good"}

    def tinymistral(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "tinymistral", *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    code, out, err = tinymistral("backends")
    assert (code, err) == (0, "")
    assert "\n*  good " in out
    assert "ImportError: no library\n" in out
    code, out, err = tinymistral("generate", "x", "--max-new-tokens", "2", "--stats")
    assert code == 0
    assert "; backend good float64; " in err
    code, out, err = tinymistral("generate", "x", "--backend", "broken")
    assert (code, out) == (2, "")
    assert err.startswith("tinymistral: error: backend: 'broken' of other 1.2 cannot run: ")
    assert err.count("\n") == 1
