"""`python -m tinymistral_cupy.emulator`: look at the CUDA kernels while they run, with no GPU."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

DESCRIPTION = """\
Run a CUDA kernel of tinymistral on a small example, with no GPU: the PTX that NVRTC makes of it is
interpreted, and checked for accesses out of bounds, races and the like."""

REPORT = """\
Print, beside each line of the source: the instructions that warps issued, bank conflicts of shared
memory, and 32-byte sectors of global memory against the fewest possible. Without KERNEL, list the
kernels that there are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, 2 for a mistake in the arguments."""
    options = _parser().parse_args(arguments)
    if options.command is None:
        _parser().print_help()
        return 0
    try:
        return _report(options)
    except ValueError as error:  # no NVRTC, an architecture that is not known, ...
        return _refuse(" ".join(str(error).split()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinymistral_cupy.emulator", description=DESCRIPTION
    )
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
        print("\n".join(f"{name:<{width}}  {what}" for name, (what, _) in EXAMPLES.items()))
        return 0
    if options.kernel not in EXAMPLES:
        return _refuse(f"no kernel {options.kernel!r}; expected one of {', '.join(EXAMPLES)}")
    if options.arch:
        os.environ[_card.VARIABLE] = options.arch
    launch = run_example(options.kernel, cupy_stand_in, options.dtype)
    print(f"{_card.arch()}, {options.dtype}")
    print(report(SOURCE.read_text(encoding="utf-8"), launch))
    return 0


def _refuse(why: str) -> int:
    print(f"tinymistral_cupy.emulator: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
