"""Which backends are installed, how one is chosen, and the errors for those that cannot be."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_plugins import GOOD, Plugins, plugins_fixture  # noqa: F401

import tinymistral
from tinymistral import (
    Backend,
    BackendUnavailable,
    get_backend,
    installed_backends,
    load_backend,
)
from tinymistral.discovery import InstalledBackend, details_of
from tinymistral.numpy_backend import NumpyBackend
from tinymistral.operations import PlainBackend

REPOSITORY = Path(tinymistral.__file__).parents[1]
HEAD = GOOD.split("    dtypes")[
    0
]  # a class that is good so far, and that what follows goes on with


def ours(*names: str) -> list[InstalledBackend]:
    """The listed backends with these names; others may be installed where the tests run."""
    return [installed for installed in installed_backends() if installed.name in names]


def refusal(name: str, dtype: str | None = None) -> str:
    with pytest.raises(BackendUnavailable) as caught:
        get_backend(name, dtype)
    text = str(caught.value)
    assert text == f"{caught.value.reason}; {caught.value.remedy}"
    assert text.isprintable()  # one line, no escape codes
    return text


# What is installed


def test_numpy_and_plain_are_built_in_and_come_first(plugins: Plugins) -> None:
    plugins.install("aardvark", GOOD, "aardvark = aardvark:Good")
    for built_in, kind in zip(installed_backends(), (NumpyBackend, PlainBackend), strict=False):
        assert (built_in.name, built_in.distribution) == (kind.name, "tinymistral")
        assert built_in.version == tinymistral.__version__
        assert type(get_backend(kind.name)) is load_backend(kind.name) is kind


def test_the_others_are_listed_by_name_with_where_they_come_from(plugins: Plugins) -> None:
    plugins.install("some_thing", GOOD, "good = some_thing:Good", "best = some_thing:Best")
    assert [(i.name, i.distribution, i.version, i.entry_point) for i in ours("good", "best")] == [
        ("best", "some-thing", "1.2", "some_thing:Best"),
        ("good", "some-thing", "1.2", "some_thing:Good"),
    ]


def test_nothing_is_imported_before_it_is_asked_for(plugins: Plugins) -> None:
    plugins.install("bomb", "raise RuntimeError('bang')", "bomb = bomb:Bomb")
    assert [installed.distribution for installed in ours("bomb")] == ["bomb"]
    assert type(get_backend()) is type(get_backend("numpy")) is NumpyBackend
    assert "bomb" not in sys.modules


def test_entry_points_of_other_groups_are_ignored(plugins: Plugins) -> None:
    plugins.install("thing", GOOD, "good = thing:Good", "[console_scripts]", "other = thing:main")
    assert [installed.name for installed in ours("good", "other")] == ["good"]


def test_a_distribution_that_is_on_the_path_twice_counts_once(plugins: Plugins) -> None:
    plugins.install("some_thing", GOOD, "good = some_thing:Good")
    again = plugins.install("some_thing", GOOD, "good = some_thing:Good")
    metadata = again / "some_thing-1.2.dist-info" / "METADATA"
    metadata.write_text(
        "Name: Some_Thing\nVersion: 1.3\n", "utf-8"
    )  # the same name, as pip sees it
    # The one that is first on the path is the one that Python imports.
    assert [(i.distribution, i.version) for i in ours("good")] == [("Some_Thing", "1.3")]
    assert get_backend("good").name == "good"


def test_broken_metadata_of_another_distribution_breaks_nothing(plugins: Plugins) -> None:
    plugins.install("thing", GOOD, "good = thing:Good")
    for number, content in enumerate((b"[a]\nno equals sign\n", b"\xff\xfe", b"[tinymistral.")):
        other = f"other_{number}"
        info = plugins.install(other, "", "") / f"{other}-1.2.dist-info"
        (info / "entry_points.txt").write_bytes(content)
    info = plugins.install("nameless", GOOD, "other = nameless:Good") / "nameless-1.2.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\n", "utf-8")
    info = plugins.install("bare", GOOD, "bare = bare:Good") / "bare-1.2.dist-info"
    (info / "METADATA").unlink()
    assert get_backend("good").name == "good"
    assert [(i.name, i.distribution) for i in ours("bare", "good", "other")] == [
        ("bare", "unnamed"),
        ("good", "thing"),
        ("other", "unnamed"),
    ]


def test_numpy_is_chosen_without_a_search() -> None:
    code = """
