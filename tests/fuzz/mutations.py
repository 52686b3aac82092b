"""Good files with a few changes: the one engine of the tests in this folder.

A file is parsed to a tree: dicts and lists in any depth, and in them texts, bytes, numbers. A few
places of the tree are changed and a file is built of it again, with lengths and checksums that
fit, so that the changes get past the outermost checks. Some files are edited byte by byte as well.
"""

import copy
from typing import Any

from hypothesis import strategies as st

Tree = Any

NUMBERS = [0, 1, -1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400]
DEEP: list[Any] = []
for _ in range(200):  # the library's parser gives up at 128
    DEEP = [DEEP]
VALUES = st.sampled_from(
    [*NUMBERS, 0.5, 1e-320, 1e308, float("inf"), float("nan"), True, False, None, [], {}, DEEP]
)
TEXTS = st.sampled_from(
    ["", "0", "-1", "\n", "\x1b[31m", "\0", "\ud800", "..", "../x", "/", "x" * 5000, "__metadata__"]
)


@st.composite
def edited(draw: st.DrawFn, content: Any) -> Any:
    """Return bytes, or a text, a range of which is replaced: a cut, an insertion, a flip."""
    start = draw(st.integers(0, len(content)))
    length = draw(st.integers(0, 4) | st.integers(0, len(content)))
    if isinstance(content, str):
        inserted: Any = draw(TEXTS | st.text(max_size=3))
    else:
        inserted = draw(st.binary(max_size=4) | st.integers(0, 70_000).map(bytes))
    return content[:start] + inserted + content[start + length :]


def places(tree: Tree) -> list[tuple[Any, Any]]:
    """Return all items in a tree: each as a container and a key or an index."""
    if not isinstance(tree, dict | list):
        return []
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    return [found for key in keys for found in [(tree, key), *places(tree[key])]]


@st.composite
def place(draw: st.DrawFn, tree: Tree) -> tuple[Any, Any]:
    """Return an item of a tree as `places` does; its parts are as likely, whatever their size."""
    key = draw(st.sampled_from(list(tree) if isinstance(tree, dict) else range(len(tree))))
    found = [(tree, key), *places(tree[key])]
    return found[draw(st.integers(0, len(found) - 1))]


@st.composite
def changed(draw: st.DrawFn, tree: Tree, values: st.SearchStrategy[Any] = VALUES) -> Tree:
    """Return a copy of a tree with one to four changes; `values` are what else may stand in it."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 4))):
        if not tree:
            return tree
        holder, key = draw(place(tree))
        item = holder[key]
        kind = draw(st.sampled_from("value near near copy remove repeat rename".split()))
        if kind == "value":
            holder[key] = copy.deepcopy(draw(values))
        elif kind == "near" and isinstance(item, str | bytes):
            holder[key] = draw(edited(item))
        elif kind == "near" and isinstance(item, int):
            holder[key] = item + draw(st.integers(-2, 2) | st.sampled_from(NUMBERS))
        elif kind == "copy":
            other, other_key = draw(place(tree))
            holder[key] = copy.deepcopy(other[other_key])
        elif kind == "remove":
            del holder[key]
        elif kind == "repeat" and isinstance(holder, list):
            holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(item))
        elif isinstance(holder, dict):
            name = draw(edited(key) | TEXTS)
            holder[name] = holder.pop(key) if kind == "rename" else copy.deepcopy(item)
    return tree
