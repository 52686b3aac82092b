"""Text in messages, in tables and from files: bounded, aligned, and known to be Unicode."""

from collections.abc import Callable, Iterable, Sequence


def shorten(text: str, longest: int) -> str:
    """Return the text, cut and ended with "..." where it is longer than `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def one_line(value: object, longest: int = 300) -> str:
    """Return the text of a value, from a plugin or a file, as one short line that can be printed.

    Characters that cannot be printed and runs of white space become one space each.
    """
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return shorten(" ".join(text.split()), longest)


def short(value: object) -> str:
    """Return a wrong value as Python writes it, on one short line, for an error message."""
    return one_line(repr(value), 60)


def shown(value: object) -> str:
    """Return a wrong argument as `short` does, and its type."""
    return f"{short(value)} ({type(value).__name__})"


def quoted(name: object) -> str:
    """Return a name that a file contains, in quotes and shortened."""
    return f"'{shorten(str(name), 120)}'"


def listed(items: Iterable[str], limit: int = 8) -> str:
    """Return the first `limit` items and the number of the others: `a, b and 3 more`."""
    items = list(items)
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with a known name that begins as a wrong one or is like it, or ""."""
    from difflib import get_close_matches  # not for --help, which does not wait for it

    known = list(known)
    near = [n for n in known if name and n.startswith(name)] or get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def table(
    rows: Sequence[Sequence[str]], justify: Callable[[str, int], str] = str.ljust
) -> list[str]:
    """Return a line for each row, its cells in columns: the first on the left, others justified."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(justify, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def check_text(text: str) -> str:
    """Return the text; raise a ValueError unless it is a string without lone surrogates."""
    if not isinstance(text, str):
        raise ValueError(f"a text is {shown(text)}, expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"letter {error.start} of a text is the lone surrogate {text[error.start]!r}, "
            "expected Unicode text; read the file with the encoding it has"
        ) from None
    return text


def decode_file(content: bytes, source: str) -> str:
    """Return the text of a file in UTF-8, without byte order mark, with plain line ends.

    ValueError, which names the source, if it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        byte = f"its byte {error.start} is {content[error.start]:#04x}"
        raise ValueError(f"{source} is not UTF-8: {byte}; save it as UTF-8") from None
