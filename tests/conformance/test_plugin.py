"""The suite as a third party runs it: options, the summary, and errors of usage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_plugins import GOOD, distribution

from tinymistral.conformance.law import all_laws

pytestmark = pytest.mark.slow  # each is a process of its own

LAWS = len(list(all_laws()))
SUITE = (
    "--pyargs",
    "tinymistral.conformance",
    "--tinymistral-examples=2",
    "-p",
    "no:cacheprovider",
)
MODEST = """
    has_attention_weights = False
    unsupported = {"zeros_are_zeros": "the abacus comes with beads on it"}
"""
HIDE_HYPOTHESIS = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *of: None if name == "hypothesis" else find(name, *of)
import pytest
"""
SIZES = """
    def linear(self, x, weight):
        print(f"\\nn={x.shape[-1]}")
        return super().linear(x, weight)
"""
WRONG = """
from tinymistral.mistakes.masking import inclusive_window

class Wrong(inclusive_window.backend):
    name = "wrong"
    dtypes = ("float32",)
"""


class Suite:
    """Runs the suite in a folder where one backend is installed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def install(self, name: str, source: str) -> None:
        distribution(self.folder / "plugins", name, source, f"{name} = {name}:{name.capitalize()}")

    def python(self, *arguments: str, **variables: str) -> tuple[int, str]:
        ours = ("PYTEST_", "TINYMISTRAL_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = [str(self.folder / "plugins"), *filter(None, [env.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=env | {"PYTHONPATH": os.pathsep.join(path)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=300,
        )
        return done.returncode, done.stdout

    def __call__(self, *arguments: str, **variables: str) -> tuple[int, str]:
        return self.python("-m", "pytest", *SUITE, *arguments, **variables)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


# What ran, and on which backend


def test_the_option_names_the_backend_and_the_summary_says_what_ran(suite):
    suite.install("good", GOOD + MODEST)
    code, out = suite(
        *("--tinymistral-backend", "good", "-k", "zeros_are or take or weights_are"),
        TINYMISTRAL_BACKEND="numpy",
    )
    assert code == 0, out
    assert "\nbackend good on Abacus 3000, in float64, float32\n" in out
    assert f"\n2 of {LAWS} laws ran, 0 failed\n" in out
    declared = "zeros_are_zeros: declared as unsupported: the abacus comes with beads on it"
    assert f"\nnot in float64, float32: {declared}\n" in out
    lacking = "attention_weights_are_the_softmax: has_attention_weights is False"
    assert f"\nnot in float64, float32: {lacking}\n" in out
    assert "4 passed, 4 skipped" in out  # two laws that ran and two that did not, in two dtypes


def test_a_law_may_be_unsupported_in_one_dtype(suite):
    suite.install(
        "good", GOOD + '    unsupported = {"zeros_are_zeros[float32]": "they are ones"}\n'
    )
    code, out = suite("--tinymistral-backend", "good", "-k", "zeros_are")
    assert code == 0, out
    assert f"\n1 of {LAWS} laws ran, 0 failed\n" in out
    assert "\nnot in float32: zeros_are_zeros: declared as unsupported: they are ones\n" in out


def test_small_shapes_only(suite):
    suite.install("good", GOOD + SIZES)
    for option, most in (((), 257), (("--tinymistral-small",), 33)):
        chosen = ("--tinymistral-backend", "good", "--tinymistral-examples", "50", "-s")
        code, out = suite(*chosen, *option, "-k", "linear_is_dot_products")
        assert code == 0, out
        assert (max(map(int, re.findall(r"^n=(\d+)$", out, re.MULTILINE))) > 33) == (most > 33)


def test_real_sizes_are_left_out_where_only_small_ones_are_wanted(suite):
    code, out = suite("--tinymistral-small", "-k", "real_sizes or zeros_are")
    assert code == 0, out
    assert f"\n1 of {LAWS} laws ran, 0 failed\n" in out
    assert out.count("_at_real_sizes: --tinymistral-small leaves out real sizes\n") == 7


def test_without_hypothesis_one_line_says_what_to_install(suite):
    code, out = suite.python("-c", f"{HIDE_HYPOTHESIS}\nsys.exit(pytest.main({list(SUITE[:2])}))")
    assert code == pytest.ExitCode.USAGE_ERROR, out
    assert 'the laws need hypothesis; install it with `pip install "tinymistral[con' in out
    assert "Traceback" not in out


def test_a_law_is_skipped_only_in_dtypes_too_narrow_for_it(suite):
    code, out = suite("-k", "log_probabilities")
    assert code == 0, out
    assert f"\n1 of {LAWS} laws ran, 0 failed\n" in out
    (line,) = re.findall(r"^not in .*$", out, re.MULTILINE)
    assert line.startswith("not in float16, bfloat16: log_probabilities")


def test_without_the_option_the_environment_names_the_backend(suite):
    suite.install("good", GOOD)
    code, out = suite("-k", "zeros_are_zeros", TINYMISTRAL_BACKEND="good")
    assert code == 0, out
    assert "\nbackend good on Abacus 3000, in float64, float32\n" in out


def test_without_either_it_is_numpy_in_all_its_dtypes(suite):
    code, out = suite("-k", "zeros_are_zeros")
    assert code == 0, out
    assert "\nbackend numpy on CPU, in float32, float64, float16, bfloat16\n" in out
    assert f"\n1 of {LAWS} laws ran, 0 failed\n" in out
    assert "not in" not in out


def test_other_tests_are_not_affected(suite):
    (suite.folder / "test_other.py").write_text("def test_other(): pass\n", "utf-8")
    code, out = suite.python("-m", "pytest", "-p", "no:cacheprovider", TINYMISTRAL_BACKEND="none")
    assert code == 0, out
    assert "1 passed" in out
    assert "conformance" not in out


# A backend that is wrong


def test_a_wrong_backend_fails_and_the_snippet_reproduces_it(suite):
    suite.install("wrong", WRONG)
    code, out = suite(
        *("--tinymistral-backend", "wrong", "--tinymistral-examples", "50"),
        *("-k", "mixes_what_is_visible or zeros_are_zeros"),
    )
    assert code == 1, out
    assert f"\n2 of {LAWS} laws ran, 1 failed\n" in out
    assert "numbers are out of bounds" in out
    assert re.search(r"^E +To reproduce it:$", out, re.MULTILINE)
    law = "attention_mixes_what_is_visible[float32]"
    summary = out.rpartition(f"\nto reproduce the failure of {law}:\n\n")[2]
    snippet = summary.partition("\n\n")[0]
    assert "from wrong import Wrong\n" in snippet
    assert "\ntest.tinymistral_law.check(Wrong('float32'), Attention(B=" in snippet
    code, out = suite.python("-c", snippet)
    assert code == 1
    assert re.match("AssertionError: at .*: got .*, expected ", out.splitlines()[-1])


# Errors of usage


@pytest.mark.parametrize(
    "name, body, said",
    [
        (
            "good",
            '    unsupported = {"gravity": "too heavy"}\n',
            "backend 'good' declares as unsupported what is no law: gravity; the laws are a_token_",
        ),
        (
            "good",
            '    unsupported = {"zeros_are_zeros[float16]": "has no such zeros, nor a float16"}\n',
            "backend 'good' declares as unsupported what is no law: zeros_are_zeros[float16]; the ",
        ),
        ("best", "", "backend: 'best' is not installed; expected one of: numpy"),
        ("good", "\n    zeros = 1 / 0\n", "backend: 'good' of good 1.2 cannot run: "),
    ],
    ids=[
        "a law that is none",
        "a dtype that is none",
        "a backend that is none",
        "a backend that is broken",
    ],
)
def test_one_line_says_why_nothing_ran(suite, name, body, said):
    suite.install("good", GOOD + body)
    code, out = suite("--tinymistral-backend", name)
    assert code == pytest.ExitCode.USAGE_ERROR, out
    (line,) = [line for line in out.splitlines() if "tinymistral conformance: " in line]
    assert said in line
    assert "Traceback" not in out
    assert "passed" not in out
    assert len(out.splitlines()) < 10, out


def test_no_examples_at_all_are_refused(suite):
    code, out = suite("--tinymistral-examples=0")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "--tinymistral-examples: expected at least 1, got 0" in out
    assert "Traceback" not in out
