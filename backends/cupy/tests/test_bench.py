"""The program that measures, on the emulator and at tiny sizes: what it measures and prints."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tiny import tiny_config

from tinymistral.backend import BackendUnavailable
from tinymistral_cupy import CupyBackend, EmulatedBackend, bench
from tinymistral_cupy.bench import Bench, Sizes, main
from tinymistral_cupy.floors import Rates


def small() -> Sizes:
    """Two layers: D 24, F 40, V 29, 4 heads, 2 of keys, of width 8, and a window of 5."""
    return Sizes(tiny_config(), 8, 64, tokens=4, attended=(40,), prompts=(7,), batches=(1, 2))


class Peer:
    """Stands for torch and for transformers."""

    name = "peer"

    def __init__(self, *_: Any):
        self.asked: list[tuple[str, int]] = []

    def prompt(self, T: int) -> float:
        self.asked.append(("prompt", T))
        return 2.0

    def token(self, B: int) -> float:
        self.asked.append(("token", B))
        raise RuntimeError("no\nroom")


def with_peer(patch: pytest.MonkeyPatch) -> None:
    for name in ("Torch", "Transformers"):
        patch.setattr(bench, name, Peer)


@pytest.fixture(scope="module")
def measured(float16) -> tuple[Bench, Peer]:
    peer = Peer()
    with pytest.MonkeyPatch.context() as patch:
        with_peer(patch)
        patch.setattr(Bench, "_rates", lambda self: Rates(bandwidth=1e3, operations=1e6))
        whole = Bench(float16, small(), lambda what: None)
        whole.attention(peer)
        whole.single_tokens()
        whole.model(peer)
    return whole, peer


def test_what_is_measured_and_the_least_of_it(measured):
    whole, _ = measured
    least = {row.what: row.least for row in whole.rows}
    # 5 keys and values of 2 heads of 8 numbers of 2 bytes, at 1000 bytes a second
    token = 2 * 5 * 2 * 8 * 2 / 1e3
    # Tokens 0 to 3 see 1 to 4 keys, the others 5; a product of 8 numbers is 16 operations, and
    # there are two of them for each of 4 heads, at 10^6 a second.
    attention = lambda T: (10 + (T - 4) * 5) * 16 * 2 * 4 / 1e6  # noqa: E731
    # q and o (32, 24), k and v (16, 24), three of (40, 24) in each layer; the head (29, 24)
    matrices = 2 * (2 * 32 * 24 + 2 * 16 * 24 + 3 * 40 * 24) + 29 * 24
    norms = (2 * 2 + 1) * 24
    activations = 4 * 32 * 2  # bytes of 4 tokens with 4 heads of 8 numbers
    assert least == {
        "attention, prompt of 40": pytest.approx(attention(40)),
        "attention, a token of 1": pytest.approx(token),
        "attention, a token of 2": pytest.approx(2 * token),
        "rms_norm, 4 tokens": pytest.approx(2 * activations / 1e3),
        "add, 4 tokens": pytest.approx(3 * activations / 1e3),
        "silu_mul, 4 tokens": pytest.approx(3 * activations / 1e3),
        "rope, 4 tokens": pytest.approx(2 * activations / 1e3),
        "scatter, 4 tokens": pytest.approx(2 * activations / 1e3),
        "first prompt of the process, 64": None,
        "prompt of 7": pytest.approx(2 * 7 * (matrices + norms) / 1e6 + 2 * attention(7)),
        "a token of 1": pytest.approx(2 * (matrices + norms) / 1e3),
        "a token of 1, without a graph": pytest.approx(2 * (matrices + norms) / 1e3),
        "a token of 2": pytest.approx(2 * (matrices + norms) / 1e3),
        "a token of 2, without a graph": pytest.approx(2 * (matrices + norms) / 1e3),
    }
    assert all(row.seconds > 0 for row in whole.rows)


def test_a_token_is_measured_with_a_graph_and_without(float16, monkeypatch):
    """Three steps before the clock runs: the second captures, and the third is like the rest."""
    monkeypatch.setattr(Bench, "_rates", lambda self: Rates(1.0, 1.0))
    measured, wall = [], bench.wall

    def noted(call, calls, warm=1):
        if calls == 20:
            call()
            call()
            measured.append((warm, float16.graphs._steps[0][1] is not None, float16.graphs.enabled))
        return wall(call, 1, 0)

    monkeypatch.setattr(bench, "wall", noted)
    whole = Bench(float16, dataclasses.replace(small(), batches=(1,)), lambda what: None)
    whole.model(Peer())
    assert measured == [(3, True, True), (1, True, False)]
    assert float16.graphs.enabled


def test_peers_are_asked_for_the_same_and_why_one_fails_is_said_once(measured):
    whole, peer = measured
    assert peer.asked == [("prompt", 40), ("prompt", 7), ("token", 1), ("token", 2)]
    compared = {row.what for row in whole.rows if row.peers == {"peer": 2.0}}
    assert compared == {"attention, prompt of 40", "prompt of 7"}
    assert whole.notes == ["peer was not measured: no room"]


def test_a_model_that_does_not_fit_is_a_note(float16, monkeypatch):
    def full(nbytes: int) -> None:
        raise BackendUnavailable("the weights take 14.5 GB", "take a smaller model")

    monkeypatch.setattr(float16, "check_memory", full)
    monkeypatch.setattr(Bench, "_rates", lambda self: Rates(1.0, 1.0))
    whole = Bench(float16, small(), lambda what: None)
    whole.model(Peer())
    assert whole.rows == []
    assert whole.notes == [
        "the model was not measured: the weights take 14.5 GB; take a smaller model; "
        "or take fewer --layers"
    ]


def test_the_rates_of_the_card(float16, monkeypatch):
    """A call is said to take 2 s: the copy reads and writes 64 numbers, of 2 bytes."""
    monkeypatch.setattr(Bench, "_on_card", lambda self, call: (call(), 2.0)[1])
    rates = Bench(float16, small(), lambda what: None).rates
    assert rates == Rates(bandwidth=2 * 64 * 2 / 2.0, operations=2 * 8**3 / 2.0)


REPORT = {
    "card": "Abacus",
    "date": "2026-01-02",
    "versions": {"tinymistral-cupy": "0.1.0", "torch": "2.0"},
    "dtype": "float16",
    "layers": 2,
    "bandwidth": 2.984e12,
    "operations": 891e12,
    "rows": [
        {"what": "a prompt", "seconds": 0.25, "least": 0.1, "peers": {"torch": 0.5}},
        {"what": "the first", "seconds": 12.5, "least": None, "peers": {}},
    ],
    "notes": ["a note"],
}


def test_the_table():
    assert bench.as_text(REPORT).splitlines() == [
        "Abacus, 2026-01-02; tinymistral-cupy 0.1.0, torch 2.0",
        "2.98 TB/s for a copy, 891 TFLOP/s for a product in float16",
        "",
        "ms, 2 layers   took  least  times  peer  ratio",
        "a prompt        250    100   2.50   500   2.00  torch",
        "the first     12500",
        "a note",
    ]


def test_json_of_the_program(monkeypatch, capsys):
    monkeypatch.setattr(bench, "CupyBackend", EmulatedBackend)
    monkeypatch.setattr(bench, "Sizes", lambda config: small())
    with_peer(monkeypatch)
    assert main(["--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["card"] == "CPU, emulating sm_90"
    assert (out["dtype"], out["layers"]) == ("float16", 2)
    assert out["versions"]["tinymistral-cupy"]
    assert min(out["bandwidth"], out["operations"]) > 0
    assert len(out["rows"]) == 14
    assert out["rows"][0].keys() == {"what", "seconds", "least", "peers"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no card; buy one"),
        (["--layers", "0"], "--layers: expected 1 to 10000, got 0"),
        (["--layers", "many"], "argument --layers: expected an integer, got 'many'"),
        (["--dtype", "float8"], "argument --dtype: unknown 'float8'"),
    ],
)
def test_an_error_is_one_line(monkeypatch, capsys, arguments, said):
    def none() -> str:
        raise BackendUnavailable("there is no card", "buy one")

    monkeypatch.setattr(CupyBackend, "device", none)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"tinymistral_cupy.bench: error: {said}")
    assert err.count("\n") == 1
