# %% [markdown]
# # 13. Golden outputs: testing your own implementation
#
# To run this chapter, besides `pip install ".[walkthrough]"` you need
# [Node.js](https://nodejs.org).
#
# Suppose you write Mistral in a language of your own: Rust, C, JavaScript. It runs, all shapes are
# right, probabilities add up to 1, and the text that comes out is a little odd. Where is the
# mistake? Chapter 8 left out single lines, and none of them raised an error. Reading the code again
# seldom helps, since you read what you meant to write.
#
# What helps is to compare numbers, and not only the last ones. A forward pass has a fixed order of
# stages (chapter 8): embedding, norm, queries, and so on. If somebody gives you the right numbers
# of *every* stage, you go along until the first one that differs. All before it is right, so the
# mistake is in the few lines between the two. Such expected numbers, kept in files, are called
# *golden outputs*.

# %%
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from chapter import BLUE, GREY, RED, WALKTHROUGH, picture, say
from matplotlib.figure import Figure

from tinymistral.golden.suite import V1, read_suite

if shutil.which("node") is None:
    raise FileNotFoundError("this chapter runs JavaScript: install Node.js, https://nodejs.org")
suite = read_suite(V1)
case = suite.manifest.cases["plain"]
sizes = suite.manifest.models[case.model].config
print(f"{len(suite.manifest.cases)} cases; of `{case.id}`: {len(case.expected)} tensors expected")
H, K = sizes["num_attention_heads"], sizes["num_key_value_heads"]
print(f"its model: {sizes['num_hidden_layers']} layers, width {sizes['hidden_size']}, {H} heads")

# %% [markdown]
# The package brings such files, the suite `v1`: tiny models with random weights, inputs, and the
# outputs in float64. Each *case* is about something else: a window that wraps, padding, far
# positions. One begins with `plain`. The files are JSON and safetensors, which every language can
# read; [its README](../tinymistral/golden/README.md) describes them.
#
# ## An implementation in another language
#
# The page of this walkthrough runs the model in a browser. So there is a second implementation at
# hand, [core.js](page/core.js), all of Mistral in plain JavaScript, and
# [golden.mjs](page/golden.mjs), which computes the suite's cases with it. This is its attention,
# for one token; it should look familiar:

# %% tags=["remove-input"]
source = (WALKTHROUGH / "page" / "core.js").read_text("utf-8")
attention = source[source.index("function attention(") :].split("\n}\n")[0]
say(f"From [walkthrough/page/core.js](page/core.js):\n\n```js\n{attention}\n}}\n```")

# %% [markdown]
# `golden run` starts a program once for each case, with a folder that holds the case, and keeps
# what it writes. `golden check` compares that with what is expected. We work on a copy, in a
# temporary folder.

# %%
folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
os.chdir(folder.name)
shutil.copytree(WALKTHROUGH / "page", "page")


def golden(command: str) -> tuple[int, str]:
    """Run `python -m tinymistral golden ...` -> its exit code, and what it printed."""
    arguments = [sys.executable, "-m", "tinymistral", "golden", *shlex.split(command)]
    done = subprocess.run(arguments, capture_output=True, encoding="utf-8")
    # The last digits differ from one Node.js to another: rounding errors are given as a bound.
    return done.returncode, re.sub(r"\d\S*e-(09|1\d) tol", "less than 1e-8 tol", done.stdout)


def run(page: str, out: str) -> str:
    """Compute the case `plain` with the JavaScript of a folder."""
    command = f"node {page}/golden.mjs {{case}} {{out}}"
    return golden(f'run --command "{command}" --case plain -o {out}')[1]


print(run("page", "out"))
code, said = golden("check v1 out")
print(said)
print("exit code", code)
assert code == 0

