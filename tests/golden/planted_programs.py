"""Mistakes in `plain_program.py`, and how often `golden diagnose` names them rightly.

Of each mistake stand the stages that are then wrong, words (a regular expression) of the sentence
that describes it, and which text of the program is replaced by which. Run as a script, this prints
what is said of each, and the rates.

    python tests/golden/planted_programs.py [NAME ...] [--others] [--logits]
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from plain_program import with_mistake

from tinymistral.golden.calls import calls_of
from tinymistral.golden.compare.cases import compare_case
from tinymistral.golden.diagnose.evidence import Evidence
from tinymistral.golden.diagnose.measure import Finding
from tinymistral.golden.diagnose.predictions import Predictions
from tinymistral.golden.diagnose.report import sentence
from tinymistral.golden.diagnose.search import diagnose
from tinymistral.golden.models import read_model
from tinymistral.golden.suite import read_suite
from tinymistral.mistakes import FORWARD

# Those which the diagnosis was written with.
KNOWN = r"""
window-ignored | weights | window is ignored
    (W is None or i - j < W) => True
window-halved | weights | sees 1/2 W keys
    i - j < W => i - j < max(1, W // 2)
window-3 | weights | sees 3 keys
    i - j < W => i - j < 3
window-in-odd-layers | weights | in layers? 0.*window is ignored
    W is None or => W is None or layer % 2 == 0 or
window-symmetric | weights | \|i - j\| < W
    j <= i and (W is None or i - j < W) => (j <= i if W is None else abs(i - j) < W)
one-token-sees-all | weights | a single token sees all
    W is None or => W is None or T == 1 or
first-kept-as-sink | weights | the first 1 positions of the text stay
    W is None or => W is None or j == 0 or
blocks-of-w | weights | own block of W keys
    i - j < W => i // W == j // W
ring-w-minus-2 | weights | written first, to W - 2 slots
    i - j < W => max(positions[b]) - j < max(1, W - 2) and i - j < W
this-call-alone | weights | only keys of this call
    if j <= i and => if j >= min(positions[b][positions[b] >= 0]) and j <= i and
every-second-key | weights | at the distances 0, 2, 4
    if j <= i and => if (i - j) % 2 == 0 and j <= i and
keys-2-and-3-hidden | weights | positions 2, 3 are seen by no query
    if j <= i and => if j not in (2, 3) and j <= i and
two-heads-without-window | weights | in heads 0-1: the window is ignored
    W is None or => W is None or h < 2 or
top-3-keys | weights | the 3 largest scores
    e = np.exp(s - s.max()) => e = np.exp(s - s.max()) * (s >= np.sort(s)[-3:][0])
theta-500000 | rope | theta 500,000
    theta ** => 5e5 **
rope-none | rope | it is not rotated
    angle = p * => angle = 0 *
rope-k-alone | q_rotated | it is not rotated
    angle = p * => angle = (stage == "k") * p *
rope-twice | rope | by 2 times its angle
    angle = p => angle = 2 * p
rope-backwards | rope | the other way
    angle = p => angle = -p
rope-pairs | rope | Neighbours
    m, m + d // 2 => 2 * m, 2 * m + 1
rope-pairs-back | rope | neighbours.*the other way
    m, m + d // 2 => 2 * m, 2 * m + 1
    angle = p => angle = -p
rope-half-width | rope | first part is rotated: half
    angle = p * => angle = (m < d // 4) * p *
rope-m-over-d | rope | exponent
    -2 * m / d => -m / d
rope-by-slot | rope | modulo the window
    angle = p * => angle = p % (W or 999) *
rope-linear-3/8 | rope | times 0\.375
    angle = p * => angle = p * 0.375 *
rope-bfloat16-angles | rope | angles are in bfloat16
    angle = p * theta ** (-2 * m / d) => angle = float(bfloat16(p * theta ** (-2 * m / d)))
rope-behind-when-decoding | rope | after the first: positions are p - 1
    angle = p * => angle = max(0, p - (call > 0)) *
scale-1/d | weights | scale is 1/d|scores-scaled-twice
    math.sqrt(d) => d
scale-half | weights | 1/sqrt\(d/2\)
    math.sqrt(d) => math.sqrt(d / 2)
scale-by-layer | weights | layer 1: the scale is 0\.5 times
    math.sqrt(d) => math.sqrt(d) / (layer + 1)
softmax-plus-1 | weights | 1 is added to the sum.*relative to e\^0
    e / e.sum() => np.exp(s) / (1 + np.exp(s).sum())
tanh-cap-2 | weights | capped softly at 2:
    e = np.exp(s - s.max()) => e = np.exp(2 * np.tanh(s / 2))
alibi | weights | as ALiBi does
    / math.sqrt(d) => / math.sqrt(d) - (i - j) * 2.0 ** (-8 * (h + 1) / H)
heads-tiled | weights attention_mix | tiled-heads
    h // (H // K), h // (H // K) => h % K, h % K
heads-tiled-values-alone | attention_mix | tiled-heads
    h // (H // K), h // (H // K) => h // (H // K), h % K
heads-reversed | weights attention_mix | heads-in-reverse
    h // (H // K), h // (H // K) => K - 1 - h // (H // K), K - 1 - h // (H // K)
joined-transposed | attention_output | \(d, H\) rather than \(H, d\)
    mix.reshape(-1) => mix.T.reshape(-1)
k-and-v-swapped | k v | keys-and-values-swapped
    self_attn.{s}_proj => self_attn.{dict(q='q', k='v', v='k')[s]}_proj
q-of-layer-0 | q | that of layers\.0\.self_attn\.q_proj
    m = w[f"{name}.weight"] => name = name.replace(str(layer), "0") if stage == "q" else name
        m = w[f"{name}.weight"]
q-of-hidden | q | input is (hidden|the hidden state)|input is embedding
    linear(n, s, => linear(x[b, t] if s == "q" else n, s,
linear-bfloat16 | q k v attention_output gate up mlp_output | rounded to bfloat16: the input \(
    m @ x => m @ bfloat16(x)
eps-1e-8 | norms | epsilon is 1e-08
    + eps) => + F32(1e-8))
eps-outside | norms | eps-outside-the-root
    np.sqrt((x * x).mean() + eps) => (np.sqrt((x * x).mean()) + eps)
norm-1-plus-w | norms | 1 \+ w
    eps) * gain => eps) * (1 + gain)
norm-no-root | norms | root is missing
    np.sqrt((x * x).mean() + eps) => ((x * x).mean() + eps)
norm-bfloat16 | norms | rounded to bfloat16: the input
    return x / np.sqrt => x = bfloat16(x); return bfloat16(1) * x / np.sqrt
norm-cube-root | norms | divided by .* to the power 0\.3333
    np.sqrt(( => np.cbrt((
final-norm-missing | norm | not normed: the result is x \(
    return x / => if stage == "norm": return x
        return x /
quick-gelu | silu_mul | sigmoid\(1\.702 x\)
    np.exp(-g) => np.exp(-1.702 * g)
silu-of-up | silu_mul | gate-and-up-swapped
    g / (1 + np.exp(-g)) * u => u / (1 + np.exp(-u)) * g
hard-silu | silu_mul | hard swish, x · clip\(x / 4
    g / (1 + np.exp(-g)) => g * np.clip(g / 4 + 0.5, 0, 1)
residual-doubled | sums | residual is multiplied by 2\b
    x[b, t] + o => 2 * x[b, t] + o
    middle + y => 2 * middle + y
residual-after-norm | sums | residual is taken after the norm
    x[b, t] + o => normed[b, t] + o
    middle + y => n + y
output-scaled | attention_residual | what is added to the residual is multiplied by 0\.22
    x[b, t] + o => x[b, t] + F32(0.22) * o
embedding-scaled | embedding | embedding-scaled
    table[ids[b, t]] => table[ids[b, t]] * F32(math.sqrt(config.hidden_size))
logits-capped | logits | capped softly at 3:
    head @ n => 3 * np.tanh(head @ n / 3)
log-softmax | logits | a log_softmax of the logits
    head @ n => np.log(softmax(head @ n))
rope-on-v | attention_mix cache.v | values are rotated like keys
    (k, v) => (k, rotate(v, i, "v"))
cached-again | weights cache.k | keys are rotated twice
    (k, v) => (rotate(k, i, "k"), v)
cached-bfloat16 | weights attention_mix cache.k cache.v | rounded to bfloat16
    (k, v) => (bfloat16(k), bfloat16(v))
"""

# Those that were written down after the diagnosis. Of 53 that show the wrong step was right in all;
# what it did in 35 at first sight, and in 51 after general measurements were repaired or added:
# such as of another weight, of sums of stages, of what positions, heads or columns decide.
OTHERS = r"""
all-but-the-one-before | weights | at the distances 0, 2, 3
    if j <= i and => if i - j != 1 and j <= i and
window-from-the-first-of-a-call | weights | window of the first of its call
    i - j < W => min(positions[b][positions[b] >= 0]) - j < W
odd-keys-lost-in-layer-1 | weights | in layer 1: keys at the positions 1, 3, 5.*by no query
    if j <= i and => if (layer != 1 or j % 2 == 0) and j <= i and
window-in-the-last-layer-alone | weights | window is ignored
    W is None or => W is None or layer < config.num_hidden_layers - 1 or
window-doubled | weights | sees 2 W keys
    i - j < W => i - j < 2 * W
window-less-4 | weights | W - 4
    i - j < W => i - j < max(1, W - 4)
future-of-2 | weights | distances -2, -1, 0
    j <= i and => j <= i + 2 and
ntk-8 | rope | theta
    theta ** => (theta * 8 ** (d / max(1, d - 2))) **
positions-from-100 | rope | p \+ 100|100 larger
    angle = p * => angle = (p + 100) *
positions-halved | rope | rotated as if at 0, 0, 1, 1
    angle = p * => angle = p // 2 *
angles-times-2-pi | rope | times 6\.283
    angle = p * => angle = 2 * math.pi * p *
frequencies-up-to-the-last | rope | other angles|frequenc
    -2 * m / d => -2 * m / max(1, d - 2)
keys-rotated-backwards | k_rotated | the other way
    angle = p * => angle = (p if stage == "q" else -p) *
queries-one-ahead | q_rotated | 1 larger|p \+ 1|as if it were the second
    angle = p * => angle = (p + (stage == "q")) *
every-second-pair | rope | pair.*not rotated|other angles
    angle = p * => angle = (m % 2 == 0) * p *
sine-alone-in-float16 | rope | float16
    math.sin(angle), m => float(np.float16(math.sin(angle))), m
stretched-by-yarn | rope | 1\.139|1\.296
    return turned => return turned * F32(1.1386)
scale-1/8 | weights | scale is
    math.sqrt(d) => 8
temperature-in-layer-1 | weights | in layer 1: the scale is 2 times
    / math.sqrt(d) for => / math.sqrt(d) * (1 + (layer == 1)) for
log-of-length | weights | scale.*(position|length|number of keys)
    / math.sqrt(d) for => / math.sqrt(d) * math.log(i + 2) for
base-2 | weights | 2\^x|ln\(2\)
    np.exp(s - s.max()) => np.exp2(s - s.max())
largest-weight-alone | weights | 1 largest
    e = np.exp(s - s.max()) => e = 1.0 * (s == s.max())
sum-with-an-epsilon | weights | 0\.01 is added to the sum
    e / e.sum() => e / (e.sum() + 0.01)
weights-squared | weights | scale is 2 times
    e = np.exp(s - s.max()) => e = np.exp(s - s.max()) ** 2
scores-clipped | weights | clipped at 0\.5
    e = np.exp(s - s.max()) => e = np.exp(np.clip(s, -0.5, 0.5))
bias-of-0.1 | weights | 0\.1 for each token
    / math.sqrt(d) for => / math.sqrt(d) + 0.1 * (i - j) for
heads-swapped-in-pairs | weights attention_mix | read key/value heads 1, 0|heads-in-reverse
    h // (H // K), h // (H // K) => ((h // (H // K)) ^ 1) % K, ((h // (H // K)) ^ 1) % K
values-of-head-0 | attention_mix | heads 0, 0|one-head-for-all
    h // (H // K), h // (H // K) => h // (H // K), 0
values-of-the-next-token | attention_mix | next|after|at \+ 1
    cached[j][1][vh] => cached.get(j + 1, cached[j])[1][vh]
mix-in-bfloat16 | attention_mix | rounded to bfloat16
    mix[h] += F32(e) * cached[j][1][vh] => mix[h] = bfloat16(mix[h] + F32(e) * cached[j][1][vh])
last-head-lost | attention_output | head.*(left out|lost)|last \d+ inputs
    mix.reshape(-1) => np.concatenate([mix[:-1].reshape(-1), np.zeros(d, dtype=F32)])
k-doubled | k | 2 times
    return m @ x => return m @ x * (1 + (stage == "k"))
q-with-a-bias | q | bias
    return m @ x => return m @ x + (stage == "q") * np.sin(np.arange(len(m), dtype=F32))
gate-for-up | up | weight is that of .*gate_proj
    mlp.up_proj => mlp.gate_proj
down-of-4-bits | mlp_output | 4 bits
    return m @ x => s = np.abs(m).max(axis=1, keepdims=True) / 7
        return (np.round(m / s) * s if stage == "mlp_output" else m) @ x
v-of-the-residual | v | input is (hidden|embedding|the hidden state)
    linear(n, s, => linear(x[b, t] if s == "v" else n, s,
silu-1.5 | silu_mul | sigmoid\(1\.5 x\)
    np.exp(-g) => np.exp(-1.5 * g)
relu-6 | silu_mul | another curve|capped|ReLU
    g / (1 + np.exp(-g)) => np.clip(g, 0, 6)
result-clipped | silu_mul | clipped at 0\.2
    g / (1 + np.exp(-g)) * u => np.clip(g / (1 + np.exp(-g)) * u, -0.2, 0.2)
silu-less-half | silu_mul | it is -0\.5 · up \+ 1 · what it should be
    g / (1 + np.exp(-g)) => (g / (1 + np.exp(-g)) - F32(0.5))
mlp-missing | output | nothing is added
    middle + y => middle
both-outputs-halved | sums | multiplied by 0\.5
    x[b, t] + o => x[b, t] + o / 2
    middle + y => middle + y / 2
eps-0.01 | norms | epsilon is 0\.01
    + eps) => + F32(0.01))
weight-squared | norms | weight twice|another weight|factor of its own
    eps) * gain => eps) * gain ** 2
weight-of-the-next-norm | post_attention_layernorm | weight is that of
    gain = w[f"{name}.weight"] => gain = w[f"{name}.weight".replace("post_attention", "input")]
mean-of-all-but-2 | norms | mean|averaged|factor of its own
    (x * x).mean() => (x[:-2] * x[:-2]).mean()
final-norm-twice | norm | normed twice
    return x / => if stage == "norm": x = x / np.sqrt((x * x).mean() + eps) * gain
        return x /
embedding-doubled | embedding | 2 times
    table[ids[b, t]] => 2 * table[ids[b, t]]
odd-ids-of-row-0 | embedding | row
    table[ids[b, t]] => table[ids[b, t] * (ids[b, t] % 2 == 0)]
logits-tenth | logits | 0\.1 times
    head @ n => head @ n / 10
logits-centred | logits | mean|subtracted
    head @ n => (head - head.mean(axis=0)) @ n
values-cached-in-8-bits | attention_mix cache.v | 8 bits|rounded
    (k, v) => (k, np.round(v / np.abs(v).max() * 127) * np.abs(v).max() / 127)
swapped-in-the-cache | weights attention_mix cache.k cache.v | keys are values|values are keys
    (k, v) => (v, k)
"""

STAGES = {
    "weights": "attention_weights",
    "rope": "q_rotated k_rotated",
    "norms": "input_layernorm post_attention_layernorm norm",
    "sums": "attention_residual output",
}
CASES = (
    "window-at-once", "window-wrap-by-both", "left-padding", "no-window", "one-to-one",
    "four-to-one", "small-activations",
)  # fmt: skip


class Planted(NamedTuple):
    """A mistake: what is wrong, words of its description, and replacements in the program."""

    stages: set[str]
    words: str
    changes: tuple[tuple[str, str], ...]


def parsed(table: str) -> dict[str, Planted]:
    """Return the mistakes of a table by name."""
    found = {}
    for entry in re.split(r"\n(?=\S)", table.strip()):
        head, *changes = entry.split("\n    ")
        name, stages, words = head.split(" | ", 2)
        wrong = {part for stage in stages.split() for part in STAGES.get(stage, stage).split()}
        pairs = re.findall(r"(.*?) => (.*?)(?=\n    [^\n]* => |\Z)", "\n    ".join(changes), re.S)
        found[name] = Planted(wrong, words, tuple((a.strip(), b.strip()) for a, b in pairs))
    return found


PLANTED, HELD_OUT = parsed(KNOWN), parsed(OTHERS)
TWO = (
    ("window-halved", "theta-500000"),
    ("heads-tiled", "quick-gelu"),
    ("scale-1/d", "eps-1e-8"),
    ("rope-pairs", "k-and-v-swapped"),
    ("residual-doubled", "tanh-cap-2"),
    ("heads-reversed", "rope-twice"),
    ("logits-capped", "window-ignored"),
    ("joined-transposed", "norm-1-plus-w"),
)
for _a, _b in TWO:
    (_one, _words, _old), (_two, _more, _new) = PLANTED[_a], PLANTED[_b]
    _both = f"(?=.*({_words}))(?=.*({_more}))"
    PLANTED[f"{_a} and {_b}"] = Planted(_one | _two, _both, _old + _new)


def dumped(
    predictions: Predictions, planted: Planted | None, cases: Sequence[str] = CASES, end: str = ""
) -> list[Evidence]:
    """Return what the program dumps of some cases: the tensors whose names end in `end`."""
    found, program = [], with_mistake(*(planted.changes if planted else ()))
    for case in map(predictions.suite.case, cases):
        arrays = predictions.arrays(case)
        model = read_model(predictions.suite, str(case.model))
        with np.errstate(all="ignore"):
            every = program(*model, calls_of(arrays.inputs))
        results = {n: every[n] for n in arrays.expected if n.endswith(end)}
        compared = compare_case(predictions.suite, case, results, "float32", arrays)
        each = Evidence.of(compared, results, arrays, "float32")
        found += [] if each is None else [each]
    return found


def named(planted: Planted, findings: Sequence[Finding]) -> tuple[bool, bool]:
    """Return whether only wrong stages are found, and whether they are described."""
    told = {stage for finding in findings for stage in finding.stages}
    said = " ".join(map(sentence, findings))
    step = bool(told) and told <= planted.stages
    return step, step and re.search(planted.words, said) is not None


def judged(
    predictions: Predictions, planted: Planted, logits: bool
) -> tuple[tuple[bool, bool], str] | None:
    """Return whether it is said rightly, and what is said; None if nothing differs.

    From all stages: the step; the step and what it did. From logits: what it did, in the first
    place; in the first three.
    """
    evidence = dumped(predictions, planted, end="logits" if logits else "")
    if not any(each.differs for each in evidence):
        return None
    found = diagnose(evidence, FORWARD, predictions)
    if not logits:
        return named(planted, found.findings), " / ".join(map(sentence, found.findings))
    said = [" ".join(f"{m.name} {m.says}" for m in e.mistakes) for e in found.explanations]
    fits = [re.search(planted.words, each) is not None for each in said]
    return (fits[:1] == [True], any(fits)), " / ".join(said)


def print_rates(mistakes: dict[str, Planted], logits: bool) -> None:
    """Print what is said of each, and the rates."""
    predictions, right, times = Predictions(read_suite()), np.zeros(2, dtype=int), []
    for name, planted in mistakes.items():
        start = time.process_time()
        found = judged(predictions, planted, logits)
        if found is None:
            print(f"{name}: nothing differs")
            continue
        times.append(time.process_time() - start)
        right += found[0]
        print(f"{name}: {found[0]} {times[-1]:.1f} s: {found[1][:300]}", flush=True)
    what = "first, in the first three" if logits else "the step, the description"
    median = sorted(times)[len(times) // 2]
    print(f"{len(times)} show. {what}: {right}. Median {median:.1f} s, most {max(times):.1f} s")


if __name__ == "__main__":
    chosen = HELD_OUT if "--others" in sys.argv else PLANTED
    given = [name for name in sys.argv[1:] if not name.startswith("--")]
    print_rates({name: chosen[name] for name in given or chosen}, "--logits" in sys.argv)
