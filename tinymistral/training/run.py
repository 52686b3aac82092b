"""A training run: what it follows from, where it has got to, and its folder.

The folder is an ordinary checkpoint, which opens after every save. Its subfolder `training` holds
what the run needs to go on to the same bits:

    recipe.json         what the run follows from
    state.safetensors   weights and moments in float32, the step, the loss curve
    loss.json           the loss curve, to read
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinymistral.checkpoint import load_checkpoint, write_tensors
from tinymistral.checkpoint.loading import check_layers
from tinymistral.checkpoint.tensors import causal_lm_shapes
from tinymistral.config import MistralConfig
from tinymistral.files import CheckpointError, make_folder, read_json, whole_file, write_json
from tinymistral.files.hub import find_checkpoint
from tinymistral.files.safetensors import read_file, write_file
from tinymistral.operations import NUMPY_DTYPES
from tinymistral.pretrained import refuse_if_too_large
from tinymistral.sampling import read_generation_config, write_generation_config
from tinymistral.text import listed, shown
from tinymistral.tokenizer import MistralTokenizer
from tinymistral.training.documents import (
    CHARACTERS_PER_TOKEN,
    Corpus,
    Documents,
    Stories,
    cut,
    read_corpus,
    train_tokenizer,
)
from tinymistral.training.optimizer import AdamW

FOLDER = "training"
RECIPE_FILE = "recipe.json"
STATE_FILE = "state.safetensors"
CURVE_FILE = "loss.json"


@dataclass(frozen=True)
class Recipe:
    """What a run follows from, beside the model that it begins with.

    Learning rate, decay and clipping as is usual for AdamW and small models: Touvron et al. 2023,
    https://arxiv.org/abs/2302.13971, section 2.3, with a higher rate for fewer parameters.
    """

    seed: int = 0
    steps: int = 12_000
    batch_tokens: int = 2048  # of a step; whole documents, so a few more
    length: int = 640  # most tokens of a row: any generated story fits
    learning_rate: float = 1.5e-3  # the highest, reached after the warm-up
    warm_up: int = 100  # steps
    final_learning_rate: float = 1.5e-4  # the cosine's end
    weight_decay: float = 0.1
    clip: float = 1.0  # largest norm of a step's gradients
    corpus: str | None = None  # None: generated stories
    corpus_sha256: str | None = None
    dtype: str = "bfloat16"  # of the checkpoint; the run computes in float32

    @classmethod
    def of(cls, **fields: Any) -> Recipe:
        """Return a recipe of these fields, those of the schedule as they follow from the others.

        The warm-up takes 100 steps, but at most a tenth of all; the cosine ends at a tenth.
        """
        recipe = cls(**fields)
        return dataclasses.replace(
            recipe,
            warm_up=min(100, recipe.steps // 10),
            final_learning_rate=recipe.learning_rate / 10,
        )


@dataclass
class Curve:
    """Losses in nats a token: of each step's batch, before the step, and of held-out documents."""

    loss: list[float] = field(default_factory=list)
    held_out_steps: list[int] = field(default_factory=list)  # after how many steps
    held_out_loss: list[float] = field(default_factory=list)


@dataclass
class Run:
    """A model in training."""

    recipe: Recipe
    config: MistralConfig
    generation_config: dict[str, Any]
    tokenizer: MistralTokenizer
    documents: Documents
    weights: dict[str, np.ndarray]  # float32, by name
    optimizer: AdamW = field(init=False)  # changes the weights in place
    step: int = 0  # steps done
    next_document: int = 0
    curve: Curve = field(default_factory=Curve)

    def __post_init__(self) -> None:
        self.optimizer = AdamW(self.weights, weight_decay=self.recipe.weight_decay)

    def ids(self, n: int) -> np.ndarray:
        """Return the tokens (T,) of document n."""
        return encode(self.tokenizer, self.documents[n])


def encode(tokenizer: MistralTokenizer, text: str) -> np.ndarray:
    """Return the ids (T,) of a document, between <s> and </s>."""
    return np.asarray([*tokenizer.encode(text), tokenizer.eos_token_id], dtype=np.int64)


# Beginning