import sys
sys.modules["importlib.metadata"] = None  # an import of it would fail
from tinymistral import get_backend, load_backend
from tinymistral.cli import main
print(get_backend().name, get_backend("numpy").name, load_backend("numpy").name, main(["--help"]))
"""
    env = {"PYTHONPATH": str(REPOSITORY)}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, text=True)
    assert told.stdout.splitlines()[-1:] == ["numpy numpy numpy 0"], told.stderr


# How one is chosen


def test_the_argument_is_preferred_to_the_environment_and_that_to_numpy(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.install("thing", GOOD, "good = thing:Good")
    assert type(get_backend()) is NumpyBackend
    assert type(get_backend("good")) is load_backend("good") is sys.modules["thing"].Good
    monkeypatch.setenv("TINYMISTRAL_BACKEND", "good")
    assert get_backend().name == "good"
    assert type(get_backend("numpy")) is NumpyBackend
    monkeypatch.setenv("TINYMISTRAL_BACKEND", "")
    assert type(get_backend()) is NumpyBackend


def test_a_backend_is_made_in_its_default_dtype_or_the_one_given(plugins: Plugins) -> None:
    plugins.install("thing", GOOD, "good = thing:Good")
    assert get_backend("good").dtype == "float64"  # the first of its dtypes
    assert get_backend("good", "float32").dtype == "float32"
    with pytest.raises(ValueError, match=r"'float16' .* 'good' supports; .* float64, float32$"):
        get_backend("good", "float16")


def test_a_backend_that_was_made_already_is_returned() -> None:
    made = NumpyBackend("float64")
    assert get_backend(made) is get_backend(made, "float64") is made
    with pytest.raises(ValueError, match="leave one of the two out"):
        get_backend(made, "float32")


def test_a_model_computes_on_it(plugins: Plugins) -> None:
    plugins.install("thing", GOOD, "good = thing:Good")
    config = tinymistral.MistralConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = tinymistral.MistralModel(config, backend="good")
    assert model([[1, 2]]).last_hidden_state.dtype == np.float64


@pytest.mark.parametrize("asked_by", ["backend", "TINYMISTRAL_BACKEND"])
def test_an_unknown_name_lists_the_installed(
    asked_by: str, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.install("thing", "", "good = thing:Good", "best = thing:Best")
    monkeypatch.setenv("TINYMISTRAL_BACKEND", "goood")
    with pytest.raises(ValueError, match=rf"^{asked_by}: 'goood' is not installed; ") as caught:
        get_backend("goood" if asked_by == "backend" else None)
    listed = str(caught.value).split("expected one of: ")[1].split("; ")
    assert listed[1] == "or install the distribution that provides it"
    assert [name for name in listed[0].split(", ") if name in ("numpy", "best", "good")] == [
        *("numpy", "best", "good")
    ]


def test_the_error_for_a_wrong_name_is_of_bounded_length() -> None:
    for name in ("a\n" * 10_000, NumpyBackend, 5):
        with pytest.raises(ValueError, match=r"^backend: .+ is not installed; ") as caught:
            get_backend(name)
        assert len(str(caught.value)) < 1000


# The error for a broken plugin: its name, its distribution, what is wrong


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise OSError('libfast.so.1: no such file')", "OSError: libfast.so.1: no such file"),
        ("1 +", "SyntaxError: invalid syntax (thing.py, line 1)"),
        ("raise SystemExit('go away')", "SystemExit: go away"),
        ("raise RuntimeError", "RuntimeError"),
        ("", "AttributeError: module 'thing' has no attribute 'Good'"),
    ],
)
@pytest.mark.parametrize("choose", [get_backend, load_backend])
def test_an_import_that_fails(choose, source: str, reason: str, plugins: Plugins) -> None:
    plugins.install("thing", source, "good = thing:Good")
    with pytest.raises(BackendUnavailable) as caught:
        choose("good")
    assert str(caught.value) == (
        f"backend: 'good' of thing 1.2 cannot run: importing it fails: {reason}; "
        "reinstall thing, or uninstall it"
    )


def test_a_backend_that_fails_is_not_replaced_by_another(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.install("thing", "import no_such_module", "good = thing:Good")
    monkeypatch.setenv("TINYMISTRAL_BACKEND", "good")
    with pytest.raises(BackendUnavailable, match=r"^TINYMISTRAL_BACKEND: 'good' of thing 1\.2 "):
        get_backend()


def test_a_plugin_can_say_itself_why_it_cannot_be_imported(plugins: Plugins) -> None:
    source = """
