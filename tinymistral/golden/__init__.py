"""Golden outputs: what a Mistral computes, stage by stage, for others to hold theirs against.

`v1/` is the suite: small models, inputs, and the numbers that must come out, with a tolerance for
each tensor; `manifest.json` there says all of it. `suite.py` reads it, `running.py` computes its
cases by tinymistral itself, `making.py` makes it.
"""
