"""The parser, options that several commands share, and reading the text and model they name.

This and the modules of the commands import NumPy, and what needs it, inside functions: --help does
not wait for it, and --threads has to be set before it is loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from tinymistral.commands.console import say, write
from tinymistral.demo import DEMO
from tinymistral.text import decode_file, did_you_mean, short, shorten

if TYPE_CHECKING:
    from tinymistral.heads import MistralForCausalLM
    from tinymistral.tokenizer import MistralTokenizer

TEXT_LIMIT = 10_000_000  # bytes, over two million tokens: a device or a pipe may never end


class Parser(argparse.ArgumentParser):
    """Raises ValueError, which becomes one line of error, instead of printing the usage."""

    def __init__(self, **settings: Any) -> None:
        # No abbreviations: --prompt would be --prompt-file.
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )
        self.add_arguments: Callable[[Parser], None] | None = None  # called once it has to parse

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the help is."""
        needed = [str(a.metavar) for a in self._actions if a.required and not a.option_strings]
        if needed and "are required" in message:
            message += f"; expected: {self.prog} {' '.join(needed)}"
        raise ValueError(f"{message}; see {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        """Print it like all output; argparse would ignore a reader that has left."""
        write(self.format_help())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown arguments here, where the command is known."""
        if self.add_arguments is not None:
            add_arguments, self.add_arguments = self.add_arguments, None
            add_arguments(self)
        if self._subparsers is not None:
            self._check_order(sys.argv[1:] if args is None else args)
        options, left = super().parse_known_args(args, namespace)
        if left:
            self.error(self._unknown_arguments(left))
        return options, left

    def _check_order(self, words: Sequence[str]) -> None:
        """Refuse an option of a command before it, whose value would be taken for the command."""
        if (
            len(words) > 1
            and words[0].startswith("-")
            and words[0] not in self._option_string_actions
        ):
            self.error(
                f"{words[0]} before the command; expected: {self.prog} COMMAND {words[0]} ..."
            )

    def _unknown_arguments(self, left: Sequence[str]) -> str:
        option = left[0].partition("=")[0]
        if left[0].startswith("-") and (hint := did_you_mean(option, self._option_string_actions)):
            return f"unknown argument {shorten(option, 60)}{hint}"
        hint = ""
        if any(action.type is utf8 for action in self._actions if not action.option_strings):
            if not left[0].startswith("-"):
                hint = "; put a text of several words in quotes"
            elif not left[0].startswith("--"):
                hint = "; a text that begins with - goes last, after --"
        return f"unknown argument {shorten(' '.join(left), 60)}{hint}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is no choice, and suggest the one that it resembles."""
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(value, action.choices) or f"; expected {', '.join(action.choices)}"
            raise argparse.ArgumentError(action, f"unknown {short(value)}{hint}")


def add_commands(parser: Parser, package: ModuleType) -> None:
    """Add a package's COMMANDS: its modules, or packages that have commands themselves.

    The help of each is its docstring, whose first line is also in the list of commands, then the
    options, and EPILOG. Options are added when a command is used: none waits for those of others.
    """
    parser.set_defaults(run=lambda _: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", prog=parser.prog)
    for name in package.COMMANDS:
        module = import_module(f"{package.__name__}.{name}")
        text = module.__doc__ or name
        command = commands.add_parser(
            name,
            help=text.partition("\n")[0].rstrip("."),
            description=text,
            epilog=getattr(module, "EPILOG", None),
        )
        if hasattr(module, "COMMANDS"):
            command.add_arguments = partial(add_commands, package=module)
        else:
            command.add_arguments = module.add_arguments
            command.set_defaults(run=module.run)


def checked(read: Callable[[str], Any], expected: str = "") -> Callable[[str], Any]:
    """Return a type for argparse, whose error says what is expected, or what `read` raises."""

    def read_argument(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            says = f"expected {expected}, got {short(text)}" if expected else str(error)
            raise argparse.ArgumentTypeError(says) from None

    return read_argument


def decode(text: str) -> str:
    """Return a text as it was typed, in UTF-8 whatever the locale; ValueError if it is not UTF-8.

    Python passes each byte that is not valid in the locale's encoding as a lone surrogate.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise ValueError("the text is not UTF-8; put it into a UTF-8 file or a pipe") from None


def check_range(flag: str, value: int, least: int, most: int) -> None:
    """Raise a ValueError unless least <= value <= most."""
    if not least <= value <= most:
        raise ValueError(f"{flag}: expected {least} to {most}, got {value}")


integer = checked(int, "an integer")
number = checked(float, "a number")
ids = checked(lambda text: [int(part) for part in text.split(",")], "ids such as 13,28705")
utf8 = checked(decode)


def add_model(parser: argparse._ActionsContainer) -> None:
    """Add --model."""
    text = "folder of a checkpoint, or its name on the Hugging Face hub if it is in the local cache"
    parser.add_argument(
        "--model", default=DEMO, metavar="FOLDER", help=f"{text} (default: the demo model)"
    )


def add_prompt_file(parser: argparse._ActionsContainer) -> None:
    """Add --prompt-file."""
    text = "read the prompt from a file in UTF-8, without a newline at its end"
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help=text)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --threads, which `cli.main` reads."""
    text = "threads that compute, at most one a core (default: all cores)"
    parser.add_argument("--threads", type=integer, metavar="N", help=text)


def add_computation(parser: argparse.ArgumentParser) -> None:
    """Add what decides how a model computes."""
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="what computes: a name that `tinymistral backends` lists (default: the environment "
        "variable TINYMISTRAL_BACKEND, else numpy)",
    )
    text = "float32 (default), float64, float16, bfloat16, or auto: as the checkpoint"
    parser.add_argument("--dtype", metavar="TYPE", help=text)
    add_threads(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add what decides how the next token is chosen, and whether tokens are guessed ahead."""
    add = parser.add_argument_group(
        "which token", "Temperature, top-k, top-p, min-p or a seed turns sampling on."
    ).add_argument
    text = "below 1 less random, above 1 more, 0 as --greedy (default: 1)"
    add("--temperature", type=number, metavar="X", help=text)
    text = "sample from the K most likely, 0: from all (default: 50)"
    add("--top-k", type=integer, metavar="K", help=text)
    text = "sample from the most likely that together have probability P (default: 1)"
    add("--top-p", type=number, metavar="P", help=text)
    text = "sample from those at least P times as likely as the most likely (default: off)"
    add("--min-p", type=number, metavar="P", help=text)
    add("--seed", type=integer, metavar="N", help="for the same text each time (default: random)")
    add("--greedy", action="store_true", help="always take the most likely token (default)")
    text = "above 1: repeat the text so far less (default: 1)"
    add("--repetition-penalty", type=number, metavar="X", help=text)
    text = "never repeat N tokens in a row (default: 0, may repeat)"
    add("--no-repeat-ngram-size", type=integer, metavar="N", help=text)
    text = "never choose these tokens: ids with commas, as `tokenize` prints them"
    add("--suppress-tokens", type=ids, metavar="IDS", help=text)
    text = "never choose these tokens in a row; may be repeated"
    add("--bad-words-ids", type=ids, action="append", metavar="IDS", help=text)
    text = "guess N tokens ahead where the text repeats itself: the same text, sooner (default: 0)"
    parser.add_argument("--prompt-lookup-num-tokens", type=integer, metavar="N", help=text)


def add_json(parser: argparse._ActionsContainer, text: str = "one JSON object; see below") -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help=text)


def read_text(
    argument: str | None,
    file: Path | None = None,
    *,
    what: str = "text",
    where: str = "as an argument, in quotes",
) -> str:
    """Return the text given as an argument, in a file, or on standard input.

    A byte order mark, and a newline at the end of a file or of standard input, are not part of the
    text; Windows line ends become plain ones. ValueError if there is no text, which names `what` is
    missing and `where` it may be given, if it is over TEXT_LIMIT bytes, or not in UTF-8.
    """
    if argument is not None:
        return argument
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError(f"no {what}: expected {where}, or on standard input")
    source = "standard input" if file is None else str(file)
    try:
        with nullcontext(sys.stdin.buffer) if file is None else file.open("rb") as opened:
            raw = opened.read(TEXT_LIMIT + 1)
    except OSError as error:
        remedy = "" if file is None else "; give a file, or the text on standard input"
        raise ValueError(f"{source} cannot be read: {error.strerror or error}{remedy}") from None
    return decode_file(check_length(raw, source), source).removesuffix("\n")


def check_length(raw: bytes, source: str) -> bytes:
    """Return what was read of a text; ValueError, which names the source, over TEXT_LIMIT bytes."""
    if len(raw) > TEXT_LIMIT:
        raise ValueError(f"{source} is over {TEXT_LIMIT} bytes; expected a shorter text")
    return raw


def open_checkpoint(options: argparse.Namespace) -> tuple[MistralForCausalLM, MistralTokenizer]:
    """Open the model and the tokenizer, and check that they have the same vocabulary."""
    from tinymistral.heads import MistralForCausalLM
    from tinymistral.threads import keep_freed_memory

    keep_freed_memory()
    tokenizer = open_tokenizer(options.model)
    model = MistralForCausalLM.from_pretrained(
        options.model, backend=options.backend, dtype=options.dtype
    )
    tokenizer.check_vocabulary(model.config.vocab_size)
    return model, tokenizer


def open_tokenizer(folder: str) -> MistralTokenizer:
    """Open the tokenizer, after the configuration: of another model, that is what matters."""
    from tinymistral.config import MistralConfig
    from tinymistral.tokenizer import MistralTokenizer

    MistralConfig.from_pretrained(folder)
    return MistralTokenizer.from_pretrained(folder)


def warn_of_base_model(options: argparse.Namespace, tokenizer: MistralTokenizer) -> None:
    """Warn if the model does not seem to be made for conversations."""
    from tinymistral.chat import is_instruct
    from tinymistral.files.hub import find_checkpoint

    if not is_instruct(find_checkpoint(options.model), tokenizer):
        say(
            "tinymistral: warning: this seems to be a base model, which continues a text rather "
            "than answer; use an Instruct model for conversations"
        )
