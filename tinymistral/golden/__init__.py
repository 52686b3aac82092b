"""Golden outputs: what a Mistral computes, stage by stage, for other implementations to compare with.

v1/             the suite: small models, inputs, expected numbers, a tolerance for each tensor
manifest, suite, models, calls, files      reading a suite
compare/        comparing the dump of a program with it
report          the result as a table, JSON or JUnit's XML
run/            programs that compute its cases: tinymistral, transformers, llama.cpp, a command
record/         making a suite of any checkpoint
rounding        correct computations that round differently, by which tolerances are measured
published_numbers                          what others published of Mistral-7B
"""
