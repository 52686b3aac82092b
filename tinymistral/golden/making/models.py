"""The small models of the suite, as data: sizes, constants, and weights from a seed.

They are tiny but not tame: every part of a layer bears on the logits, attention is neither flat
nor all on one key, norms scale by anything from 0.3 to 3. The sizes of a model are all different,
so that whoever mixes up two of them gets no result rather than a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinymistral.checkpoint import read_tensors
from tinymistral.checkpoint.raw import CONFIG_NAMES, pair_rows, raw_name
from tinymistral.config import MistralConfig
from tinymistral.demo import DEMO
from tinymistral.files import read_json
from tinymistral.golden.making.drawing import exact, normal
from tinymistral.golden.manifest import IN_PACKAGE
from tinymistral.model import MistralForCausalLM
from tinymistral.numpy_backend import NUMPY_DTYPES

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tiny:
    """A model in the letters of `model.py`, and how large its numbers are."""

    id: str
    says: str
    seed: int
    V: int = 53
    D: int = 14
    F: int = 22
    layers: int = 2
    H: int = 4
    K: int = 2
    d: int = 6
    window: int | None = 5
    theta: float = 10_000.0
    eps: float = 1e-5
    tied: bool = False
    stored: str = "float32"
    layout: str = "hf"
    size: float = 1.0  # of what goes from layer to layer

    @property
    def config(self) -> MistralConfig:
        """The configuration."""
        return MistralConfig(
            vocab_size=self.V,
            hidden_size=self.D,
            intermediate_size=self.F,
            num_hidden_layers=self.layers,
            num_attention_heads=self.H,
            num_key_value_heads=self.K,
            head_dim=self.d,
            sliding_window=self.window,
            rope_theta=self.theta,
            rms_norm_eps=self.eps,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=None,
            dtype=self.stored,
        )

    @property
    def tensors(self) -> Tensors:
        """The weights, by the names of Hugging Face's layout and in its order."""
        D = self.D**0.5
        gains = {  # of matrices whose rows have length 1
            "embed_tokens": 2.0 if self.tied else 0.7 * self.size * D,
            "lm_head": 2.5,
            "q_proj": 1.4,
            "k_proj": 1.4,
            "o_proj": 1.2 * self.size,
            "down_proj": 1.2 * self.size,
        }
        tensors = {}
        shapes = MistralForCausalLM.parameter_shapes(self.config)
        for n, (name, shape) in enumerate(shapes.items()):
            numbers = normal([self.seed, n], *shape)
            if len(shape) == 1:
                numbers = np.exp2(0.5 * numbers)
            else:
                numbers = numbers * gains.get(name.split(".")[-2], 1.2) / shape[1] ** 0.5
            tensors[name] = exact(numbers).astype(NUMPY_DTYPES[self.stored])
        return tensors

    @property
    def file(self) -> str:
        """Where a suite has the weights."""
        return f"models/{self.id}.safetensors"

    def fields(self) -> dict[str, Any]:
        """Return the fields of its config.json, or of its params.json."""
        fields = self.config.to_dict()
        if self.layout == "raw":
            return {raw: fields[name] for raw, name in CONFIG_NAMES.items()}
        return fields | {"architectures": ["MistralForCausalLM"]}

    def stored_tensors(self) -> Tensors:
        """Return the weights as they are in the file, by the names and in the order of a layout."""
        if self.layout == "hf":
            return self.tensors
        turned = ("q_proj.weight", "k_proj.weight")
        return {
            raw_name(name): pair_rows(tensor, self.d) if name.endswith(turned) else tensor
            for name, tensor in self.tensors.items()
        }


@dataclass(frozen=True)
class Demo:
    """The model that comes with tinymistral, and is not copied into a suite.

    Of its weights float16 holds all but 163 exactly; they are below its normal numbers.
    """

    id: str = "demo"
    says: str = "the model that comes with tinymistral: five layers, a window of 64"
    stored: str = "bfloat16"
    layout: str = "hf"
    file: str = IN_PACKAGE

    @property
    def config(self) -> MistralConfig:
        """The configuration."""
        return MistralConfig.from_pretrained(DEMO)

    @property
    def tensors(self) -> Tensors:
        """The weights."""
        return read_tensors(DEMO)

    def fields(self) -> dict[str, Any]:
        """Return the fields of its config.json."""
        return read_json(DEMO / "config.json")


WINDOW = Tiny("window", "a window of 5; two query heads share each of two key/value heads", 470)
MODELS: dict[str, Tiny | Demo] = {
    model.id: model
    for model in (
        Demo(),
        Tiny(
            "plain",
            "a window of 64, longer than any text here",
            9,
            V=37,
            D=18,
            F=26,
            H=6,
            K=3,
            d=8,
            window=64,
        ),
        WINDOW,
        replace(WINDOW, id="raw", says="the weights of `window` as a raw checkpoint", layout="raw"),
        Tiny("window-1", "a window of 1: each token sees itself alone", 3, V=41, window=1),
        Tiny(
            "no-window",
            "no window, and a theta of 1000000, as in Mistral-7B-v0.2 and later",
            165,
            V=43,
            D=22,
            F=34,
            H=6,
            K=3,
            d=10,
            window=None,
            theta=1e6,
        ),
        Tiny(
            "one-to-one",
            "each query head has a key/value head of its own",
            5,
            V=47,
            D=16,
            F=28,
            H=3,
            K=3,
            d=6,
            window=4,
        ),
        Tiny(
            "four-to-one",
            "four query heads share a key/value head",
            6,
            V=59,
            D=12,
            F=20,
            H=8,
            K=2,
            d=4,
            window=6,
            theta=1e6,
            eps=1e-6,
        ),
        Tiny("tied", "the embedding is the output head too", 28, V=61, window=6, tied=True),
        Tiny(
            "small",
            "so small activations that epsilon is felt in every norm",
            8,
            V=31,
            D=20,
            F=34,
            size=2.0**-8,
        ),
        Tiny(
            "bfloat16",
            "weights stored in bfloat16, as published checkpoints have them",
            104,
            V=39,
            F=26,
            d=10,
            window=7,
            stored="bfloat16",
        ),
        Tiny(
            "float16",
            "weights stored in float16",
            10,
            V=45,
            D=10,
            F=18,
            H=6,
            K=2,
            d=4,
            window=3,
            stored="float16",
        ),
    )
}
