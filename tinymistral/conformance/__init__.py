"""What every backend is judged by: an oracle, and laws that hold for any right implementation.

    pytest --pyargs tinymistral.conformance --tinymistral-backend NAME

`oracle.py` says in plain loops what each operation means; `test_*.py` hold the laws, `cases.py` and
`models.py` what they are tried on, `bounds.py` how far rounding may go.
"""

BEFORE_SNIPPET = "To see it again:"  # in a failure, before the code that reproduces it
