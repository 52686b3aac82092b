"""What pytest needs for the laws: which backend they are held against, and what came of it.

Any pytest where tinymistral is installed loads this module, so it imports little.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from tinymistral.conformance import BEFORE_SNIPPET

if TYPE_CHECKING:
    from tinymistral.backend import Backend

HEADING = "tinymistral conformance"
NO_HYPOTHESIS = 'the laws need hypothesis; install it with `pip install "tinymistral[conformance]"`'


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("tinymistral", "tinymistral: is a backend right?")
    group.addoption(
        "--tinymistral-backend",
        metavar="NAME",
        help="the backend that `--pyargs tinymistral.conformance` judges "
        "(default: the environment variable TINYMISTRAL_BACKEND, else numpy)",
    )
    group.addoption(
        "--tinymistral-examples",
        metavar="N",
        type=int,
        help="examples of each law and dtype (default: as many as hypothesis draws)",
    )
    group.addoption(
        "--tinymistral-small",
        action="store_true",
        help="draw shapes of up to 33 only, for a backend that takes minutes over large ones",
    )


@pytest.hookimpl(trylast=True)  # after hypothesis has loaded the profile that it was told to
def pytest_configure(config: pytest.Config) -> None:
    """Begin to count; refuse a backend that cannot be judged before anything is collected."""
    examples = config.getoption("--tinymistral-examples")
    if examples is not None:
        if examples < 1:
            raise pytest.UsageError(f"--tinymistral-examples: expected at least 1, got {examples}")
        if find_spec("hypothesis") is None:
            raise pytest.UsageError(f"{HEADING}: {NO_HYPOTHESIS}")
        from hypothesis import settings

        name = f"tinymistral {examples}"
        settings.register_profile(name, max_examples=examples)
        settings.load_profile(name)
    if config.getoption("--tinymistral-small") and find_spec("hypothesis"):
        from tinymistral.conformance import cases

        cases.SMALL_ONLY = True
    tally = Tally(config)
    config.pluginmanager.register(tally, "tinymistral-tally")
    asked = config.getoption("--tinymistral-backend") is not None
    arguments = map(str, config.invocation_params.args)
    if asked or any(text.startswith("tinymistral.conformance") for text in arguments):
        try:
            tally.choose()
        except ValueError as error:
            raise pytest.UsageError(f"{HEADING}: {error}") from None


class Tally:
    """Gives the laws their backends, and counts what ran."""

    def __init__(self, config: pytest.Config):
        self.config = config
        self.backends: list[Backend] = []  # the one asked for, in each of its dtypes
        self.ran: set[str] = set()
        self.failed: set[str] = set()
        self.snippets: dict[str, str] = {}  # test: the lines that see its failure again
        self.not_run: dict[str, list[tuple[str, str]]] = {}  # law: why, in which dtype

    def choose(self) -> None:
        """Make the backends; ValueError if one cannot be made, or declares what is no law."""
        if find_spec("hypothesis") is None:
            raise ValueError(NO_HYPOTHESIS)
        from tinymistral.conformance.law import all_laws
        from tinymistral.discovery import get_backend

        first = get_backend(self.config.getoption("--tinymistral-backend"))
        self.backends = [get_backend(first.name, dtype) for dtype in first.dtypes]
        known = {test.tinymistral_law.name for test in all_laws()}
        in_one_dtype = {f"{name}[{dtype}]" for name in known for dtype in first.dtypes}
        unknown = sorted(set(first.unsupported) - known - in_one_dtype)
        if unknown:
            raise ValueError(
                f"backend {first.name!r} declares as unsupported what is no law: "
                f"{', '.join(unknown)}; the laws are {', '.join(sorted(known))}"
            )

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Hold a law against the backend in each of its dtypes."""
        law: Any = getattr(metafunc.function, "tinymistral_law", None)
        if law is None:
            return
        if not self.backends:
            try:
                self.choose()
            except ValueError as error:
                pytest.exit(f"{HEADING}: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
        parameters = []
        for backend in self.backends:
            reason = law.not_for(backend)
            marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
            parameters.append(pytest.param(backend, id=backend.dtype, marks=marks))
        metafunc.parametrize("backend", parameters)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a law that ran, failed, or did not run."""
        name, _, dtype = report.nodeid.rpartition("::test_")[2].partition("[")
        if "tinymistral_law" not in report.keywords:
            return
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            why = (reason.removeprefix("Skipped: "), dtype.rstrip("]"))
            self.not_run.setdefault(name, []).append(why)
        elif report.when == "call":
            self.ran.add(name)
            if report.failed:
                self.failed.add(name)
                text = "\n".join(line[1:].strip() for line in report.longreprtext.splitlines())
                if found := re.search(rf"{BEFORE_SNIPPET}\n+(.*?\n)\n", text + "\n\n", re.DOTALL):
                    self.snippets[f"{name}[{dtype}"] = found[1]

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Mark the tests that are laws, for reports to tell them by."""
        if hasattr(getattr(item, "function", None), "tinymistral_law"):
            item.keywords["tinymistral_law"] = True

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say how many laws ran, against what, and why the others did not."""
        if not self.ran and not self.not_run:
            return
        from tinymistral.conformance.law import all_laws

        backend = self.backends[0]
        of = len({test.tinymistral_law.name for test in all_laws()})
        terminalreporter.section(HEADING)
        terminalreporter.write_line(
            f"backend {backend.name} on {backend.device()}, in {', '.join(backend.dtypes)}"
        )
        terminalreporter.write_line(f"{len(self.ran)} of {of} laws ran, {len(self.failed)} failed")
        for name, lines in self.snippets.items():
            terminalreporter.write_line(f"\nto see {name} fail again:\n\n{lines}")
        for name, why in sorted(self.not_run.items()):
            for reason in dict.fromkeys(reason for reason, _ in why):
                dtypes = ", ".join(dtype for each, dtype in why if each == reason)
                terminalreporter.write_line(f"not in {dtypes}: {name}: {reason}")
