"""Write the page into one HTML file that works without a network.

python walkthrough/page/build.py [OUT] [--model FOLDER] [--text TEXT]
"""

import argparse
from pathlib import Path

from tinymistral import DEMO
from tinymistral.page import write_page

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument(
    "out", nargs="?", type=Path, default=Path(__file__).with_name("index.html"), metavar="OUT"
)
parser.add_argument("--model", default=DEMO, metavar="FOLDER", help="default: the demo model")
parser.add_argument("--text", default="Once upon a time there was a", help="to begin with")
given = parser.parse_args()
write_page(given.out, given.model, given.text)
print(f"{given.out}: {given.out.stat().st_size / 1e6:.2f} MB")
