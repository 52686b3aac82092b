"""What `tinymistral bench` does not measure, beside transformers with the same weights.

    pip install torch transformers accelerate .
    python tests/benchmarks/against_transformers.py [process|train ...]

process   `generate` of 40 tokens with the demo model, the whole process: seconds and memory
train     tokens/s of whole steps that train the demo model: gradients, clipping, AdamW; as the
          command does, set OPENBLAS_NUM_THREADS=1: each row has a thread

Both sides take turns, so that what else the machine does hits both; the best of each counts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tinymistral import DEMO
from tinymistral.threads import keep_freed_memory
from tinymistral.training.optimizer import clip
from tinymistral.training.packing import pack, take_documents
from tinymistral.training.run import Recipe, new_run
from tinymistral.training.train import batch_gradients

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


def train() -> None:
    """Compare training steps: here row by row on all cores, in torch as one padded batch."""
    import torch
    from transformers import AutoModelForCausalLM

    run = new_run(Recipe.of(seed=1))
    documents, _ = take_documents(run.ids, 0, run.recipe.batch_tokens)
    rows = pack(documents, run.recipe.length, run.config.sliding_window)
    theirs = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
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


BENCHMARKS = {"process": process, "train": train}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        BENCHMARKS[name]()
