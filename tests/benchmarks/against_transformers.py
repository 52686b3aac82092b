"""Speed and memory beside transformers with the same weights, as ratios within one run.

    pip install torch transformers accelerate .
    python tests/benchmarks/against_transformers.py [process|decode|prefill|window|train|flat ...]

process   `generate` of 40 tokens with the demo model, the whole process: seconds and memory
decode    tokens/s of the demo model, float32, one row and eight
prefill   seconds for 1,000 and 2,000 tokens on a 100M-parameter shape, float32, no window hit
window    the same for 8,192 tokens with a window of 512
train     tokens/s of whole steps that train the demo model: gradients, clipping, AdamW; as the
          command does, set OPENBLAS_NUM_THREADS=1: each row has a thread
flat      resident memory over 20 windows of text

Both sides take turns, so that what else the machine does hits both; the best of each counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tinymistral import DEMO, MistralConfig, MistralForCausalLM, MistralTokenizer
from tinymistral.training.optimizer import clip
from tinymistral.training.packing import pack, take_documents
from tinymistral.training.run import Recipe, new_run
from tinymistral.training.train import batch_gradients, keep_freed_memory

# Not ru_maxrss, which is at least that of the process that started this one.
PEAK = (
    "; import re; status = open('/proc/self/status').read(); "
    "print(int(re.search(r'VmHWM:\\s*(\\d+) kB', status)[1]) // 1024)"
)
OURS = (
    "import sys; from tinymistral.cli import main; main(['generate', 'Once upon a time', "
    "'--max-new-tokens', '40', '--ignore-eos'])" + PEAK
)
THEIRS = f"""
import torch
from transformers import AutoModelForCausalLM
import sentencepiece
tokenizer = sentencepiece.SentencePieceProcessor({str(DEMO / "tokenizer.model")!r})
model = AutoModelForCausalLM.from_pretrained({str(DEMO)!r}, dtype=torch.float32)
ids = torch.tensor([[1, *tokenizer.encode("Once upon a time")]])
new = model.generate(ids, max_new_tokens=40, min_new_tokens=40)
print(tokenizer.decode(new[0].tolist())){PEAK}"""


def take_turns(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """Return the best seconds of each call, after one round that does not count."""
    best = [float("inf")] * len(calls)
    for n in range(rounds + 1):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if n:
                best[i] = min(best[i], time.perf_counter() - start)
    return best


def process() -> None:
    """Compare whole processes."""
    peaks = {}

    def launch(name: str, code: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        peaks[name] = int(done.stdout.split()[-1])

    ours, theirs = take_turns(5, lambda: launch("ours", OURS), lambda: launch("theirs", THEIRS))
    print(
        f"process: {ours:.3f} s and {peaks['ours']} MB; "
        f"transformers {theirs:.3f} s and {peaks['theirs']} MB"
    )


def both(folder: Path):
    """Open a checkpoint here and in transformers, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return MistralForCausalLM.from_pretrained(folder), theirs


def decode() -> None:
    """Compare greedy decoding with the demo model."""
    import torch

    ours, theirs = both(DEMO)
    tokenizer = MistralTokenizer.from_pretrained(DEMO)
    for rows in (1, 8):
        ids = tokenizer(["Once upon a time"] * rows).input_ids
        tensor, mask = torch.tensor(ids), torch.ones(ids.shape, dtype=torch.long)
        new = 128
        options = {"max_new_tokens": new, "do_sample": False}
        we, they = take_turns(
            3,
            lambda: ours.generate(ids, eos_token_id=[], **options),
            lambda: theirs.generate(tensor, attention_mask=mask, min_new_tokens=new, **options),
        )
        print(
            f"decode, {rows} rows: {rows * new / we:.0f} tokens/s; "
            f"transformers {rows * new / they:.0f}; ratio {they / we:.2f}"
        )


def compare_prefill(window: int | None, lengths: tuple[int, ...], rounds: int) -> None:
    """Compare prefill, only the last column's logits wanted, on a 100M-parameter shape."""
    import torch

    config = MistralConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        sliding_window=window,
        dtype="float32",
    )
    with tempfile.TemporaryDirectory() as folder:
        MistralForCausalLM(config).save_pretrained(folder)
        ours, theirs = both(Path(folder))
        for length in lengths:
            ids = np.random.default_rng(0).integers(3, 32000, (1, length))
            tensor = torch.tensor(ids)
            we, they = take_turns(
                rounds,
                lambda: ours(ids, logits_to_keep=1),
                lambda: theirs(tensor, logits_to_keep=1),
            )
            print(
                f"prefill of {length} tokens, window {window}: {we:.2f} s; "
                f"transformers {they:.2f} s; ratio {they / we:.2f}"
            )


def train() -> None:
    """Compare training steps: here row by row on all cores, in torch as one padded batch."""
    import torch

    run = new_run(Recipe.of(seed=1))
    documents, _ = take_documents(run.ids, 0, run.recipe.batch_tokens)
    rows = pack(documents, run.recipe.length, run.config.sliding_window)
    _, theirs = both(DEMO)
    torch.set_grad_enabled(True)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3)
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for n, row in enumerate(rows):
        ids[n, : len(row.ids)] = labels[n, : len(row.ids)] = torch.tensor(row.ids)

    def our_step() -> None:
        _, gradients = batch_gradients(run.weights, rows, run.config, pool)
        clip(gradients, 1.0)
        run.optimizer.step(gradients, 1e-3)

    def their_step() -> None:
        optimizer.zero_grad()
        theirs(ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()

    keep_freed_memory()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        we, they = take_turns(5, our_step, their_step)
    tokens = sum(len(row.ids) for row in rows)
    print(
        f"train, {torch.get_num_threads()} threads: {tokens / we:.0f} tokens/s; "
        f"torch {tokens / they:.0f}; ratio {they / we:.2f}"
    )


def flat() -> None:
    """Show resident memory while 20 windows of text come."""
    model = MistralForCausalLM.from_pretrained(DEMO)
    window = model.config.sliding_window
    steps = model.generate_stream([[1]], max_new_tokens=20 * window, eos_token_id=[], seed=1)
    pages = [
        int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        for n, _ in enumerate(steps, 1)
        if n % window == 0
    ]
    print("flat, MB after each window:", [round(n * 4096 / 1e6, 1) for n in pages])


BENCHMARKS = {
    "process": process,
    "decode": decode,
    "prefill": lambda: compare_prefill(4096, (1000, 2000), 3),
    "window": lambda: compare_prefill(512, (8192,), 1),
    "train": train,
    "flat": flat,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        BENCHMARKS[name]()
