"""Finding the suite that a subcommand of `tinymistral golden` was given."""

from __future__ import annotations

from pathlib import Path

from tinymistral.golden.suite import V1, Suite, read_suite


def find_suite(name: str) -> Suite:
    """Open v1, which comes with tinymistral, or a folder; ValueError if it is neither."""
    if name == "v1":
        return read_suite(V1)
    if not (Path(name) / "manifest.json").is_file():
        raise ValueError(
            f"there is no suite {name!r:.200}; expected v1, or a folder with a manifest.json"
        )
    return read_suite(name)
