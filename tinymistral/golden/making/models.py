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
from tinymistral.checkpoint.tensors import pair_rows, raw_name
from tinymistral.config import PARAMS_NAMES, MistralConfig
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
    sharp: float = 1.0  # queries and keys are so many times larger
    gates: float = 1.0  # what `gate_proj` makes is, and `down_proj` makes it smaller again
    exact: bool = True  # 16 bits hold the weights
    longest: int = 32_768  # max_position_embeddings

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
            max_position_embeddings=self.longest,
        )

    @property
    def tensors(self) -> Tensors:
        """The weights, by the names of Hugging Face's layout and in its order."""
        D = self.D**0.5
        gains = {  # of matrices whose rows have length 1
            "embed_tokens": 2.0 if self.tied else 0.7 * self.size * D,
            "lm_head": 2.5,
            "q_proj": 1.4 * self.sharp,
            "k_proj": 1.4 * self.sharp,
            "o_proj": 1.2 * self.size,
            "gate_proj": 1.2 * self.gates,
            "down_proj": 1.2 * self.size / self.gates,
        }
        tensors = {}
        shapes = MistralForCausalLM.parameter_shapes(self.config)
        for n, (name, shape) in enumerate(shapes.items()):
            numbers = normal([self.seed, n], *shape)
            if len(shape) == 1:
                numbers = np.exp2(0.5 * numbers)
            else:
                numbers = numbers * gains.get(name.split(".")[-2], 1.2) / shape[1] ** 0.5
            numbers = self.changed(name, exact(numbers) if self.exact else numbers)
            tensors[name] = numbers.astype(NUMPY_DTYPES[self.stored])
        return tensors

    def changed(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """Return what a model has for the weight of this name, drawn as it is."""
        return numbers

    @property
    def file(self) -> str:
        """Where a suite has the weights."""
        return f"models/{self.id}.safetensors"

    def fields(self) -> dict[str, Any]:
        """Return the fields of its config.json, or of its params.json."""
        fields = self.config.to_dict()
        if self.layout == "raw":
            return {raw: fields[name] for raw, name in PARAMS_NAMES.items()}
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
class Outlier(Tiny):
    """Numbers of which the first is large, as in trained models, and the others have one sign.

    A logit is a hundred, and then hundreds of numbers that are each too small to change a hundred
    in 16 bits, but not together.
    """

    def changed(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """Make the embedding and the head of one sign, after the first number."""
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            return numbers
        of_head = name == "lm_head.weight"
        drawn = numbers / numbers.std()
        changed = exact(0.18 * (1 + 0.3 * drawn) if of_head else 1 + 0.2 * drawn)
        changed[:, 0] = 8 if of_head else 64
        return changed


@dataclass(frozen=True)
class LargeFirst(Tiny):
    """What is normed has a first number that is much larger than all others, and weighs no more.

    Who rounds all of them to the same step, as by 8 bits with one scale, loses the others.
    """

    def changed(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """Enlarge the first number of norms, and make weights for it as much smaller."""
        kind = name.split(".")[-2]
        changed = numbers.copy()
        if changed.ndim == 1:
            changed[0] = 32
        elif kind not in ("embed_tokens", "o_proj", "down_proj"):
            changed[:, 0] /= 32
        return exact(changed)


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
            "each query head has a key/value head of its own; 16 bits do not hold the weights",
            5,
            exact=False,
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
            "four query heads share a key/value head; odd widths, and so small activations that an "
            "epsilon of 1e-6 is felt in every norm",
            6,
            V=59,
            D=13,
            F=21,
            H=8,
            K=2,
            d=4,
            window=6,
            theta=1e6,
            eps=1e-6,
            size=2.0**-10,
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
        LargeFirst(
            "float16",
            "weights stored in float16; the first number of what is normed is large",
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
        Tiny(
            "far",
            "a window of 5, for positions past 2^24; its theta is 2^16 and a head 8 wide, so that "
            "all frequencies are powers of 2 and any power function gets them right",
            11,
            V=33,
            D=12,
            F=20,
            d=8,
            theta=2.0**16,
            longest=2**31 - 1,
        ),
        Tiny(
            "large",
            "numbers whose squares float16 does not hold, and scores and gates past 88, of which "
            "exp is infinite in float32",
            3413,  # the largest score of each query leads by 13, which 16 bits cannot undo
            V=35,
            D=14,
            F=22,
            window=64,
            size=2.0**9,
            sharp=5.5,
            gates=50.0,
        ),
        Outlier(
            "long-sums",
            "sums of 256 numbers, of which the first is large and the others are small, and of one "
            "sign where they become logits: sums in 16 bits lose them",
            14,
            V=21,
            D=256,
            F=24,
            H=2,
            K=1,
            d=4,
            window=64,
            size=2.0**-4,
            stored="bfloat16",
        ),
    )
}
