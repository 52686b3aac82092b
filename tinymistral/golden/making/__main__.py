"""`python -m tinymistral.golden.making OUT`."""

import sys
from pathlib import Path

from tinymistral.golden.making.suite_files import make

if len(sys.argv) != 2:
    sys.exit("python -m tinymistral.golden.making OUT: expected one folder to write to")
make(Path(sys.argv[1]))