def small_config(vocab_size: int, window: int, dtype: str) -> MistralConfig:
    """Return the configuration of a new model: with 2,048 pieces 2.4 million parameters."""
    return MistralConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=window,
        tie_word_embeddings=True,
        initializer_range=0.07,  # 1 / sqrt(D): the first scores of attention differ from each other
        dtype=dtype,
    )


# How a new model writes if nothing else is asked for; a story ends by itself before that.
GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 40, "max_new_tokens": 1000}


def new_run(recipe: Recipe, *, vocab_size: int = 2048, window: int = 256) -> Run:
    """Train a tokenizer on the documents, and begin with random weights."""
    documents, recipe = open_documents(recipe)
    tokenizer = train_tokenizer(documents.each_once(), vocab_size)
    config = small_config(vocab_size, window, recipe.dtype)
    weights = random_weights(config, recipe.seed)
    return Run(recipe, config, GENERATION, tokenizer, documents, weights)


def fine_tuning(recipe: Recipe, name_or_path: str | Path, window: int | None = None) -> Run:
    """Begin with the weights and the tokenizer of a checkpoint, or its window replaced."""
    folder = find_checkpoint(name_or_path)
    config, tensors = load_checkpoint(folder)
    tokenizer = MistralTokenizer.from_pretrained(folder)
    tokenizer.check_vocabulary(config.vocab_size)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{folder}: its tokenizer has no </s>, which ends a document")
    config = dataclasses.replace(config, dtype=recipe.dtype)
    if window is not None:
        config = dataclasses.replace(config, sliding_window=window)
    numbers = sum(array.size for array in tensors.values())
    refuse_if_too_large(4 * 4 * numbers, "weights, gradients and moments of this model")
    weights = {name: array.astype(np.float32) for name, array in tensors.items()}
    documents, recipe = open_documents(recipe)
    generation = read_generation_config(folder)
    return Run(recipe, config, generation, tokenizer, documents, weights)


def open_documents(recipe: Recipe) -> tuple[Documents, Recipe]:
    """Open what a recipe trains on -> the documents, and the recipe with the corpus's hash.

    Raises ValueError if the corpus is not the one that the recipe was made with.
    """
    if recipe.corpus is None:
        return Stories(recipe.seed), recipe
    texts, digest = read_corpus(Path(recipe.corpus))
    if recipe.corpus_sha256 not in (None, digest):
        raise ValueError(
            f"{recipe.corpus} has changed since this run began; put the file back, or train anew"
        )
    length = CHARACTERS_PER_TOKEN * recipe.length
    parts = [part for text in texts for part in cut(text, length) if part.strip()]
    return Corpus(parts, recipe.seed), dataclasses.replace(recipe, corpus_sha256=digest)


def random_weights(config: MistralConfig, seed: int) -> dict[str, np.ndarray]:
    """Draw float32 weights: normal with `initializer_range`, 1 in norms.

    What is added to the residual stream is smaller by sqrt(2 · layers), the number of such
    additions, so that their sum is not larger in a deep model (Radford et al. 2019, "Language
    Models are Unsupervised Multitask Learners", section 2.3). The numbers of a tensor follow from
    the seed and its name alone.
    """
    weights = {}
    for name, shape in causal_lm_shapes(config).items():
        if len(shape) == 1:
            weights[name] = np.ones(shape, dtype=np.float32)
            continue
        scale = config.initializer_range
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            scale /= (2 * config.num_hidden_layers) ** 0.5
        random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        weights[name] = random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return weights


# Saving and resuming


def save(run: Run, folder: str | Path) -> None:
    """Write the state, which is one whole file, and the checkpoint as `write_tensors` does.

    So a save that is interrupted leaves the state of this step or of an earlier one. The recipe
    comes last: where there is one, the run can be resumed.
    """
    folder = Path(folder)
    inside = folder / FOLDER
    make_folder(inside)

    def beside(new: Path) -> None:
        run.tokenizer.save_pretrained(new)
        run.config.save_pretrained(new)
        write_generation_config(new, run.config, run.generation_config)

    dtype = NUMPY_DTYPES[run.recipe.dtype]
    weights = {name: array.astype(dtype) for name, array in run.weights.items()}
    with whole_file(inside / STATE_FILE) as temporary:
        write_file(temporary, state(run))
    write_json(inside / CURVE_FILE, dataclasses.asdict(run.curve))
    write_tensors(folder, weights, beside=beside)
    write_json(inside / RECIPE_FILE, dataclasses.asdict(run.recipe))


