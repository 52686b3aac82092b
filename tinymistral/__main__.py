"""`python -m tinymistral`, and the program `tinymistral`."""

import sys

from tinymistral.commands.console import ignore_interrupt, leave_on_interrupt


def run() -> None:
    """Run the command line in a process of its own, which ends with it."""
    leave_on_interrupt()
    from tinymistral.cli import main

    code = main()
    ignore_interrupt()
    sys.exit(code)


if __name__ == "__main__":
    run()
