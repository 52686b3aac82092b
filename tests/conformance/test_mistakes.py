"""Tests of the laws and of the catalogue of mistakes: each mistake is caught by its law."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from wrong import WRONG

from tinymistral.backend import DTYPES, Backend
from tinymistral.cache import RollingCache
from tinymistral.conformance import BEFORE_SNIPPET
from tinymistral.conformance.law import SETTINGS, all_laws
from tinymistral.conformance.models import Tiny
from tinymistral.heads import MistralForCausalLM
from tinymistral.mistakes import MISTAKES, OF_LAWS, Mistake
from tinymistral.mistakes.planting import InParts, faulty
from tinymistral.numpy_backend import NumpyBackend

LAWS = {test.tinymistral_law.name: test for test in all_laws()}
OF_ATTENTION = [
    n for n, t in LAWS.items() if t.tinymistral_law.check.__module__.endswith(".test_attention")
]

# Stop at the first example that fails, without shrinking it.
QUICK = settings(
    SETTINGS,
    max_examples=settings.get_profile("ci").max_examples,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    database=None,
)


def check(law: str, backend: Backend, examples: int = QUICK.max_examples) -> None:
    """Check a law on a backend, with the examples of the suite itself."""
    test = LAWS[law].hypothesis.inner_test

    @functools.wraps(test)
    def run(backend: Backend, data: st.DataObject) -> None:
        with suppress(ValueError, IndexError):  # a cache that crashes says little about the law
            test(backend, data)

    settings(QUICK, max_examples=examples)(given(data=st.data())(run))(backend)


def each_in_its_dtypes() -> list:
    return [
        pytest.param(
            mistake,
            dtype,
            id=f"{mistake.name}-{dtype}",
            marks=[] if dtype == mistake.dtypes[0] else [pytest.mark.slow],
        )
        for mistake in OF_LAWS
        for dtype in mistake.dtypes
        if dtype in LAWS[mistake.law].tinymistral_law.dtypes
    ]


def wrong_in_two_dtypes() -> list:
    return [
        pytest.param(
            kind,
            dtype,
            id=f"{kind.__name__}-{dtype}",
            marks=[pytest.mark.slow] if dtype != "float32" or "at_real_sizes" in law else [],
        )
        for kind, law in WRONG.items()
        for dtype in ("float32", "bfloat16")
        if dtype in LAWS[law].tinymistral_law.dtypes
    ]


# The laws


def check_that_it_fails(law: str, backend: Backend) -> None:
    """Check that a law catches a backend, and that the snippet repeats it."""
    # Only an AssertionError counts: a mistake that crashes says little about the law.
    with pytest.raises(AssertionError) as caught:
        check(law, backend)
    notes = "\n".join(caught.value.__notes__)
    introduction, _, snippet = notes.partition(f"{BEFORE_SNIPPET}\n\n")
    assert introduction
    with pytest.raises(AssertionError):
        exec(snippet, {})


@pytest.mark.parametrize("mistake, dtype", each_in_its_dtypes())
def test_the_law_catches_the_mistake_and_a_snippet_repeats_it(mistake, dtype):
    with mistake.planted(dtype) as backend:
        check_that_it_fails(mistake.law, backend)


@pytest.mark.parametrize("kind, dtype", wrong_in_two_dtypes())
def test_the_law_catches_a_mistake_of_size_range_or_memory(kind, dtype):
    with np.errstate(all="ignore"):
        check_that_it_fails(WRONG[kind], kind(dtype))


def test_every_law_can_fail():
    assert {*WRONG.values(), *(mistake.law for mistake in OF_LAWS)} == set(LAWS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("law", OF_ATTENTION)
def test_attention_in_parts_is_right_without_a_mistake(law, dtype):
    with np.errstate(all="ignore"):
        check(law, InParts(dtype), examples=20)


# The catalogue


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_an_entry_is_complete(mistake):
    assert re.fullmatch(r"[a-z0-9]+([-.][a-z0-9]+)*", mistake.name)
    assert mistake.changes
    for name, _ in mistake.changes:  # each replaces something that exists
        attribute = name.removeprefix("cache.")
        of = RollingCache if attribute != name else faulty(NumpyBackend, in_parts=True)
        assert hasattr(of, attribute) or name in OTHER_CHANGES
    assert mistake.dtypes
    assert set(mistake.dtypes) | set(mistake.of_a_dtype) <= set(DTYPES)
    for text in (mistake.says, mistake.fix):  # a line each, of whole sentences
        assert re.fullmatch(r"[^\s].{15,250}\.", text)
        assert text.isprintable()
        assert "  " not in text
    assert len(re.findall(r"\.( |$)", mistake.fix)) == 1


@pytest.mark.parametrize("mistake", OF_LAWS, ids=lambda mistake: mistake.name)
def test_its_law_can_catch_it(mistake):
    kind = mistake.backend
    found = getattr(sys.modules[kind.__module__], kind.__qualname__.removesuffix(".backend"))
    assert found is mistake
    assert found.backend is kind
    assert set(mistake.dtypes) & set(LAWS[mistake.law].tinymistral_law.dtypes)


def test_names_are_unique():
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)
    assert len({mistake.says for mistake in MISTAKES}) == len(MISTAKES)


OTHER_CHANGES = {"checkpoint", "inputs", "sampling", "strings", "decodings", "conversations"}

TINY = Tiny(
    V=7, D=4, F=4, layers=1, K=1, group=2, d=2, window=2, theta=1e4, eps=1e-5,
    tied=True, stored="float32", seed=0,
)  # fmt: skip


@pytest.mark.parametrize("mistake", OF_LAWS, ids=lambda mistake: mistake.name)
def test_it_is_planted_only_inside_the_with_block(mistake: Mistake):
    with mistake.planted("float32") as backend:
        assert type(backend) is mistake.backend
        assert backend.dtype == "float32"
        model = TINY.model(backend)
        cache = model.new_cache(3, chunk=5)
        assert type(cache) is mistake.cache
        assert (cache.backend, len(cache.count), cache.chunk) == (backend, 3, 5)
        assert model.new_cache(1).chunk == backend.chunk
        assert isinstance(model, MistralForCausalLM)
    assert type(model.new_cache(1)) is RollingCache


def test_it_is_removed_after_an_error_too():
    mistake = next(mistake for mistake in MISTAKES if mistake.cache is not RollingCache)
    with pytest.raises(ZeroDivisionError), mistake.planted("float64"):
        _ = 1 / 0
    assert type(TINY.model(NumpyBackend()).new_cache(1)) is RollingCache


def test_the_catalogue_needs_no_test_tools():
    tools = "{'pytest', 'hypothesis'} & set(sys.modules)"
    code = f"import sys, tinymistral.mistakes; assert not {tools}, {tools}"
    subprocess.run([sys.executable, "-c", code], check=True)
