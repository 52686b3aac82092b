"""What is wrong with a checkpoint, on one line, whatever the checkpoint holds."""

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken or not the one the config describes.

    Its message is one line: line breaks and control codes, as a file may hold them, are escaped.
    """

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def shortened(text: str, limit: int) -> str:
    """Return the text, cut where it is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def quoted(text: object) -> str:
    """Return a name from a file as it stands in an error."""
    return f"'{shortened(str(text), 120)}'"


def listed(items: Iterable[str], limit: int = 8) -> str:
    """Return the first `limit` items and how many more there are: `a, b and 3 more`."""
    items = list(items)
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")
