"""The demo model generates the same text on numpy and on the emulated kernels.

Decoding is greedy, so that a token differs only where two are about as likely. The window is made
small, so that the ring wraps every few tokens; that changes the text, for both alike.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from tinymistral import DEMO, MistralForCausalLM, MistralTokenizer

pytestmark = pytest.mark.slow

# The likeliest token leads by 0.3 in each step; logits of 16 to 32 have steps of 0.125 in bfloat16.
CLEAR = ["In a puddle she saw her own", "From under a fallen tree came"]


def generated(
    backend: str, dtype: str, prompts: list[str], tokens: int, window: int, chunk: int
) -> list[str]:
    """Generate from prompts on a backend; the shorter ones are padded on the left."""
    model = MistralForCausalLM.from_pretrained(DEMO, backend=backend, dtype=dtype)
    model.config = dataclasses.replace(model.config, sliding_window=window)
    model.backend.chunk = chunk
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    ids = model.generate(
        **tokenizer(prompts), max_new_tokens=tokens, do_sample=False, eos_token_id=[]
    )
    return tokenizer.batch_decode(ids)


@pytest.mark.parametrize(
    ("dtype", "prompts", "tokens", "window", "chunk"),
    [
        # one piece, and the kernel `attention`: more tokens times heads than the splits take
        ("float32", ["Once upon a time there was a king who had"], 3, 64, 512),
        # pieces of 3 and a ring of 8 + 3 - 1 slots, which wraps four times
        ("float32", ["Once upon a time"], 40, 8, 3),
        ("float32", ["The fox said to the hare", "A king"], 24, 8, 3),
        ("float16", CLEAR, 16, 4, 3),
        ("bfloat16", CLEAR, 16, 4, 3),
    ],
    ids=["prefill", "wraps", "left-padded", "float16", "bfloat16"],
)
def test_the_same_text(dtype, prompts, tokens, window, chunk):
    case = (dtype, prompts, tokens, window, chunk)
    assert generated("cupy-emulated", *case) == generated("numpy", *case)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_100", "sm_120"])
def test_the_same_text_on_other_cards(arch, monkeypatch):
    """For them NVRTC writes other PTX, and they have more or fewer multiprocessors."""
    monkeypatch.setenv("CUDA_EMULATOR_ARCH", arch)
    case = ("float16", ["Once upon a time"], 6, 4, 3)
    assert generated("cupy-emulated", *case) == generated("numpy", *case)


def test_the_same_text_from_the_command_line():
    def run(backend: str) -> str:
        command = "generate --greedy --max-new-tokens 8 Once".split()
        done = subprocess.run(
            [sys.executable, "-m", "tinymistral", *command, "--backend", backend],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = run("numpy")
    assert text.startswith("Once")
    assert run("cupy-emulated") == text
