"""Recording: the golden outputs of any checkpoint, a suite whose weights stay where they are.

Expected numbers are the numpy backend's in float64, computed layer by layer. A recording that was
interrupted goes on after the last layer that it finished, and comes to the same files.
"""

from __future__ import annotations

from pathlib import Path

from tinymistral.checkpoint import find_checkpoint, load_checkpoint
from tinymistral.config import MistralConfig
from tinymistral.golden.external import describe
from tinymistral.golden.recording.layerwise import Tensors
from tinymistral.golden.recording.recorded_suite import RecordedSuite, slug
from tinymistral.golden.recording.recorder import Progress, Recorder, Request
from tinymistral.golden.recording.walking import FEW, MANY, SMALL

MOST_WAYS = 1000
HOW = (
    "Absolute, for each tensor and dtype: factor times the largest error that tinymistral's numpy "
    "backend makes on it in the dtype, weights rounded to it, in {ways} ways (dimensions of the "
    "weights in other orders, a text whole or in two pieces, rotary angles in float64 or float32, "
    "operations that round their result alone or each step); at least one unit roundoff of the "
    "largest expected magnitude. A dtype that does not hold the numbers has none. Expected "
    "numbers: the numpy backend's in {dtype}."
)


def record(
    out: Path, checkpoint: str | Path, request: Request, hashed: bool, progress: Progress
) -> list[str]:
    """Add to the suite in `out`, or begin one; return the ids of the cases of the request.

    `hashed`: read all of the checkpoint's files for their sha256. Raises ValueError.
    """
    folder = find_checkpoint(checkpoint)
    config, tensors = load_checkpoint(folder)
    check(request, config)
    weights = sum(tensor.size for tensor in tensors.values())
    ways = request.ways if request.ways is not None else MANY if weights <= SMALL else FEW
    suite = RecordedSuite(out, HOW.format(ways=ways, dtype=request.dtype))
    name = slug(folder.resolve().name if Path(checkpoint).is_dir() else str(checkpoint))

    def tell(done: int, total: int) -> None:
        progress("bytes hashed", done, total)

    suite.add_model(
        {
            "id": name,
            "says": "a checkpoint that is no part of this suite",
            "config": config.to_dict() | {"architectures": ["MistralForCausalLM"]},
            "layout": "hf",
            "dtype": stored_dtype(tensors),
        },
        lambda last: describe(folder, tensors, tell if hashed and last else None),
    )
    return Recorder(suite, name, config, tensors, request, ways, progress).run()


def check(request: Request, config: MistralConfig) -> None:
    """Raise a ValueError for a request that the model cannot meet."""
    if not request.ids:
        raise ValueError("the text has no tokens; expected at least one")
    for token in request.ids:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"token {token} is not in the vocabulary of {config.vocab_size}")
    if request.ways is not None and not 1 <= request.ways <= MOST_WAYS:
        raise ValueError(f"--ways: expected 1 to {MOST_WAYS}, got {request.ways}")
    if request.new < 0:
        raise ValueError(f"--new: expected 0 or more tokens, got {request.new}")
    proper = slug(request.case)[:80].strip("-")
    if proper != request.case:
        raise ValueError(f"--case: expected a name like {proper!r}, got {request.case!r:.90}")


def stored_dtype(tensors: Tensors) -> str:
    """Return the dtype that weights are stored in; the widest of several."""
    found = {tensor.dtype.name for tensor in tensors.values()}
    return next(dtype for dtype in ("float32", "float16", "bfloat16") if dtype in found)
