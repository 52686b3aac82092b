"""What pytest needs for the laws: which backend they are held against, and what came of it.

Any pytest where tinymistral is installed loads this module, so it imports little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tinymistral.backend import Backend

HEADING = "tinymistral conformance"


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


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    examples = config.getoption("--tinymistral-examples")
    if examples is not None:
        if examples < 1:
            raise pytest.UsageError(f"--tinymistral-examples: expected at least 1, got {examples}")
        from hypothesis import settings

        name = f"tinymistral {examples}"
        settings.register_profile(name, max_examples=examples)
        settings.load_profile(name)
    config.pluginmanager.register(Tally(config), "tinymistral-tally")


class Tally:
    """Gives the laws their backends, and counts what ran."""

    def __init__(self, config: pytest.Config):
        self.config = config
        self._backends: list[Backend] = []
        self.ran: set[str] = set()
        self.failed: set[str] = set()
        self.not_run: dict[str, list[tuple[str, str]]] = {}  # law: why, in which dtype

    @property
    def backends(self) -> list[Backend]:
        """The backend asked for, in each of its dtypes."""
        if not self._backends:
            from tinymistral.discovery import get_backend

            try:
                first = get_backend(self.config.getoption("--tinymistral-backend"))
                self._backends = [get_backend(first.name, dtype) for dtype in first.dtypes]
                self.check_declared()
            except ValueError as error:
                pytest.exit(f"{HEADING}: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
        return self._backends

    def check_declared(self) -> None:
        """Raise a ValueError if what a backend declares as unsupported is no law."""
        from tinymistral.conformance.law import all_laws

        backend, known = self._backends[0], {test.law.name for test in all_laws()}
        unknown = sorted(set(backend.unsupported) - known)
        if unknown:
            raise ValueError(
                f"backend {backend.name!r} declares as unsupported what is no law: "
                f"{', '.join(unknown)}; the laws are {', '.join(sorted(known))}"
            )

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Hold a law against the backend in each of its dtypes."""
        law: Any = getattr(metafunc.function, "law", None)
        if law is None:
            return
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

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Mark the tests that are laws, for reports to tell them by."""
        if hasattr(getattr(item, "function", None), "law"):
            item.keywords["tinymistral_law"] = True

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say how many laws ran, against what, and why the others did not."""
        if not self.ran and not self.not_run:
            return
        from tinymistral.conformance.law import all_laws

        backend = self.backends[0]
        of = len({test.law.name for test in all_laws()})
        terminalreporter.section(HEADING)
        terminalreporter.write_line(
            f"backend {backend.name} on {backend.device()}, in {', '.join(backend.dtypes)}"
        )
        terminalreporter.write_line(f"{len(self.ran)} of {of} laws ran, {len(self.failed)} failed")
        for name, why in sorted(self.not_run.items()):
            for reason in dict.fromkeys(reason for reason, _ in why):
                dtypes = ", ".join(dtype for each, dtype in why if each == reason)
                terminalreporter.write_line(f"not in {dtypes}: {name}: {reason}")