# %% [markdown]
# **What is a tolerance?** Nobody can ask for equal bits: sums in another order round otherwise. So
# for each tensor the suite says how far off a right program may be. This is not a guess. It was
# measured, with sums in many orders and rounding in many places, and multiplied by 4. A tolerance
# that is far too wide would let mistakes pass. JavaScript computes in float64, and the tolerance is
# that of float32, so this program has a lot of room.
#
# ## Experiment: one wrong line
#
# Now we make a mistake, one that is often made. Several query heads share one key/value head
# (chapter 5), and head h has to read number `h // (H / K)`: neighbours share. We let it read `h %
# K`, as if the key/value heads were laid out again and again, like *tiles*.

# %%
RIGHT = "const kvHead = Math.floor(h / (H / K));"
WRONG = "const kvHead = h % K;"
text = Path("page/core.js").read_text("utf-8")
assert text.count(RIGHT) == 1
shutil.copytree("page", "tiled")
Path("tiled/core.js").write_text(text.replace(RIGHT, WRONG), "utf-8")

print(run("tiled", "out-tiled"))
code, said = golden("check v1 out-tiled")
print(said)
assert code == 1 and "DIFFERS at calls.0.layers.0.attention_weights" in said

# %% [markdown]
# No error, and numbers for everything; but `golden check` knows. Read its answer like a detective:
#
# * The first that differs is `attention_weights` of layer 0. Queries, keys and values before it are
#   right, so the mistake is in what attention does with them.
# * Only heads 1 to 4 are wrong, 0 and 5 are right. Which mistake spares the first and the last?
# * Token 0 is right. It sees only itself, and the weight of a single key is 1, whichever key it is.

