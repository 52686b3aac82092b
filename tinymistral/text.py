"""Shortening text, so that an error message is one line of bounded length."""


def shorten(text: str, longest: int) -> str:
    """Return the text, cut and ended with "..." where it is longer than `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def one_line(value: object, longest: int = 300) -> str:
    """Return the text of a value, from a plugin or a file, as one short line that can be printed.

    Characters that cannot be printed and runs of white space become one space each.
    """
    words = "".join(c if c.isprintable() else " " for c in str(value)).split()
    return shorten(" ".join(words), longest)
