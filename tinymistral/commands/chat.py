"""Talk to an Instruct model.

Each line is a message; the answer is printed as it is generated, and Ctrl-C
stops the answer, not the program. Ctrl-D or /quit ends the program.

  tinymistral chat --model mistralai/Mistral-7B-Instruct-v0.1
  tinymistral chat --model FOLDER --system "Answer in one sentence."
  echo "What is a window?" | tinymistral chat --model FOLDER
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinymistral.commands import arguments
from tinymistral.commands.console import Progress, interruptible, say, write
from tinymistral.commands.generate import choose, peak_memory

if TYPE_CHECKING:
    from tinymistral.chat import Conversation

MAX_NEW_TOKENS = 500

EPILOG = """\
While talking:
  /reset              begin again, with the same system prompt
  /system TEXT        begin again, with this one; without TEXT: with none
  /save FILE          write the messages so far, as JSON
  /stats              tokens so far, memory, the speed of the last answer
  /help, /quit

A turn costs only its own tokens: those before it are in the cache. For this an
answer is kept as the tokens that were generated; tokenizing its text again may
give others.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    arguments.add_model(parser)
    arguments.add_computation(parser)
    add = parser.add_argument
    text = "a system prompt, before the first message"
    add("--system", type=arguments.utf8, metavar="TEXT", help=text)
    text = "at most N tokens an answer (default: 500)"
    add("--max-new-tokens", type=arguments.integer, metavar="N", help=text)
    arguments.add_sampling(parser)


def run(options: argparse.Namespace) -> None:
    """Read messages and answer them until there are no more."""
    from tinymistral.chat import Conversation

    model, tokenizer = arguments.open_checkpoint(options)
    chosen = choose(options, model, MAX_NEW_TOKENS)
    arguments.warn_of_base_model(options)
    conversation = Conversation(model, tokenizer, options.system)
    for n, line in enumerate(lines()):
        if line.startswith("/"):
            if line.split()[0] == "/quit":
                return
            conversation = obey(line, conversation)
        elif line.strip():
            # Another seed for each answer, or all would draw the same numbers.
            seed = {"seed": chosen["seed"] + n} if "seed" in chosen else {}
            answer(conversation, line, chosen | seed)


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
        yield arguments.decode(line).rstrip("\r\n")


def answer(conversation: Conversation, message: str, chosen: dict[str, Any]) -> None:
    """Print the answer as it is generated, until Ctrl-C."""
    progress = Progress("prompt: {} of {} tokens")
    texts = conversation.ask(message, progress=progress, **chosen)
    with suppress(KeyboardInterrupt), progress, closing(texts), interruptible():
        for text in texts:
            progress.clear()
            write(text)
    write("\n")


def obey(line: str, conversation: Conversation) -> Conversation:
    """Run a command, a line that begins with /, and return the conversation to continue."""
    from tinymistral.chat import Conversation

    command, *words = line.split(maxsplit=1)
    rest = words[0].strip() if words else ""
    if command in ("/reset", "/system"):
        system = conversation.system if command == "/reset" else rest or None
        return Conversation(conversation.model, conversation.tokenizer, system)
    if command == "/stats":
        say(stats(conversation))
    elif command == "/save" and rest:
        try:
            conversation.save(Path(rest))
            say(f"saved {len(conversation.messages)} messages in {rest}")
        except OSError as error:
            say(f"not saved in {rest}: {error.strerror}")
    elif command == "/save":
        say("/save: expected a file, such as /save talk.json")
    elif command == "/help":
        say(EPILOG.rstrip())
    else:
        say(f"{line[:40]}: expected /reset, /system TEXT, /save FILE, /stats, /help or /quit")
    return conversation


def stats(conversation: Conversation) -> str:
    """Return how long the conversation is, and how fast the last answer was."""
    cached = int((conversation.cache.positions >= 0).sum())
    parts = [f"{len(conversation.ids)} tokens so far, {cached} of them in the cache"]
    if conversation.seconds:
        speed = conversation.new_tokens / conversation.seconds
        parts.append(f"last answer {conversation.new_tokens} tokens, {speed:.0f} tokens/s")
    if memory := peak_memory():
        parts.append(f"peak memory {memory / 1e6:.0f} MB")
    return "; ".join(parts)
