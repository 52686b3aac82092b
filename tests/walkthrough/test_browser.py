"""The page in a browser: what it shows, compared with tinymistral in float64."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import PROGRAM, Browser, Page, browser

from tinymistral import DEMO, MistralConfig, MistralForCausalLM, MistralTokenizer, RollingCache
from tinymistral.page import write_page
from tinymistral.sampling import GenerationConfig, softmax

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs Chromium"),
]

TEXT = "The naïve 🦊 fox said to the King:\n "
STATE = "document.documentElement?.dataset.state"
ROWS = """[...document.querySelectorAll("#next li")].map((row) =>
    [row.dataset.id, row.dataset.before, row.dataset.after].map(Number))"""
SIZES = [(1280, 900), (390, 844)]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, DEMO, TEXT)
    return path


@pytest.fixture
def page(chromium: Browser, file: Path) -> Iterator[Page]:
    """Open the page, and see that it threw nothing and asked for nothing but itself."""
    opened = opened_page(chromium, file)
    yield opened
    assert_quiet(opened, file)


@pytest.fixture(scope="module")
def tokenizer() -> MistralTokenizer:
    return MistralTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def model() -> MistralForCausalLM:
    return MistralForCausalLM.from_pretrained(DEMO, dtype="float64")


def opened_page(chromium: Browser, file: Path) -> Page:
    page = chromium.page(file)
    page.wait_for(f"['idle', 'failed'].includes({STATE})")
    assert page.run(STATE) == "idle", page.run("document.getElementById('status').textContent")
    drawn(page)
    return page


def assert_quiet(page: Page, file: Path) -> None:
    assert page.events("Runtime.exceptionThrown", "Log.entryAdded") == []
    requests = page.events("Network.requestWillBeSent")
    assert {request["request"]["url"] for request in requests} == {file.as_uri()}


def set_value(page: Page, name: str, value: object) -> None:
    """Move a slider, check a box or type a text, as a user does."""
    page.run(f"""(() => {{
        const control = document.getElementById("{name}");
        if (control.type === "checkbox") control.checked = {json.dumps(value)};
        else control.value = {json.dumps(value)};
        control.dispatchEvent(new Event("input"));
        control.dispatchEvent(new Event("change"));
    }})()""")
    drawn(page)


def click(page: Page, name: str, times: int = 1) -> None:
    page.run(f"for (let n = 0; n < {times}; n++) document.getElementById('{name}').click()")


def drawn(page: Page) -> None:
    """Wait until all is computed and shown."""
    page.run("new Promise((done) => setTimeout(done, 200))")  # a text is read after 150 ms
    page.wait_for(f"{STATE} === 'idle'")
    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def ids_in(page: Page) -> list[int]:
    chips = page.run("[...document.querySelectorAll('.token')].map((chip) => chip.dataset.id)")
    return [int(chip) for chip in chips]


def logits_of(model: MistralForCausalLM, ids: list[int]) -> np.ndarray:
    """Return the logits (1, V) of the next token."""
    return np.asarray(model([ids]).logits[:, -1])


def assert_probabilities(page: Page, logits: np.ndarray, processed: np.ndarray) -> None:
    """Compare the likeliest tokens with those of logits (1, V), before and after the options."""
    before, after = softmax(logits)[0], softmax(processed)[0]
    rows = page.run(ROWS)
    assert [int(row[0]) for row in rows] == np.argsort(-before, kind="stable")[: len(rows)].tolist()
    for token, p, then in rows:
        np.testing.assert_allclose([p, then], [before[int(token)], after[int(token)]], atol=1e-12)


def plain(page: Page) -> None:
    """Set the options to those that change nothing."""
    for name, value in {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}.items():
        set_value(page, name, value)
    set_value(page, "repetition_penalty", 1)
    set_value(page, "greedy", False)


def test_ids_are_those_of_the_tokenizer(page: Page, tokenizer: MistralTokenizer) -> None:
    assert ids_in(page) == tokenizer.encode(TEXT)
    bytes_shown = page.run("document.querySelectorAll('.token.byte').length")
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(TEXT))
    assert bytes_shown == sum(piece.startswith("<0x") for piece in pieces) > 4
    for text in ("", "a", "  two  spaces ", "</s>", "日本語"):
        set_value(page, "prompt", text)
        assert ids_in(page) == tokenizer.encode(text)


def test_probabilities_are_those_of_the_model(page: Page, model: MistralForCausalLM) -> None:
    plain(page)
    logits = logits_of(model, ids_in(page))
    assert_probabilities(page, logits, logits)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5, "top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.1, "repetition_penalty": 1.5},
        {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.04},
    ],
)
def test_options_cut_what_they_cut_in_generate(
    options: dict[str, float], page: Page, model: MistralForCausalLM
) -> None:
    plain(page)
    for name, value in options.items():
        set_value(page, name, value)
    ids = ids_in(page)
    logits = logits_of(model, ids)
    settings = GenerationConfig(do_sample=True, **({"top_k": 0} | options))
    processed = settings.process(logits, [ids])
    assert_probabilities(page, logits, processed)
    left = int(np.count_nonzero(processed > -np.inf))
    assert f"leaves {left}" in page.run("document.getElementById('funnel').textContent")


def test_greedy_text_is_that_of_generate(page: Page, model: MistralForCausalLM) -> None:
    prompt = ids_in(page)
    set_value(page, "greedy", True)
    set_value(page, "speed", "Infinity")
    count = model.config.sliding_window + 40
    click(page, "play")
    page.wait_for(f"document.querySelectorAll('.token').length >= {len(prompt) + count} "
                  f"|| {STATE} === 'idle'")  # fmt: skip
    if page.run(STATE) == "playing":
        click(page, "play")
    drawn(page)
    given = ids_in(page)
    expected = model.generate([prompt], max_new_tokens=len(given) - len(prompt), do_sample=False)
    assert given == expected[0].tolist()


def test_the_ring_is_a_rolling_cache(page: Page, model: MistralForCausalLM) -> None:
    set_value(page, "window", 11)
    window = dataclasses.replace(model.config, sliding_window=11)
    cache = RollingCache(window, model.backend, rows=1, chunk=1)
    for _ in range(3):
        tokens = len(ids_in(page))
        for position in range(int(cache.count[0]), tokens):
            cache.admit(np.array([[position]], dtype=np.int64))
        shown = page.run("[...document.querySelectorAll('#ring [data-slot]')]"
                         ".map((slot) => Number(slot.dataset.position))")  # fmt: skip
        assert shown == cache.positions[0].tolist()
        click(page, "step", 4)
        drawn(page)


@pytest.fixture(scope="module")
def forgetful(
    model: MistralForCausalLM, tmp_path_factory: pytest.TempPathFactory
) -> MistralForCausalLM:
    """Return the model with a window of 6."""
    folder = tmp_path_factory.mktemp("forgetful")
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 6}), "utf-8")
    return MistralForCausalLM.from_pretrained(folder, dtype="float64")


def test_a_smaller_window_forgets(page: Page, forgetful: MistralForCausalLM) -> None:
    plain(page)
    set_value(page, "window", 6)
    ids = ids_in(page)
    logits = logits_of(forgetful, ids)
    assert_probabilities(page, logits, logits)
    outside = page.run("document.querySelectorAll('.token.gone, .token.lost').length")
    assert outside == len(ids) - 6
    set_value(page, "window", 2)
    lost = page.run("document.querySelectorAll('.token.lost').length")
    assert lost == len(ids) - 1 - forgetful.config.num_hidden_layers


@pytest.mark.parametrize("window", [None, 6])
def test_the_most_attended_tokens_are_those_of_the_model(
    window: int | None, page: Page, model: MistralForCausalLM, forgetful: MistralForCausalLM
) -> None:
    if window:
        set_value(page, "window", window)
    used = forgetful if window else model
    ids = ids_in(page)
    assert not window or len(ids) % window  # the oldest key is not in slot 0
    attentions = used([ids], output_attentions=True).attentions
    for layer, head in ((0, 0), (1, 3), (model.config.num_hidden_layers - 1, 5)):
        for name, n in (("layer", layer), ("head", head)):
            page.run(f"document.querySelector('#{name} input[value=\"{n}\"]').click()")
        drawn(page)
        weights = attentions[layer][0, head, -1]
        rows = page.run("""[...document.querySelectorAll("#most li")].map((row) =>
            [Number(row.dataset.position), row.lastChild.textContent])""")
        assert [row[0] for row in rows] == np.argsort(-weights, kind="stable")[:5].tolist()
        assert [row[1] for row in rows] == [f"{weights[row[0]]:.3f}" for row in rows]


def test_a_seed_gives_the_same_text_again(page: Page) -> None:
    texts = []
    for seed in (1, 2, 1):
        set_value(page, "seed", seed)
        click(page, "reset")
        drawn(page)
        click(page, "step", 20)
        drawn(page)
        texts.append(ids_in(page))
    assert texts[0] == texts[2] != texts[1]


def test_a_long_text_does_not_block(page: Page) -> None:
    page.run("window.frames_seen = 0; (function count() { window.frames_seen++;"
             "requestAnimationFrame(count); })()")  # fmt: skip
    page.run("document.getElementById('prompt').value = 'The fox ran. '.repeat(100);"
             "document.getElementById('prompt').dispatchEvent(new Event('input'))")  # fmt: skip
    page.wait_for(f"{STATE} === 'computing'")
    page.run("window.frames_seen = 0")
    drawn(page)
    assert page.run("window.frames_seen") > 5
    assert len(ids_in(page)) > 300


def test_all_of_it_works_with_the_keyboard(page: Page) -> None:
    reached = []
    for _ in range(40):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id || document.activeElement.name"))
    controls = page.run("""[...document.querySelectorAll(
        "button, select, input, textarea, [tabindex='0']"
    )].map((control) => control.id || control.name)""")
    assert set(controls) <= set(reached)
    count = len(ids_in(page))
    page.run("document.getElementById('tokens').focus()")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    drawn(page)
    chosen = "document.querySelector('.token[aria-selected=true]').id"
    assert page.run(chosen) == f"token-{count - 3}"
    page.press("Home")
    drawn(page)
    assert page.run(chosen) == "token-0"
    page.run("document.getElementById('step').focus()")
    page.press("Enter")
    drawn(page)
    assert len(ids_in(page)) == count + 1


def test_every_control_has_a_name(page: Page) -> None:
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "textbox", "checkbox", "radio", "combobox", "spinbutton",
             "listbox", "image"}  # fmt: skip
    nodes = [node for node in tree if node.get("role", {}).get("value") in roles]
    assert len(nodes) > 20
    assert [node for node in nodes if not node.get("name", {}).get("value")] == []


def test_it_fits_every_screen(page: Page, tmp_path: Path) -> None:
    click(page, "step", 30)
    colors = {}
    for width, height in SIZES:
        for dark in (False, True):
            page.resize(width, height, dark)
            drawn(page)
            across = page.run("document.documentElement.scrollWidth")
            assert across <= width
            colors[dark] = page.run("getComputedStyle(document.body).backgroundColor")
            picture = page.screenshot()
            assert picture.startswith(b"\x89PNG")
            assert len(picture) > 50_000  # an empty page is much smaller
            (tmp_path / f"{width}-{'dark' if dark else 'light'}.png").write_bytes(picture)
    assert colors[False] != colors[True]


def test_another_model_works_too(
    chromium: Browser, tmp_path: Path, tokenizer: MistralTokenizer
) -> None:
    """One without a window, whose output layer is its own, with weights in float32."""
    config = MistralConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=None,
        initializer_range=0.5,
    )
    MistralForCausalLM(config, seed=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_page(tmp_path / "page.html", tmp_path, TEXT)
    page = opened_page(chromium, tmp_path / "page.html")
    plain(page)
    click(page, "step", 20)
    drawn(page)
    logits = logits_of(MistralForCausalLM.from_pretrained(tmp_path, dtype="float64"), ids_in(page))
    assert_probabilities(page, logits, logits)
    assert_quiet(page, tmp_path / "page.html")


def test_a_broken_page_says_so(chromium: Browser, file: Path, tmp_path: Path) -> None:
    text = file.read_text("utf-8")
    (tmp_path / "page.html").write_text(text.replace('"rope_theta"', '"rope"'), "utf-8")
    broken = re.sub(r'(id="weights">)....', r"\1AAAA", text)
    (tmp_path / "page.html").write_text(broken, "utf-8")
    page = chromium.page(tmp_path / "page.html")
    page.wait_for(f"{STATE} === 'failed'")
    status = page.run("document.getElementById('status').textContent")
    assert status.startswith("This page cannot run here: ")