def state(run: Run) -> dict[str, np.ndarray]:
    """Return all that changes from step to step, as arrays by name."""
    curve = run.curve
    return {
        **{f"weights.{name}": array for name, array in run.weights.items()},
        **{f"optimizer.{name}": array for name, array in run.optimizer.state().items()},
        "step": np.asarray([run.step], dtype=np.int64),
        "next_document": np.asarray([run.next_document], dtype=np.int64),
        "loss": np.asarray(curve.loss, dtype=np.float64),
        "held_out_steps": np.asarray(curve.held_out_steps, dtype=np.int64),
        "held_out_loss": np.asarray(curve.held_out_loss, dtype=np.float64),
    }


def resume(folder: str | Path) -> Run:
    """Open the run of a folder where `save` left it. Raises ValueError if there is none."""
    folder = Path(folder)
    path = folder / FOLDER / RECIPE_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no training run to resume; it has no {FOLDER}/{RECIPE_FILE}"
        )
    documents, recipe = open_documents(read_recipe(path))
    tokenizer = MistralTokenizer.from_pretrained(folder)
    config = MistralConfig.from_pretrained(folder)
    tokenizer.check_vocabulary(config.vocab_size)
    path = folder / FOLDER / STATE_FILE
    arrays = read_file(path)
    names = [name.removeprefix("weights.") for name in arrays]
    check_layers(names, config, f"{folder}: config.json says num_hidden_layers is")
    shapes = causal_lm_shapes(config)
    weights = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    run = Run(recipe, config, read_generation_config(folder), tokenizer, documents, weights)
    if problem := restore(run, arrays):
        raise CheckpointError(
            f"{path} is not the state of this run: {problem}; put back the files that belong "
            f"together, or begin a new run in another folder with --from {folder}"
        )
    return run


def read_recipe(path: Path) -> Recipe:
    """Read what `save` wrote; CheckpointError if it is anything else."""
    recipe, known = read_json(path), dataclasses.asdict(Recipe(corpus="", corpus_sha256=""))
    if recipe.keys() != known.keys():
        differing = listed(sorted(recipe.keys() ^ known.keys()))
        raise CheckpointError(f"{path} is not of this version: it differs in {differing}")
    for name, value in known.items():
        given = recipe[name]
        if isinstance(value, str):
            fits = isinstance(given, str) or (given is None and value == "")
        else:
            least = 1 if name in ("steps", "batch_tokens", "length") else 0
            kinds = (int, float) if isinstance(value, float) else int
            fits = isinstance(given, kinds) and least <= given < math.inf
        if not fits or (name == "dtype" and given not in ("float32", "float16", "bfloat16")):
            raise CheckpointError(f"{path}: {name} is {shown(given)}, expected such as {value!r}")
    return Recipe(**recipe)


def restore(run: Run, arrays: dict[str, np.ndarray]) -> str:
    """Undo `state` on a run before its first step; return what is wrong with the arrays, or ""."""
    curve = {f.name for f in dataclasses.fields(Curve)}
    expected = state(run)

    def kind(name: str, array: np.ndarray) -> tuple[Any, ...]:
        return (array.dtype, array.ndim if name in curve else array.shape)

    wrong = expected.keys() ^ arrays.keys()
    wrong |= {n for n in expected.keys() - wrong if kind(n, expected[n]) != kind(n, arrays[n])}
    if wrong:
        return f"its {listed(sorted(wrong), 3)} are missing, not expected, or of another shape"
    step, steps = int(arrays["step"][0]), int(arrays["optimizer.steps"])
    if not 0 <= step == steps == len(arrays["loss"]) <= run.recipe.steps:
        losses = len(arrays["loss"])
        return f"its step is {step} of {run.recipe.steps}, with {losses} losses and {steps} updates"
    for name, array in run.weights.items():
        array[...] = arrays[f"weights.{name}"]
    prefix = "optimizer."
    run.optimizer.load(
        {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    )
    run.step, run.next_document = step, int(arrays["next_document"][0])
    run.curve = Curve(**{name: arrays[name].tolist() for name in curve})
    return ""
