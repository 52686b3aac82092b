"""The conformance suite: laws that hold for every right backend, and an oracle to compare with.

    pytest --pyargs tinymistral.conformance --tinymistral-backend NAME

`oracle.py` computes each operation in plain loops. `test_*.py` contain the laws, `cases.py` and
`models.py` the cases that they are tried on, `bounds.py` and `propagation.py` how far rounding may
move a result, and `stagewise.py` the check of a forward pass, stage by stage.
"""

BEFORE_SNIPPET = "To reproduce it:"  # in a failure, before the code that does
