"""The files of a raw checkpoint, as Mistral publishes them, and how to recognize one.

params.json                 sizes and constants, under other names than config.json's
consolidated.00.pth         the tensors, under other names, queries and keys in another order
consolidated.safetensors    the same tensors; if both are there, this one is read
tokenizer.model             or tokenizer.model.v1, .v2, .v3 or .v7, the version of the vocabulary
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tinymistral.files import CheckpointError

if TYPE_CHECKING:
    import numpy as np

CONFIG_FILE = "config.json"  # of a checkpoint in Hugging Face's format
PARAMS_FILE = "params.json"
SAFETENSORS_FILE = "consolidated.safetensors"
PTH_FILE = "consolidated.00.pth"


def is_raw(folder: Path) -> bool:
    """Return whether a folder holds a raw checkpoint: it has a params.json and no config.json."""
    return not (folder / CONFIG_FILE).exists() and (folder / PARAMS_FILE).is_file()


def read_consolidated(folder: Path) -> dict[str, np.ndarray]:
    """Map the tensors of a raw checkpoint as they are stored. Raises CheckpointError."""
    # Imported here, so that a configuration alone does not import NumPy.
    from tinymistral.files.pth import read_pth
    from tinymistral.files.recognition import refuse_files
    from tinymistral.files.safetensors import read_file

    if (folder / SAFETENSORS_FILE).exists():
        return read_file(folder / SAFETENSORS_FILE)
    if not (folder / PTH_FILE).exists():
        refuse_files(folder)
        raise CheckpointError(
            f"{folder} has {PARAMS_FILE}, but no {PTH_FILE} and no {SAFETENSORS_FILE}; "
            "download the weights too"
        )
    if (folder / "consolidated.01.pth").exists():
        raise CheckpointError(f"{folder / PTH_FILE} is only a part; expected the weights in one")
    return read_pth(folder / PTH_FILE)
