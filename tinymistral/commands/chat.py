"""`python -m tinymistral chat`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinymistral.chat import Conversation
from tinymistral.commands.chat_arguments import AFTER
from tinymistral.commands.console import Progress, interruptible, say, write
from tinymistral.commands.generate import choose
from tinymistral.commands.opening import open_checkpoint, warn_of_a_base_model
from tinymistral.commands.prompts import as_text
from tinymistral.commands.report import peak_memory

MAX_NEW_TOKENS = 500


def run(options: argparse.Namespace) -> None:
    """Read messages and answer them until there are no more."""
    model, tokenizer = open_checkpoint(options)
    chosen = choose(options, model, MAX_NEW_TOKENS)
    warn_of_a_base_model(options)
    system = None if options.system is None else as_text(options.system, "--system")
    talk = Conversation(model, tokenizer, system)
    for n, line in enumerate(lines()):
        if line.startswith("/"):
            if line.split()[0] == "/quit":
                return
            talk = obey(line, talk)
        elif line.strip():
            # Another seed for each answer, or all would draw alike.
            seed = {"seed": chosen["seed"] + n} if "seed" in chosen else {}
            answer(talk, line, chosen | seed)


def lines() -> Iterator[str]:
    """Read messages: with a prompt, history and editing from a terminal, else one a line."""
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):  # Windows has its own
            import readline  # noqa: F401  # input() then has history and editing
    prompt = "> " if terminal and sys.stdout.isatty() else ""  # not into a file
    encoding = "utf-8-sig"  # the first line may begin with a byte order mark
    while sys.stdin is not None:
        try:
            with interruptible():
                line = input(prompt) if terminal else sys.stdin.buffer.readline().decode(encoding)
        except KeyboardInterrupt:
            write("\n")
            continue
        except EOFError:
            write("\n")
            return
        except UnicodeDecodeError:
            raise ValueError("standard input is not UTF-8; save it as UTF-8") from None
        if not line and not terminal:
            return
        encoding = "utf-8"
        yield as_text(line, "the message").rstrip("\r\n")


def answer(talk: Conversation, message: str, chosen: dict[str, Any]) -> None:
    """Print the answer as it comes; Ctrl-C stops it."""
    progress = Progress(sys.stderr.isatty())
    texts = talk.ask(message, progress=progress, **chosen)
    try:
        with interruptible():
            for text in texts:
                progress.clear()
                write(text)
    except KeyboardInterrupt:
        pass
    finally:
        texts.close()
        progress.clear()
    write("\n")


def obey(line: str, talk: Conversation) -> Conversation:
    """Do what a line that begins with / says -> the conversation to go on with."""
    command, *words = line.split(maxsplit=1)
    rest = words[0].strip() if words else ""
    if command == "/reset":
        return Conversation(talk.model, talk.tokenizer, talk.system)
    if command == "/system":
        return Conversation(talk.model, talk.tokenizer, rest or None)
    if command == "/stats":
        say(stats(talk))
    elif command == "/save" and rest:
        try:
            talk.save(Path(rest))
            say(f"saved {len(talk.messages)} messages in {rest}")
        except OSError as error:
            say(f"not saved in {rest}: {error.strerror}")
    elif command == "/save":
        say("/save: expected a file, such as /save talk.json")
    elif command == "/help":
        say(AFTER.rstrip())
    else:
        say(f"{line[:40]}: expected /reset, /system TEXT, /save FILE, /stats, /help or /quit")
    return talk


def stats(talk: Conversation) -> str:
    """Say how long the conversation is, what it takes, and how fast it went."""
    held = int((talk.cache.positions >= 0).sum())
    parts = [f"{len(talk.ids)} tokens so far, {held} of them in the cache"]
    if talk.seconds:
        speed = talk.new_tokens / talk.seconds
        parts.append(f"last answer {talk.new_tokens} tokens, {speed:.0f} tokens/s")
    if memory := peak_memory():
        parts.append(f"peak memory {memory / 1e6:.0f} MB")
    return "; ".join(parts)
