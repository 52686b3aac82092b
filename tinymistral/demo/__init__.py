"""The embedded demo model: 2.4 million parameters, trained on generated stories for children."""

from pathlib import Path

DEMO = Path(__file__).parent  # a checkpoint's folder, for `from_pretrained`
