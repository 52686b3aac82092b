"""PTX translated to Python: `kernel.py` first; `writer.py` has what all instructions need."""
