"""`python -m tinymistral_cupy.emulator`: look at the CUDA kernels while they run, with no GPU."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tinymistral.commands.arguments import Parser
from tinymistral.commands.console import (
    ignore_interrupt,
    leave_on_interrupt,
    say,
    settle_streams,
    write,
)

DESCRIPTION = """\
Run a CUDA kernel of tinymistral on a small example, with no GPU: the PTX that NVRTC makes of it is
interpreted, and checked for accesses out of bounds, races and the like."""

REPORT = """\
Print the lines of the source that cost something, with those next to them, and beside each: the
instructions that warps issued, bank conflicts of shared memory, and 32-byte sectors of global
memory against the fewest possible. Without KERNEL, list the kernels that there are."""


def run() -> None:
    """Run the command line in a process of its own, which ends with it."""
    leave_on_interrupt()
    code = main()
    ignore_interrupt()
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    That is 2 for a mistake in the arguments and what NVRTC refuses, told in one line, and 141, as
    a shell has it, where the reader of the output left early.
    """
    settle_streams()
    try:
        options = _parser().parse_args(arguments)
        if options.command is None:
            _parser().print_help()
            return 0
        return _report(options)
    except BrokenPipeError:
        return 141
    except ValueError as error:  # no NVRTC, an architecture that is not known, ...
        return _refuse(str(error))


def _parser() -> Parser:
    parser = Parser(prog="python -m tinymistral_cupy.emulator", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", title="commands")
    report = commands.add_parser(
        "report", help="what each line of a kernel costs", description=REPORT
    )
    report.add_argument("kernel", nargs="?", metavar="KERNEL", help="such as rms_norm")
    report.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="what activations, weights and cache are stored in (default: float32)",
    )
    report.add_argument(
        "--arch",
        metavar="sm_XX",
        help="the architecture to compile for (default: sm_90, or TINYMISTRAL_EMULATED_ARCH)",
    )
    return parser


def _report(options: argparse.Namespace) -> int:
    from tinymistral_cupy.emulator import cupy_stand_in
    from tinymistral_cupy.emulator.cupy_stand_in import _card
    from tinymistral_cupy.emulator.examples import EXAMPLES, run_example
    from tinymistral_cupy.emulator.report import report
    from tinymistral_cupy.kernels import SOURCE

    if options.kernel is None:
        width = max(map(len, EXAMPLES))
        write("".join(f"{name:<{width}}  {what}\n" for name, (what, _) in EXAMPLES.items()))
        return 0
    if options.kernel not in EXAMPLES:
        return _refuse(f"no kernel {options.kernel!r}; expected one of {', '.join(EXAMPLES)}")
    if options.arch is not None:
        if options.arch not in _card.MODELS:
            return _refuse(f"--arch {options.arch!r}: expected one of {', '.join(_card.MODELS)}")
        os.environ[_card.VARIABLE] = options.arch
    try:
        launch = run_example(options.kernel, cupy_stand_in, options.dtype)
    except cupy_stand_in.cuda.compiler.CompileException as error:
        return _refuse(str(error))
    text = report(SOURCE.read_text(encoding="utf-8"), launch)
    write(f"{_card.arch()}, {options.dtype}\n{text}\n")
    return 0


def _refuse(why: str) -> int:
    say(f"tinymistral_cupy.emulator: {' '.join(why.split())}")
    return 2


if __name__ == "__main__":
    run()
