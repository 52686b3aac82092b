"""Golden outputs: what a Mistral computes, stage by stage, for other implementations to compare.

`v1/` is the suite: small models, inputs, expected numbers, and a tolerance for each tensor.
`manifest`, `suite`, `models`, `calls` and `files` read it, and `schema` and `shapes` check what
they read; `compare/` compares the dump of a program with it, and `report` shows the result;
`diagnose/` finds the known mistake that makes a dump's numbers; `run/` lets programs compute the
cases; `record/` makes a suite of any checkpoint. `rounding` has correct computations that round
differently, by which tolerances are measured; `published_numbers` compares a model with numbers
that others published.
"""