# %%
print("query head        ", *range(H))
print("reads h // (H / K)", *(h // (H // K) for h in range(H)))
print("reads h % K       ", *(h % K for h in range(H)))
wrong_heads = [h for h in range(H) if h // (H // K) != h % K]
assert f"head {wrong_heads[0]}-{wrong_heads[-1]}" in said

# %% tags=["remove-input"]
_, as_json = golden("check v1 out-tiled --json --case plain")
parts = json.loads(as_json)["cases"][0]["parts"]
worst = {part["name"].removeprefix("calls.0."): part["worst"] for part in parts}
differing = [name for name, error in worst.items() if error > 1]
assert differing[0] == "layers.0.attention_weights"
assert all(error < 1e-8 for name, error in worst.items() if name not in differing)
stages = [name.removeprefix("layers.0.") for name in worst if name.startswith("layers.0.")]
figure = Figure(figsize=(8, 4.8))
panels = figure.subplots(1, 2, sharey=True)
FLOOR, TOP = -9.0, 7.0
for layer, axes in enumerate(panels):
    for n, stage in enumerate(stages):
        error = worst[f"layers.{layer}.{stage}"]
        colour = RED if error > 1 else BLUE
        power = round(math.log10(error), 1) if error > 1 else FLOOR
        axes.barh(n, power - FLOOR + 0.4, 0.6, FLOOR - 0.4, color=colour)
    axes.axvline(0, color=GREY, ls=":", lw=1.2)
    axes.set_xlim(FLOOR - 0.4, TOP)
    axes.set_xticks([FLOOR, -4, 0, 4], ["< 1e-8", "1e-4", "1", "1e4"])
    axes.set_title(f"layer {layer}")
    axes.tick_params(axis="y", length=0)
first = stages.index("attention_weights")
panels[0].set_yticks(range(len(stages)), stages, size=9)
panels[0].invert_yaxis()
panels[0].axhline(first - 0.5, color=RED, lw=1.5)
panels[0].text(TOP, first - 0.7, "the mistake is here", color=RED, ha="right", weight="bold")
panels[0].text(FLOOR + 1, (first - 1) / 2, "all right", color=BLUE, va="center", weight="bold")
panels[0].text(-0.3, 0, "tolerance", color=GREY, ha="right", va="center", size=9)
figure.supxlabel("largest error, in tolerances", size=10)
figure.suptitle("One wrong line: each stage from there on is wrong", x=0.01, ha="left", size=11)
picture(figure, "13_first", "Errors of each stage of two layers; the first that is wrong is marked")

# %% tags=["remove-input"]
say(f"""
Of {len(worst)} tensors {len(differing)} differ, and the *first* is worth more than all others.
Whatever is computed from it is wrong too, down to the logits: they say that something is wrong, and
not what.
""")

# %% [markdown]
# ## A name for it
#
# `golden diagnose` judges each step by itself: it computes what should come out of the input that
# *your program* had there. So whatever follows a mistake is right, and only the wrong step is left.
# Then it measures what that step did. Many mistakes are made again and again; the package has a
# catalogue of them, and if it is one of those, it says its name and how to repair it:

# %%
code, said = golden("diagnose v1 out-tiled")
print(said)
assert code == 1 and "1. tiled-heads" in said and "\n  2. " not in said

# %% [markdown]
# One case is not enough. `plain` is shorter than its window, for example, so whoever forgets the
# window passes it; a case with a short window catches that. Run all cases before you trust your
# code. (And a test has to be tested too. That is a second use of the catalogue: the suite's own
# tests plant its mistakes and fail if no case finds one.)
#
# ## Exercise: repair one line
#
# `broken` is the text of core.js with another line wrong, and below is what the check says of it.
# Print `broken`, look at what is computed just before the first stage that differs, and fill in how
# to repair it. Which token is right, which dimensions are, and why those?

# %% tags=["remove-input"]
assert text.count("theta ** ((-2 * m) / d)") == 1
broken = text.replace("theta ** ((-2 * m) / d)", "theta ** (-m / d)")


# %%
shutil.copytree("page", "broken")


def checked(source: str) -> tuple[int, str]:
    """Compute the case with this core.js -> exit code and report of `golden check`."""
    Path("broken/core.js").write_text(source, "utf-8")
    run("broken", "out-broken")
    return golden("check v1 out-broken")


print(checked(broken)[1])


# %%
def repair(source: str) -> str:
    """Return core.js with the wrong line replaced by the right one."""
    return source.replace("the wrong part of a line", "the right one")  # your turn


def check(answer) -> str:
    """Say whether `golden check` exits with 0 for what `answer` makes of the broken file."""
    code, said = checked(answer(broken))
    if code:
        where = re.search(r"DIFFERS at (\S+)", said)
        found = f"differs at {where[1]}" if where else "does not run any more"
        return (
            f"Not yet: golden check exits with {code}, your file {found}. Hint: queries are right "
            "before RoPE and wrong after it, all but the token at position 0, whose angles are 0."
        )
    return "Right."


print(check(repair))

# %% [markdown]
# <details><summary>Solution</summary>
#
# `q` agrees and `q_rotated` does not, so it is RoPE (chapter 4). Position 0 is right: its angles
# are 0, whatever the frequencies are. So the rotation itself works, and the frequencies are wrong.
# In each head, dimensions 0 and 4 are right too: pair m = 0, whose frequency is 1 in any case. The
# others have to be theta^(−2m/d); the broken file has theta^(−m/d).


# %%
def solution(source: str) -> str:
    """Return core.js with the right frequencies."""
    return source.replace("theta ** (-m / d)", "theta ** ((-2 * m) / d)")


print(check(solution))
assert check(solution) == "Right."
assert check(lambda source: source.replace("theta ** (-m / d)", "theta ** (-m)")) != "Right."

# %% [markdown]
# </details>
#
# ## What to remember
#
# Compare every stage, in order, with numbers that you trust; the first that differs is where to
# look, and which heads and tokens are wrong is a clue to what happened. A tolerance is measured, so
# that rounding passes and a mistake does not. `golden run`, `golden check` and `golden diagnose` do
# it for a program in any language, and [the suite's README](../tinymistral/golden/README.md) says
# how to write yours.
#
# Next: [14. Training](14_training.md)
