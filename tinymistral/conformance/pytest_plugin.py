"""The pytest plugin of the conformance suite: its options, and the summary at the end.

Every pytest run where tinymistral is installed loads this module, so it imports little.
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
    group = parser.getgroup("tinymistral", "tinymistral: conformance of a backend")
    group.addoption(
        "--tinymistral-backend",
        metavar="NAME",
        help="the backend that `--pyargs tinymistral.conformance` tests "
        "(default: the environment variable TINYMISTRAL_BACKEND, else numpy)",
    )
    group.addoption(
        "--tinymistral-examples",
        metavar="N",
        type=int,
        help="cases of each law in each dtype (default: as many as hypothesis draws)",
    )
    group.addoption(
        "--tinymistral-small",
        action="store_true",
        help="draw only shapes up to 33 and leave out the laws at real sizes, "
        "for a backend that needs minutes for large ones",
    )


@pytest.hookimpl(trylast=True)  # after hypothesis has loaded the profile of its option
def pytest_configure(config: pytest.Config) -> None:
    """Apply the options; end with a usage error if the backend cannot be tested."""
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
    """Gives the laws their backends, and counts which laws ran."""

    def __init__(self, config: pytest.Config):
        self.config = config
        self.backends: list[Backend] = []  # the chosen one, in each of its dtypes
        self.ran: set[str] = set()
        self.failed: set[str] = set()
        self.snippets: dict[str, str] = {}  # test: the lines that reproduce its failure
        self.not_run: dict[str, list[tuple[str, str]]] = {}  # law: pairs of reason and dtype

    def choose(self) -> None:
        """Make the backends; ValueError if one cannot be made, or `unsupported` names no law."""
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
        """Run a law on the backend in each of its dtypes."""
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
        """Mark the tests that are laws, so that reports can be recognized."""
        if hasattr(getattr(item, "function", None), "tinymistral_law"):
            item.keywords["tinymistral_law"] = True

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print how many laws ran, on which backend, and why the others did not."""
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
            terminalreporter.write_line(f"\nto reproduce the failure of {name}:\n\n{lines}")
        for name, why in sorted(self.not_run.items()):
            for reason in dict.fromkeys(reason for reason, _ in why):
                dtypes = ", ".join(dtype for each, dtype in why if each == reason)
                terminalreporter.write_line(f"not in {dtypes}: {name}: {reason}")
