"""Translate PTX to Python: start with `kernel.py`; `writer.py` writes the functions."""
