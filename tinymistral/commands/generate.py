"""`python -m tinymistral generate`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tinymistral.chat import user_turn
from tinymistral.commands.console import Progress, interruptible, say, write
from tinymistral.commands.opening import open_checkpoint, warn_of_a_base_model
from tinymistral.commands.prompts import as_text, read_text
from tinymistral.commands.report import Report
from tinymistral.generation import GenerationStep
from tinymistral.heads import MistralForCausalLM
from tinymistral.sampling import settle
from tinymistral.streaming import StopStrings, StreamDecoder

MAX_NEW_TOKENS = 200  # where neither the command line nor the model says

DRAWING = ("temperature", "top_k", "top_p", "min_p", "seed")  # each turns sampling on


def run(options: argparse.Namespace) -> None:
    """Continue a text and print it as it comes, or one JSON object at the end."""
    prompt = read_text(options.prompt, options.prompt_file, what="prompt")
    if options.system is not None and not options.chat:
        raise ValueError("--system is said before a message; give --chat too")
    stop = StopStrings([as_text(text, "--stop") for text in options.stop])
    started = time.perf_counter()
    model, tokenizer = open_checkpoint(options)
    chosen = choose(options, model)
    decoder = StreamDecoder(tokenizer)
    if options.chat:
        warn_of_a_base_model(options)
        system = None if options.system is None else as_text(options.system, "--system")
        ids = user_turn(tokenizer, prompt, system)
    else:
        ids = tokenizer.encode(prompt)
        for token in ids:
            decoder.push(token)
    seconds = time.perf_counter() - started
    report = Report(prompt, ids, chosen.get("seed"), seconds, answers=options.chat)

    # A prompt that goes through in one piece has no progress to tell.
    progress = Progress(len(ids) > model.backend.chunk and sys.stderr.isatty())
    steps = model.generate_stream([ids], progress=progress, **chosen)
    texts = continuation(steps, decoder, stop, report)
    with interruptible():
        progress(0, len(ids))
        if options.json:
            show(texts, "", stop, progress, lambda _: None)
        else:
            show(texts, "" if options.no_prompt or options.chat else prompt, stop, progress, write)
    if options.json:
        write(f"{report.as_json()}\n")
    if options.stats:
        say(report.as_stats(model.backend))


def choose(
    options: argparse.Namespace, model: MistralForCausalLM, max_new_tokens: int = MAX_NEW_TOKENS
) -> dict[str, Any]:
    """Turn the options of the command line into those of `generate`, and check them."""
    names = (*DRAWING, "max_new_tokens", "repetition_penalty")
    chosen = {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    greedy = "--greedy" if options.greedy else None
    if chosen.get("temperature") == 0:
        del chosen["temperature"]
        greedy = greedy or "--temperature 0"
    drawing = [f"--{name.replace('_', '-')}" for name in DRAWING if name in chosen]
    if greedy and drawing:
        raise ValueError(f"{greedy} draws nothing; leave it out, or else {', '.join(drawing)}")
    if greedy or drawing:
        chosen["do_sample"] = bool(drawing)
    chosen["num_return_sequences"] = 1  # whatever the model's default is
    if getattr(options, "ignore_eos", False):
        chosen["eos_token_id"] = []
    if "max_new_tokens" not in model.generation_config:
        chosen.setdefault("max_new_tokens", max_new_tokens)
    if settle(model, chosen).do_sample:
        chosen.setdefault("seed", int.from_bytes(os.urandom(4), "little"))  # known: it is told
    return chosen


def continuation(
    steps: Iterable[GenerationStep], decoder: StreamDecoder, stop: StopStrings, report: Report
) -> Iterator[str]:
    """Generate: yield the text that each token completes, and note it all in the report."""
    started = time.perf_counter()
    for step in steps:
        if not report.continuation_ids:
            report.prefill_seconds = time.perf_counter() - started
        report.continuation_ids.append(int(step.tokens[0]))
        report.logprobs.append(float(step.logprobs[0]))
        report.texts.append(stop.push(decoder.push(report.continuation_ids[-1])))
        yield report.texts[-1]
        if stop.matched is not None:
            break
        if step.finished[0]:
            report.finish_reason = "eos"
    report.texts.append(stop.push(decoder.flush()) + stop.flush())
    yield report.texts[-1]
    if stop.matched is not None:
        report.finish_reason = "stop"
    report.decode_seconds = time.perf_counter() - started - report.prefill_seconds


def show(
    texts: Iterable[str],
    before: str,
    stop: StopStrings,
    progress: Progress,
    sink: Callable[[str], None],
) -> None:
    """Write texts as they come, one `before` them, and a line's end after them.

    After Ctrl-C, too: the text so far stays, and the shell's prompt stands below it.
    """
    try:
        if not progress.wanted:  # it would overwrite the text on the terminal
            sink(before)
            before = ""
        for text in texts:
            progress.clear()
            sink(before + text)
            before = ""
    finally:
        progress.clear()
        sink(f"{stop.flush()}\n")