from tinymistral import BackendUnavailable
raise BackendUnavailable("there is no abacus", "buy one")
"""
    plugins.install("thing", source, "good = thing:Good")
    assert refusal("good") == (
        "backend: 'good' of thing 1.2 cannot run: there is no abacus; buy one"
    )


def test_ctrl_c_during_the_import_is_not_an_error_of_the_plugin(plugins: Plugins) -> None:
    plugins.install("thing", "raise KeyboardInterrupt", "good = thing:Good")
    with pytest.raises(KeyboardInterrupt):
        get_backend("good")


@pytest.mark.parametrize(
    ("entry_point", "reason"),
    [
        ("thing", "its entry point thing does not read module:Class"),
        ("thing:Good and more", "its entry point thing:Good and more does not read module:Class"),
        ("thing:NumpyBackend", "its class has the name 'numpy'"),
        ("thing:number", "its entry point thing:number is no subclass of tinymistral.Backend"),
        ("thing:made", "its entry point thing:made is no subclass of tinymistral.Backend"),
        ("thing:Other", "its entry point thing:Other is no subclass of tinymistral.Backend"),
    ],
)
def test_an_entry_point_that_is_not_a_backend(
    entry_point: str, reason: str, plugins: Plugins
) -> None:
    source = f"{GOOD}\nnumber = 3\nmade = Good()\nclass Other: pass\n"
    plugins.install("thing", source, f"good = {entry_point}")
    assert f"cannot run: {reason}; reinstall thing, or" in refusal("good")


@pytest.mark.parametrize(
    "entry_point", ["thing:Home.Good", "thing : Home.Good", "thing:Home.Good [gpu]"]
)
def test_an_entry_point_may_have_any_form_that_packaging_allows(
    entry_point: str, plugins: Plugins
) -> None:
    plugins.install("thing", f"{GOOD}\nclass Home: Good = Good\n", f"good = {entry_point}")
    assert get_backend("good").name == "good"


@pytest.mark.parametrize(
    "dtypes", ["()", '["float32"]', '"float32"', '("float32", "int8")', "(4,)"]
)
def test_dtypes_that_are_not_valid(dtypes: str, plugins: Plugins) -> None:
    plugins.install("thing", f"{HEAD}    dtypes = {dtypes}", "good = thing:Good")
    value = repr(eval(dtypes))
    expected = "expected a tuple of some of float32, float64, float16, bfloat16"
    assert f"its dtypes are {value}; {expected}; reinstall" in refusal("good")


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("chunk = 0", "its chunk is 0; expected a number of tokens, at least 1"),
        ("chunk = 2.0", "its chunk is 2.0; expected a number of tokens, at least 1"),
        ("head_dims = 64", "its head_dims is 64; expected None, or some even numbers"),
        ("head_dims = (64, 3)", "its head_dims is (64, 3); expected None, or some even numbers"),
        ("head_dims = ()", "its head_dims is (); expected None, or some even numbers"),
        ("unsupported = ['a']", "its unsupported is ['a']; expected a dict from the name of a law"),
        ("unsupported = {'a': 1}", "its unsupported is {'a': 1}; expected a dict from the name"),
        ("narrow_weights = 1", "its narrow_weights is 1; expected True or False"),
        ("has_attention_weights = None", "its has_attention_weights is None; expected True or"),
    ],
)
def test_declared_data_of_a_wrong_type(declared: str, expected: str, plugins: Plugins) -> None:
    plugins.install("thing", f"{GOOD}\n    {declared}\n", "good = thing:Good")
    assert f"cannot run: {expected}" in refusal("good")


def test_methods_that_are_missing_are_listed(plugins: Plugins) -> None:
    source = """
from tinymistral import Backend
from tinymistral.numpy_backend import NumpyBackend

class Good(Backend):
    name, dtypes = "good", ("float32",)
for method in Backend.__abstractmethods__ - {"silu_mul", "rope"}:
    setattr(Good, method, getattr(NumpyBackend, method))
