"""Imports go one way: no module of tinymistral imports one of a later layer, and none in a circle.

Read from the source of all modules. Imports inside functions count as those at the top of a file
do; those under `if TYPE_CHECKING:` do not, since they are never run. Imports by a computed name
(`import_module`) are not looked at.
"""

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import tinymistral
from tinymistral import _HOMES

# From the lowest up; a module may import those of its own line and of the lines before it. A name
# stands for a module, or for a package with all its modules.
LAYERS = """
    tinymistral text renamed threads            the names of the package; text in messages
    files                                       files to JSON and tensors, the hub's cache
    settings                                    what files may say beside what is honoured
    config
    streaming chat added_tokens tokenizer tokenizer_json tokenizer_model
    sampling
    checkpoint                                  files to a configuration and its tensors, and back
    backend operations numpy_backend discovery
    cache
    tap
    model                                       the forward pass
    inputs outputs losses                       what a call is given, and what it returns
    pretrained                                  what all models share
    generation
    heads                                       the models that users open
    scoring demo
    page                                        the walkthrough's page, with a model in it
    mistakes
    conformance
    golden
    training
    bench                                       speed, beside other programs
    commands cli __main__
"""


def layers() -> dict[str, int]:
    """Return the number of the layer of each name in LAYERS."""
    lines = [line.strip().partition("  ")[0].split() for line in LAYERS.strip().splitlines()]
    return {name: number for number, names in enumerate(lines) for name in names}


def layer_of(module: str) -> int | None:
    """Return the number of a module's layer: its own, or that of a package that it is in."""
    numbers, name = layers(), module.removeprefix("tinymistral.")
    while name and name not in numbers:
        name = name.rpartition(".")[0]
    return numbers.get(name)


def modules_in(folder: Path) -> dict[str, Path]:
    """Return the path of each module in the package of this folder, by its full name."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imported_names(node: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for all that a tree imports; the name is empty for a module alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.orelse:
            yield from imported_names(child, package)
        return
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        module = resolve_name("." * node.level + (node.module or ""), package)
        yield from ((module, alias.name) for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported_names(child, package)


def imports_of(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return which of the modules each of them imports."""
    imports: dict[str, set[str]] = {}
    for importer, path in modules.items():
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        imports[importer] = set()
        for module, name in imported_names(ast.parse(path.read_text("utf-8")), package):
            if module == "tinymistral" and name in _HOMES:  # imported when it is first used
                module = f"tinymistral.{_HOMES[name]}"
            elif f"{module}.{name}" in modules:
                module = f"{module}.{name}"
            imports[importer].add(module)
            # The packages it is in are imported too; those of the importer are there already.
            while module := module.rpartition(".")[0]:
                if not importer.startswith(f"{module}."):
                    imports[importer].add(module)
        imports[importer] &= modules.keys() - {importer}
    return imports


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """Return modules of which each imports the next, and the last the first; [] if none do."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for imported in sorted(imports[module]):
            if circle := search(imported, [*path, module]):
                return circle
        done.add(module)
        return []

    for module in sorted(imports):
        if circle := search(module, []):
            return circle
    return []


def problems_of(folder: Path) -> list[str]:
    """Return what is wrong with the imports in a package named tinymistral, a line each."""
    imports = imports_of(modules_in(folder))
    problems = [
        f"{module} is in no layer; add it to LAYERS in tests/test_imports.py, "
        "in a line below those that it imports"
        for module in imports
        if layer_of(module) is None
    ]
    problems += [
        f"{importer} imports {module}, which is in a later layer of LAYERS"
        for importer in imports
        for module in sorted(imports[importer])
        if (layer_of(importer) or 0) < (layer_of(module) or 0)
    ]
    if circle := circle_in(imports):
        problems.append(f"a circle of imports: {' -> '.join([*circle, circle[0]])}")
    return problems


def test_every_module_imports_only_its_own_layer_and_lower_ones() -> None:
    problems = problems_of(Path(tinymistral.__file__).parent)
    assert not problems, "\n".join(["", *problems])


def test_the_core_imports_no_plugin() -> None:
    for path in modules_in(Path(tinymistral.__file__).parent).values():
        imported = {m for m, _ in imported_names(ast.parse(path.read_text("utf-8")), "tinymistral")}
        assert not [module for module in imported if module.startswith("tinymistral_")], path


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"files.py": "from tinymistral.config import MistralConfig"}, "config, which is in a lat"),
        ({"files.py": "from tinymistral import MistralConfig"}, "config, which is in a later"),
        ({"files.py": "from tinymistral import config"}, "config, which is in a later"),
        ({"files.py": "import tinymistral.config as c"}, "config, which is in a later"),
        ({"files.py": "from . import config"}, "config, which is in a later"),
        ({"files.py": "def f():\n    from .config import x"}, "config, which is in a later"),
        ({"files.py": "class C:\n    import tinymistral.config"}, "which is in a lat"),
        ({"files.py": "if TYPE_CHECKING:\n    x = 1\nelse:\n    from . import config"}, "in a lat"),
        ({"config.py": "from . import cache", "cache.py": ""}, "cache, which is in a later layer"),
        ({"checkpoint/a.py": "", "checkpoint/__init__.py": "from . import b",
          "checkpoint/b.py": "from . import a\nfrom tinymistral.checkpoint import x"},
         "circle of imports: tinymistral.checkpoint -> tinymistral.checkpoint.b -> tinymistral.c"),
        ({"chat.py": "from . import tokenizer", "tokenizer.py": "def f():\n    from . import chat"},
         "circle of imports: tinymistral.chat -> tinymistral.tokenizer -> tinymistral.chat"),
        ({"brand_new.py": ""}, "tinymistral.brand_new is in no layer; add it to LAYERS"),
    ],
)  # fmt: skip
def test_a_wrong_import_is_found(tmp_path: Path, files: dict[str, str], says: str) -> None:
    problems = problems_of(package_of(tmp_path, {"__init__.py": "", "config.py": "", **files}))
    assert len(problems) == 1
    assert says in problems[0]


@pytest.mark.parametrize(
    "files",
    [
        {"config.py": "import os\nfrom tinymistral.files import x\nimport tinymistral.files.hub"},
        {"files/__init__.py": "if TYPE_CHECKING:\n    from tinymistral.config import x"},
        {"files/hub.py": "from .a import x", "files/a.py": "from tinymistral.files import y"},
        {"files/hub.py": "from tinymistral import __version__"},
    ],
)
def test_what_is_right_passes(tmp_path: Path, files: dict[str, str]) -> None:
    names = ("__init__.py", "config.py", "files/__init__.py", "files/hub.py")
    assert problems_of(package_of(tmp_path, dict.fromkeys(names, "") | files)) == []


def package_of(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "tinymistral"
    for name, source in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source, "utf-8")
    return package
