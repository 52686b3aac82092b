"""Other programs that `bench` measures on the same card: attention of torch, and transformers.

No machine that tests this project has a GPU, so these lines are tried only by whoever runs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from tinymistral import MistralConfig
from tinymistral_cupy.floors import Heads


class Torch:
    """torch's `flex_attention`, compiled, with the window."""

    name = "flex_attention"

    def __init__(self, heads: Heads, dtype: str):
        """Import nothing yet."""
        self._heads, self._dtype = heads, dtype

    def prompt(self, T: int) -> float:
        """Return the seconds of the attention of a prompt, of one layer."""
        import torch
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        h = self._heads
        kind = {"device": "cuda", "dtype": getattr(torch, self._dtype)}
        q, k, v = (torch.randn(1, heads, T, h.d, **kind) for heads in (h.H, h.K, h.K))
        mask = create_block_mask(
            lambda b, head, i, j: (i >= j) & (i - j < h.W), None, None, T, T, device="cuda"
        )
        attend = torch.compile(flex_attention)
        with torch.no_grad():
            return seconds(torch, lambda: attend(q, k, v, block_mask=mask, enable_gqa=True), 5)


class Transformers:
    """transformers' MistralForCausalLM with torch's attention, as `from_pretrained` gives it."""

    name = "transformers"

    def __init__(self, config: MistralConfig, dtype: str):
        """Import nothing yet, and make no model."""
        self._config, self._dtype, self._model = config, dtype, None

    def prompt(self, T: int) -> float:
        """Return the seconds of a prompt's last logits."""
        torch, model = self._made()
        ids = torch.full((1, T), 5, device="cuda")
        with torch.no_grad():
            return seconds(torch, lambda: model(ids, use_cache=True, logits_to_keep=1), 2)

    def token(self, B: int) -> float:
        """Return the seconds of one more token for each of B rows."""
        torch, model = self._made()
        ids = torch.full((B, 64), 5, device="cuda")
        with torch.no_grad():
            cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
            return seconds(torch, lambda: model(ids[:, :1], past_key_values=cache), 20)

    def _made(self) -> tuple[Any, Any]:
        import torch
        import transformers

        if self._model is None:
            names = (
                "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
                "num_key_value_heads head_dim sliding_window max_position_embeddings rms_norm_eps"
            ).split()
            config = transformers.MistralConfig(
                **{name: getattr(self._config, name) for name in names}, attn_implementation="sdpa"
            )
            before = torch.get_default_dtype()
            torch.set_default_dtype(getattr(torch, self._dtype))
            try:
                with torch.device("cuda"):
                    self._model = transformers.MistralForCausalLM(config).eval()
            finally:
                torch.set_default_dtype(before)
        return torch, self._model


def seconds(torch: Any, call: Callable[[], Any], calls: int) -> float:
    """Return the median of the seconds that a call takes, until the card is done."""
    took = []
    for n in range(2 + calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if n >= 2:
            took.append(time.perf_counter() - start)
    return median(took)