Good.__abstractmethods__ = frozenset({"silu_mul", "rope"})
"""
    plugins.install("thing", source, "good = thing:Good")
    assert "its class lacks rope, silu_mul; reinstall" in refusal("good")


def test_a_class_without_a_name_or_dtypes(plugins: Plugins) -> None:
    source = "from tinymistral import Backend\nclass Good(Backend): pass"
    plugins.install("thing", source, "good = thing:Good")
    assert "its class has the name None; reinstall" in refusal("good")


def test_two_distributions_with_one_name(plugins: Plugins) -> None:
    plugins.install("thing", GOOD, "good = thing:Good")
    plugins.install("other", GOOD, "good = other:Good")
    assert [installed.distribution for installed in ours("good")] == ["other", "thing"]
    told = refusal("good")
    assert "several backends have this name, those of other 1.2 and thing 1.2; uninstall" in told
    assert "thing" not in sys.modules
    assert "other" not in sys.modules


def test_nothing_replaces_numpy(plugins: Plugins) -> None:
    source = GOOD.replace('"good"', '"numpy"')
    plugins.install("thing", source, "numpy = thing:Good")
    assert [i.distribution for i in ours("numpy")] == ["tinymistral", "thing"]
    assert type(get_backend()) is type(get_backend("numpy")) is load_backend("numpy")
    assert load_backend("numpy") is NumpyBackend
    assert "thing" not in sys.modules


# ... and of one that cannot run here


def test_the_backend_says_why_it_cannot_run_here_and_what_to_do(plugins: Plugins) -> None:
    source = f"""{HEAD}
    @classmethod
    def device(cls):
        from tinymistral import BackendUnavailable
        raise BackendUnavailable("there is\\nno abacus", "buy\\ta \\x1b[1mnew\\x1b[0m one")
    def __init__(self, dtype=None):
        raise AssertionError("made before it was asked")
"""
    plugins.install("thing", source, "good = thing:Good")
    assert refusal("good") == (
        "backend: 'good' of thing 1.2 cannot run: there is no abacus; buy a [1mnew [0m one"
    )
    assert load_backend("good") is sys.modules["thing"].Good


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise OSError(5, 'driver asleep')", "device() fails: OSError: [Errno 5] driver asleep"),
        ("raise SystemExit(3)", "device() fails: SystemExit: 3"),
        ("return None", "device() returns None; expected a name"),
        ("return ' '", "device() returns ' '; expected a name"),
    ],
)
def test_a_device_that_fails(body: str, reason: str, plugins: Plugins) -> None:
    source = f"{HEAD}\n    @classmethod\n    def device(cls):\n        {body}\n"
    plugins.install("thing", source, "good = thing:Good")
    assert f"'good' of thing 1.2 cannot run: {reason}; reinstall thing, or" in refusal("good")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise OSError(5, 'asleep')", "details() fails: OSError: [Errno 5] asleep"),
        ("return None", "details() returns None; expected a text"),
    ],
)
def test_details_that_fail(body: str, reason: str, plugins: Plugins) -> None:
    source = f"{HEAD}\n    @classmethod\n    def details(cls):\n        {body}\n"
    plugins.install("thing", source, "good = thing:Good")
    installed = next(one for one in installed_backends() if one.name == "good")
    with pytest.raises(BackendUnavailable, match=re.escape(reason)):
        details_of(load_backend("good"), installed)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise TypeError('no beads')", "making it fails: TypeError: no beads; reinstall"),
        ("raise ValueError('no beads')", "making it fails: ValueError: no beads; reinstall"),
        ("super().__init__('float16')", "its dtype is float16 where float32 was asked for"),
        ("pass", "its dtype is None where float32 was asked for"),
    ],
)
def test_a_constructor_that_fails(body: str, reason: str, plugins: Plugins) -> None:
    source = f"{HEAD}\n    def __init__(self, dtype=None):\n        {body}\n"
    plugins.install("thing", source, "good = thing:Good")
    assert f"'good' of thing 1.2 cannot run: {reason}" in refusal("good", "float32")


def test_messages_of_a_plugin_are_shortened(plugins: Plugins) -> None:
    plugins.install("thing", "raise ImportError('so long\\n' * 10_000)", "good = thing:Good")
    told = refusal("good")
    assert "ImportError: so long so long so" in told
    assert len(told) < 500
    assert told.endswith("...; reinstall thing, or uninstall it")


def test_the_error_that_was_raised_is_its_cause(plugins: Plugins) -> None:
    """For `python -X dev`, which shows tracebacks."""
    plugins.install("thing", "raise ImportError('the root')", "good = thing:Good")
    with pytest.raises(BackendUnavailable) as caught:
        get_backend("good")
    causes = [caught.value.__cause__, caught.value.__cause__.__cause__]
    assert "the root" in [str(cause) for cause in causes]


def test_the_error_is_a_value_error_that_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(BackendUnavailable("there is\nno abacus", "buy one")))
    assert isinstance(error, ValueError)
    assert (error.reason, error.remedy) == ("there is\nno abacus", "buy one")
    assert str(error) == "there is no abacus; buy one"


def test_a_backend_that_declares_nothing_has_the_defaults() -> None:
    assert Backend.device() == "CPU"
    assert Backend.narrow_weights is True
    assert dict(Backend.unsupported) == {}
