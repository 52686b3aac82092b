"""Continue a text, and print it as it is generated.

  tinymistral generate "Once upon a time" --seed 7
  tinymistral generate --model FOLDER --greedy --prompt-file letter.txt
  echo "The fox said" | tinymistral generate --stop "." --json

The defaults below are for a model without its own in generation_config.json.
The demo model has some: it samples, with temperature 0.7 and top-k 40, up to
1000 tokens; but its stories end by themselves before that.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinymistral.commands import arguments
from tinymistral.commands.console import Progress, finite, interruptible, print_json, say, write

if TYPE_CHECKING:
    from tinymistral.backend import Backend
    from tinymistral.generation import GenerationStep
    from tinymistral.heads import MistralForCausalLM
    from tinymistral.streaming import StopStrings, StreamDecoder

EPILOG = """\
--json prints one object, on one line:
  text, ids           prompt and continuation (the text, with --chat: the
                      answer alone)
  prompt, prompt_ids
  continuation        without the stop text
  continuation_ids    all that were generated, with those of the stop text and
                      </s>
  logprobs            for each of them: the natural logarithm of the
                      probability that the model itself gives it
  finish_reason       "length", "eos" (the model ended the text) or "stop"
  seed                null without sampling
  counts              prompt_tokens, new_tokens
  timings             load_seconds, prefill_seconds (to the first new token),
                      decode_seconds (from there to the last)

