"""What all evidence says of itself, of whatever kind its parts are."""

from __future__ import annotations

from collections.abc import Mapping

from tinymistral.golden.compare.verdicts import DIFFERS, Part


class Judged:
    """Parts by name, in the order of computation, each compared with what is expected."""

    parts: Mapping[str, Part]

    @property
    def differs(self) -> bool:
        """Tell whether it is not what the suite expects."""
        return any(part.verdict == DIFFERS for part in self.parts.values())

    @property
    def first(self) -> int:
        """The place of the first part that differs."""
        verdicts = [part.verdict for part in self.parts.values()]
        return verdicts.index(DIFFERS) if self.differs else len(verdicts)
