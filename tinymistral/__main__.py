"""`python -m tinymistral`."""

import sys

from tinymistral.cli import main

sys.exit(main())
