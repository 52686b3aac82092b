"""What all tests share: hypothesis profiles and the folder of test models.

`default` draws the same examples in every run, and so does `ci`, twice as many;
`--hypothesis-profile=thorough` draws new ones, many more, and prints how to reproduce a failure.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings

from tinymistral import threads

settings.register_profile("default", max_examples=25, derandomize=True, deadline=None)
settings.register_profile("ci", settings.get_profile("default"), max_examples=50)
settings.register_profile(
    "thorough", max_examples=2000, derandomize=False, deadline=None, print_blob=True
)
settings.load_profile("default")


gc.disable()  # until all tests are collected: there is hardly any garbage among so many objects


def pytest_collection_finish() -> None:
    """Collect garbage again, but do not look through all tests and modules each time."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run fast tests before slow ones."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Leave out `os.fsync`: no test loses power, and on a slow disk it takes most of the time.

    And no search for translations, which argparse makes 38 times for each command: a third of it.
    """
    with patch("os.fsync", lambda handle: None), patch("gettext.find", lambda *_, **__: None):
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let `train`, which asks for one thread, find that NumPy has started with one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in threads.VARIABLES:
            patch.setenv(name, "1")
        threads.threads.cache_clear()
        yield
    threads.threads.cache_clear()


@pytest.fixture(scope="session")
def test_models() -> Path:
    """Return the folder of test models, which are too large to be kept beside the tests."""
    folder = os.environ.get("TINYMISTRAL_TEST_MODELS")
    if not folder:
        pytest.skip("TINYMISTRAL_TEST_MODELS is not set to the folder of test models")
    return Path(folder)
