"""Operations that round each step: by hand, and beside transformers, which does the same."""

from __future__ import annotations

import numpy as np
import pytest
from goldens import FIXTURES, goldens

from tinymistral import MistralForCausalLM
from tinymistral.golden.rounding import Angles, Eager

AT = np.array([[0, 1]], dtype=np.int64)


def attend(kind: type[Angles], dtype: str) -> np.ndarray:
    """One head of width 4: the query at position 1 scores 200.625 / 2 and 198.75 / 2."""
    backend = kind(dtype)
    q, k, v = (np.zeros((1, 2, 1, 4), dtype=backend.activation_dtype) for _ in range(3))
    q[0, :, 0, 0] = 15
    k[0, :, 0, 0] = 13.375, 13.25
    v[0, 0, 0, 0] = 1
    return backend.attention(q, k, v, AT, AT, None)[0, 1, 0]


def test_scores_and_weights_are_rounded_as_they_come() -> None:
    """In bfloat16: 201 and 199, halved 100.5 and 99.5; the softmax of one apart, 0.7310586."""
    assert float(attend(Eager, "bfloat16")[0]) == 0.73046875
    assert float(attend(Angles, "bfloat16")[0]) == 0.71875  # of 0.9375 apart: 0.7185942


def test_in_float32_it_is_the_same() -> None:
    np.testing.assert_allclose(attend(Eager, "float32"), attend(Angles, "float32"), rtol=1e-6)


@pytest.mark.parametrize(("name", "dtype"), [("half", "float16"), ("tied", "bfloat16")])
def test_it_is_nearer_to_transformers(name: str, dtype: str) -> None:
    """The logits of transformers in 16 bits, which are its own rounding of each operation."""
    theirs = goldens(f"{name}.{dtype}", "whole")
    errors = []
    for kind in (Eager, Angles):
        model = MistralForCausalLM.from_pretrained(FIXTURES / "models" / name, backend=kind(dtype))
        found = model(theirs["input_ids"]).logits.astype(np.float64)
        errors.append(np.square(found - theirs["logits"]).mean())
    assert errors[0] < 0.8 * errors[1]
