"""PTX translated to Python. Start with `kernel.py`; all instructions are written by `writer.py`."""