Exit codes: 0; 2 for a mistake in what was given; 130 after Ctrl-C, which
leaves the text so far.
"""

MAX_NEW_TOKENS = 200  # where neither the command line nor the model says


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    source = parser.add_mutually_exclusive_group()
    text = "the text to continue (default: standard input)"
    source.add_argument("prompt", nargs="?", type=arguments.utf8, help=text)
    arguments.add_prompt_file(source)
    arguments.add_model(parser)
    arguments.add_computation(parser)
    add = parser.add_argument
    add("--chat", action="store_true", help="the prompt is a message to an Instruct model")
    text = "with --chat: a system prompt, before the message"
    add("--system", type=arguments.utf8, metavar="TEXT", help=text)

    add = parser.add_argument_group("how far").add_argument
    text = "at most N tokens (default: 200)"
    add("--max-new-tokens", type=arguments.integer, metavar="N", help=text)
    text = "at least N tokens before the model may end the text (default: 0)"
    add("--min-new-tokens", type=arguments.integer, metavar="N", help=text)
    text = "end before this text; may be repeated"
    add("--stop", type=arguments.utf8, action="append", default=[], metavar="TEXT", help=text)
    add("--ignore-eos", action="store_true", help="continue where the model ends the text")

    arguments.add_sampling(parser)

    group = parser.add_argument_group("what is printed")
    group.add_argument("--stats", action="store_true", help="speed and memory, on standard error")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--no-prompt", action="store_true", help="the continuation alone")
    arguments.add_json(either, "one JSON object, at the end; see below")


def run(options: argparse.Namespace) -> None:
    """Continue a text and print it as it is generated, or one JSON object at the end."""
    from tinymistral.chat import user_turn
    from tinymistral.streaming import StopStrings, StreamDecoder

    prompt = arguments.read_text(options.prompt, options.prompt_file, what="prompt")
    if options.system is not None and not options.chat:
        raise ValueError("--system is said before a message; give --chat too")
    stop = StopStrings(options.stop)
    started = time.perf_counter()
    model, tokenizer = arguments.open_checkpoint(options)
    chosen = choose(options, model)
    decoder = StreamDecoder(tokenizer)
    if options.chat:
        arguments.warn_of_base_model(options, tokenizer)
        ids = user_turn(tokenizer, prompt, options.system)
    else:
        ids = tokenizer.encode(prompt)
        for token in ids:
            decoder.push(token)
    seconds = time.perf_counter() - started
    report = Report(prompt, ids, chosen.get("seed"), seconds, answers=options.chat)

    # A prompt that is computed in one piece has no progress.
    progress = Progress("prompt: {} of {} tokens", wanted=len(ids) > model.backend.chunk)
    steps = model.generate_stream([ids], progress=progress, **chosen)
    texts = continuation(steps, decoder, stop, report)
    with interruptible(), progress:
        progress(0, len(ids))
        if options.json:
            for _ in texts:
                progress.clear()
        else:
            show(texts, "" if options.no_prompt or options.chat else prompt, stop, progress)
    if options.json:
        print_json(report.as_fields())
    if options.stats:
        say(report.as_stats(model.backend))


def choose(
    options: argparse.Namespace, model: MistralForCausalLM, max_new_tokens: int = MAX_NEW_TOKENS
) -> dict[str, Any]:
    """Return the options of `generate` for those of the command line, and check them."""
    from tinymistral.sampling import FIELDS, ONLY_SAMPLING, settle

    given = {name: getattr(options, name, None) for name in FIELDS}
    chosen = {name: value for name, value in given.items() if value is not None}
    greedy = "--greedy" if options.greedy else None
    if chosen.get("temperature") == 0:
        del chosen["temperature"]
        greedy = greedy or "--temperature 0"
    sampling = [f"--{name.replace('_', '-')}" for name in ONLY_SAMPLING if name in chosen]
    if greedy and sampling:
        raise ValueError(f"{greedy} does not sample; leave it out, or else {', '.join(sampling)}")
    if greedy or sampling:
        chosen["do_sample"] = bool(sampling)
    chosen["num_return_sequences"] = 1  # whatever the model's default is
    if getattr(options, "ignore_eos", False):
        chosen["eos_token_id"] = []
    if "max_new_tokens" not in model.generation_config:
        chosen.setdefault("max_new_tokens", max_new_tokens)
    try:
        config = settle(model, chosen)
    except ValueError as error:
        name, _, says = str(error).partition(":")  # each message begins with the field's name
        if getattr(options, name, None) is None:
            raise
        zero = "; 0 is the same as --greedy" if name == "temperature" else ""
        raise ValueError(f"--{name.replace('_', '-')}:{says}{zero}") from None
    if config.do_sample:
        chosen.setdefault("seed", int.from_bytes(os.urandom(4), "little"))  # so it can be reported
    return chosen


def continuation(
    steps: Iterable[GenerationStep], decoder: StreamDecoder, stop: StopStrings, report: Report
) -> Iterator[str]:
    """Generate: yield the text that each token completes, and fill in the report."""
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


def show(texts: Iterable[str], before: str, stop: StopStrings, progress: Progress) -> None:
    """Print `before`, then texts as they come, then a newline.

    After Ctrl-C too: the text so far stays, and the shell's prompt is on a line below it.
    """
    try:
        if not progress.wanted:  # it would overwrite the text on the terminal
            write(before)
            before = ""
        for text in texts:
            progress.clear()
            write(before + text)
            before = ""
    finally:
        progress.clear()
        write(f"{stop.flush()}\n")


class Report:
    """The generated text, and how it was generated; filled in on the way.

    The ids, and their log-probabilities, are all that were generated, also those of a stop string
    and of </s>, which are not in the text.
    """

    def __init__(
        self,
        prompt: str,
        prompt_ids: list[int],
        seed: int | None,  # None without sampling
        load_seconds: float,
        answers: bool = False,  # whether the continuation is the answer to a message
    ) -> None:
        self.prompt, self.prompt_ids = prompt, prompt_ids
        self.seed, self.answers = seed, answers
        self.load_seconds = load_seconds
        self.prefill_seconds = 0.0  # to the first new token
        self.decode_seconds = 0.0  # from there to the last
        self.texts: list[str] = []  # joined, the continuation
        self.continuation_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason = "length"  # "eos": the model ended the text; "stop": a stop string came

    def as_fields(self) -> dict[str, Any]:
        """Return the report as --json prints it."""
        continuation = "".join(self.texts)
        timings = ("load_seconds", "prefill_seconds", "decode_seconds")
        return {
            "text": continuation if self.answers else self.prompt + continuation,
            "ids": self.prompt_ids + self.continuation_ids,
            "prompt": self.prompt,
            "prompt_ids": self.prompt_ids,
            "continuation": continuation,
            "continuation_ids": self.continuation_ids,
            "logprobs": [finite(x) for x in self.logprobs],
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "counts": {"prompt_tokens": len(self.prompt_ids), "new_tokens": len(self.logprobs)},
            "timings": {name: getattr(self, name) for name in timings},
        }

    def as_stats(self, backend: Backend) -> str:
        """Return speed and memory, on one line."""
        decoded = max(0, len(self.continuation_ids) - 1)  # the first comes out of the prefill
        parts = [
            f"load {self.load_seconds:.3f} s",
            f"prefill {_speed(len(self.prompt_ids), self.prefill_seconds)}",
            f"decode {_speed(decoded, self.decode_seconds)}",
            f"backend {backend.name} {backend.dtype}",
        ]
        if memory := peak_memory():
            parts.append(f"peak memory {memory / 1e6:.0f} MB")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return "; ".join(parts)


def _speed(tokens: int, seconds: float) -> str:
    rate = f", {tokens / seconds:.0f} tokens/s" if tokens and seconds else ""
    return f"{tokens} tokens in {seconds:.3f} s{rate}"


def peak_memory() -> int:
    """Return the most bytes that this process has had in memory, or 0 if that is not known."""
    status = Path("/proc/self/status")  # Linux
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text("utf-8"))):
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    # Linux's own figure here would be at least that of the process which started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
