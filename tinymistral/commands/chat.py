"""Talk to an Instruct model.

Each line is a message; lines that are pasted together are one, if Python has
GNU readline. The answer is printed as it is generated, and Ctrl-C stops the
answer, not the program. Ctrl-D or exit ends the program.

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
from tinymistral.text import one_line

if TYPE_CHECKING:
    from tinymistral.chat import Conversation

MAX_NEW_TOKENS = 500

EPILOG = """\
While talking:
  /reset              begin again, with the same system prompt
  /system TEXT        begin again, with this one; without TEXT: with none
  /save FILE          write the messages so far, as JSON
  /stats              tokens so far, memory, the speed of the last answer
  /help               this text
  /quit, exit, quit   end the program; from a pipe, /quit alone

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
    arguments.warn_of_base_model(options, tokenizer)
    conversation = Conversation(model, tokenizer, options.system)
    typed = lines()
    for n, line in enumerate(typed):
        if line.startswith("/"):
            if line.split()[0] == "/quit":
                return
            conversation = obey(line, conversation, typed)
        elif line.strip():
            # Another seed for each answer, or all would draw the same numbers.
            seed = {"seed": chosen["seed"] + n} if "seed" in chosen else {}
            answer(conversation, line, chosen | seed)


def lines() -> Iterator[str]:
    """Read messages: with a prompt, history and editing from a terminal, else one a line."""
    terminal = at_terminal()
    if terminal:
        say("Type a message, or /help for the commands.")
        with suppress(ImportError):  # Windows has its own
            import readline  # input() then has history and editing

            # GNU readline then returns pasted lines as one; libedit cannot, and ignores this.
            readline.parse_and_bind("set enable-bracketed-paste on")
    prompt = "> " if terminal and sys.stdout.isatty() else ""  # not into a file
    encoding = "utf-8-sig"  # the first line may begin with a byte order mark
    while sys.stdin is not None:
        try:
            with interruptible():
                line = input(prompt) if terminal else read_line().decode(encoding)
        except KeyboardInterrupt:
            write("\n")
            line = "\n"
        except EOFError:
            write("\n")
            return
        except UnicodeDecodeError:
            raise ValueError("standard input is not UTF-8; save it as UTF-8") from None
        if not line and not terminal:
            return
        encoding = "utf-8"
        line = arguments.decode(line).rstrip("\r\n")
        if terminal and line.strip() in ("exit", "quit"):
            return
        yield line


def at_terminal() -> bool:
    """Return whether somebody types the messages."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_line() -> bytes:
    """Return a line of standard input, b"" at its end."""
    line = sys.stdin.buffer.readline(arguments.TEXT_LIMIT + 1)
    return arguments.check_length(line, "a line of standard input")


def answer(conversation: Conversation, message: str, chosen: dict[str, Any]) -> None:
    """Print the answer as it is generated, until Ctrl-C."""
    progress = Progress("prompt: {} of {} tokens")
    texts = conversation.ask(message, progress=progress, **chosen)
    with suppress(KeyboardInterrupt), progress, closing(texts), interruptible():
        for text in texts:
            progress.clear()
            write(text)
    write("\n")


def obey(line: str, conversation: Conversation, typed: Iterator[str]) -> Conversation:
    """Run a command, a line that begins with /, and return the conversation to continue."""
    from tinymistral.chat import Conversation

    command, *words = line.split(maxsplit=1)
    rest = words[0].strip() if words else ""
    if command in ("/reset", "/system"):
        system = conversation.system if command == "/reset" else rest or None
        said = f"with the system prompt: {one_line(system, 60)}" if system else "no system prompt"
        say(f"a new conversation, {said}")
        return Conversation(conversation.model, conversation.tokenizer, system)
    if command == "/stats":
        say(stats(conversation))
    elif command == "/save" and rest:
        save(conversation, Path(rest), typed)
    elif command == "/save":
        say("/save: expected a file, such as /save talk.json")
    elif command == "/help":
        say(EPILOG.rstrip())
    else:
        expected = "/reset, /system TEXT, /save FILE, /stats, /help or /quit"
        say(f"{one_line(line, 40)}: expected {expected}")
    return conversation


def save(conversation: Conversation, file: Path, typed: Iterator[str]) -> None:
    """Write the messages; ask before a file is replaced, and where nobody can answer, do not."""
    try:
        if file.is_file():
            if not at_terminal():
                raise ValueError("it is there already; give another name")
            say(f"{file} is there already; replace it? y or n")
            if next(typed, "").strip().lower() not in ("y", "yes"):
                raise ValueError("it stays as it is")
        conversation.save(file)
        say(f"saved {len(conversation.messages)} messages in {file}")
    except (OSError, ValueError) as error:
        say(f"not saved in {file}: {getattr(error, 'strerror', None) or error}")


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
