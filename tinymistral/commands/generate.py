"""`python -m tinymistral generate`."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from typing import Any

from tinymistral.commands.prompts import read_text
from tinymistral.generation import settle
from tinymistral.model import MistralForCausalLM
from tinymistral.streaming import StopStrings, StreamDecoder
from tinymistral.tokenizer import MistralTokenizer

MAX_NEW_TOKENS = 200


def run(options: argparse.Namespace) -> None:
    """Continue a text and print it as it comes, or one JSON object at the end."""
    prompt = read_text(options.prompt, options.prompt_file)
    start = time.perf_counter()
    tokenizer = MistralTokenizer.from_pretrained(options.model)
    model = MistralForCausalLM.from_pretrained(
        options.model, backend=options.backend, dtype=options.dtype
    )
    tokenizer.check_vocabulary(model.config.vocab_size)
    chosen = choose(options, model)
    ids = tokenizer.encode(prompt)
    loaded = time.perf_counter()

    show = not options.json
    if show and not options.no_prompt:
        sys.stdout.write(prompt)
        sys.stdout.flush()
    decoder, stop = StreamDecoder(tokenizer), StopStrings(options.stop or [])
    for token in ids:
        decoder.push(token)
    new_ids: list[int] = []
    logprobs: list[float] = []
    pieces: list[str] = []
    finish_reason = "length"
    first = loaded
    steps = model.generate_stream([ids], progress=_progress(), **chosen)
    try:
        for step in steps:
            if not new_ids:
                first = time.perf_counter()
            new_ids.append(int(step.tokens[0]))
            logprobs.append(float(step.logprobs[0]))
            pieces.append(stop.push(decoder.push(new_ids[-1])))
            if show and pieces[-1]:
                sys.stdout.write(pieces[-1])
                sys.stdout.flush()
            if stop.matched is not None:
                finish_reason = "stop"
                break
            if step.finished[0]:
                finish_reason = "eos"
        if stop.matched is None:
            pieces.append(stop.push(decoder.flush()) + stop.flush())
            if show:
                sys.stdout.write(pieces[-1])
    finally:
        if show:  # after Ctrl-C too: the text so far stays, and the shell's prompt is below it
            sys.stdout.write("\n")
            sys.stdout.flush()
    end = time.perf_counter()

    result = {
        "text": prompt + "".join(pieces),
        "prompt": prompt,
        "continuation": "".join(pieces),
        "prompt_ids": ids,
        "ids": new_ids,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
        "seed": chosen.get("seed"),
        "counts": {"prompt_tokens": len(ids), "new_tokens": len(new_ids)},
        "timings": {
            "load_seconds": loaded - start,
            "prefill_seconds": first - loaded,
            "decode_seconds": end - first,
        },
    }
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    if options.stats:
        print(stats(result, model), file=sys.stderr)


def choose(options: argparse.Namespace, model: MistralForCausalLM) -> dict[str, Any]:
    """Turn the options of the command line into those of `generate`, and check them."""
    names = ("max_new_tokens", "repetition_penalty", "seed", "temperature", "top_k", "top_p")
    chosen = {name: getattr(options, name) for name in (*names, "min_p")}
    sampling = any(chosen[name] is not None for name in ("temperature", "top_k", "top_p", "min_p"))
    if options.greedy and (sampling or options.seed is not None):
        raise ValueError("--greedy draws nothing; leave out temperature, top-k, top-p, min-p, seed")
    if options.greedy or chosen["temperature"] == 0:
        chosen |= {"do_sample": False, "temperature": None}
    elif sampling:
        chosen["do_sample"] = True
    if options.ignore_eos:
        chosen["eos_token_id"] = []
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if "max_new_tokens" not in model.generation_config:
        chosen.setdefault("max_new_tokens", MAX_NEW_TOKENS)
    if settle(model, chosen).do_sample and "seed" not in chosen:
        chosen["seed"] = secrets.randbits(32)  # known, so that it can be told
    return chosen


def stats(result: dict[str, Any], model: MistralForCausalLM) -> str:
    """Say how fast it went and what it took, on one line."""
    counts, timings = result["counts"], result["timings"]
    decoded = max(0, counts["new_tokens"] - 1)  # the first comes out of the prefill
    parts = [
        f"load {timings['load_seconds']:.3f} s",
        f"prefill {counts['prompt_tokens']} tokens, "
        f"{counts['prompt_tokens'] / max(timings['prefill_seconds'], 1e-9):.0f} tokens/s",
        f"decode {decoded} tokens, {decoded / max(timings['decode_seconds'], 1e-9):.0f} tokens/s",
        *([f"peak memory {memory / 1e6:.0f} MB"] if (memory := peak_memory()) else []),
        f"backend {model.backend.name} {model.backend.dtype}",
        *([f"seed {result['seed']}"] if result["seed"] is not None else []),
    ]
    return "; ".join(parts)


def peak_memory() -> int:
    """Return the most bytes this process has had in memory; 0 where that is not told."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _progress() -> Any:
    """Show on a terminal how far a long prompt has come."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        if total > 1024:
            text = f"prefill {done}/{total} tokens" if done < total else ""
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()

    return show
