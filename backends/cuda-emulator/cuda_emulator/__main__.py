"""`python -m cuda_emulator`: what the CUDA kernels of a program cost, line by line, with no GPU."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from cuda_emulator import KernelFault, Launch, Unavailable, collecting, cupy_stand_in, report
from cuda_emulator.cupy_stand_in import _card

DESCRIPTION = """\
Run a Python program that launches CUDA kernels with CuPy, without a GPU: NVRTC compiles them to
PTX, which is interpreted and checked for accesses out of bounds, races and the like."""

REPORT = """\
Run a program, and report the first launch of each of its kernels, or of KERNEL alone: the lines of
the source that cost something, with their neighbours, and beside each the instructions that warps
issued, bank conflicts of shared memory, and 32-byte sectors of global memory with the fewest
possible. In the program `import cupy` gives the emulator's stand-in for CuPy."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, without the usage."""
        self.exit(2, f"cuda_emulator: {message}; see {self.prog} --help\n")

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike argparse, raise BrokenPipeError where the reader has left."""
        (file or sys.stdout).write(self.format_help())


def run() -> NoReturn:
    """Run the command line; exit with 141, as a shell does, if the output's reader has left."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        try:
            code: int | str | None = main()
        except SystemExit as left:
            code = left.code
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must not fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    It is 2, with one line on standard error, for wrong arguments, for a kernel that does not
    compile, and for a kernel that has a fault.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    if not _exists(options.program):
        return _refuse(f"no program {options.program!r}")
    if options.arch is not None:
        if options.arch not in _card.MODELS:
            return _refuse(f"--arch {options.arch!r}: expected one of {', '.join(_card.MODELS)}")
        os.environ[_card.VARIABLE] = options.arch
    try:
        arch = _card.arch()
        launches = run_program(options.program, options.argument)
    except (Unavailable, KernelFault, cupy_stand_in.cuda.compiler.CompileException) as error:
        return _refuse(str(error))
    first: dict[str, Launch] = {}
    for launch in launches:
        first.setdefault(launch.kernel, launch)
    if not first:
        return _refuse(f"{options.program} launches no kernel")
    if options.kernel is not None and options.kernel not in first:
        return _refuse(f"no kernel {options.kernel!r}; expected one of {', '.join(first)}")
    for name in [options.kernel] if options.kernel else first:
        sys.stdout.write(f"{arch}\n{report(first[name])}\n\n")
    return 0


def run_program(program: str, arguments: Sequence[str] = ()) -> list[Launch]:
    """Run a file, or a module if the name does not end in .py; return its launches.

    `import cupy` gives the program the stand-in.
    """
    modules = {
        "cupy": cupy_stand_in,
        "cupy.cuda": cupy_stand_in.cuda,
        **{
            f"cupy.cuda.{n}": getattr(cupy_stand_in.cuda, n)
            for n in ("compiler", "memory", "runtime")
        },
    }
    before, argv = {name: sys.modules.get(name) for name in modules}, sys.argv
    sys.modules.update(modules)
    sys.argv = [program, *arguments]
    try:
        with collecting() as launches:
            if program.endswith(".py"):
                runpy.run_path(program, run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__")
    finally:
        sys.argv = argv
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return launches


def _exists(program: str) -> bool:
    if program.endswith(".py"):
        return Path(program).is_file()
    try:
        return find_spec(program) is not None
    except ImportError:  # the package that it would be in is missing
        return False


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m cuda_emulator", description=DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", title="commands")
    command = commands.add_parser(
        "report", help="what each line of a kernel costs", description=REPORT, allow_abbrev=False
    )
    command.add_argument("program", metavar="PROGRAM", help="a file such as x.py, or a module")
    command.add_argument("argument", nargs="*", metavar="ARGUMENT", help="passed to the program")
    command.add_argument("--kernel", metavar="KERNEL", help="report only this kernel")
    command.add_argument(
        "--arch",
        metavar="sm_XX",
        help=f"the architecture to compile for (default: {_card.DEFAULT}, or {_card.VARIABLE})",
    )
    return parser


def _refuse(why: str) -> int:
    sys.stderr.write(f"cuda_emulator: {' '.join(why.split())}\n")
    return 2


if __name__ == "__main__":
    run()
