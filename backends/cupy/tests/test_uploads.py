"""Uploads give the right numbers, and wait for a copy before they overwrite its source."""

from __future__ import annotations

import numpy as np
import pytest

from cuda_emulator import cupy_stand_in as cp
from cuda_emulator.cupy_stand_in._card import Overwritten
from tinymistral_cupy.uploads import Upload

IDS = [[1, 2, 3], [4, 5, 6], [7], [7], [2, 0, 2, 0, 9], [9, 8]]  # fewer, the same, and more
TABLE = 10 * np.arange(10, dtype=np.float32)


def all_taken(upload: Upload) -> list[list[float]]:
    """Gather each of IDS from TABLE, and fetch the results only after the last upload."""
    table = cp.asarray(TABLE)
    taken = [cp.take(table, upload(np.array(ids, dtype=np.int64)), axis=0) for ids in IDS]
    return [array.get().tolist() for array in taken]


def test_what_was_launched_before_the_next_upload_reads_the_one_before():
    assert all_taken(Upload(cp)) == [[10 * n for n in ids] for ids in IDS]


@pytest.mark.parametrize("missing", ["synchronize", "record"])
def test_a_missing_wait_and_a_missing_record_are_found(missing, monkeypatch):
    upload = Upload(cp)
    monkeypatch.setattr(cp.cuda.Event, missing, lambda event: None)
    with pytest.raises(Overwritten, match="pinned memory was written to while it may be copied"):
        all_taken(upload)


def test_a_record_before_its_copy_is_found(monkeypatch):
    upload = Upload(cp)
    copy = cp.ndarray.set

    def too_late(array, host):
        upload._copied.record()
        monkeypatch.setattr(cp.cuda.Event, "record", lambda event: None)
        copy(array, host)

    monkeypatch.setattr(cp.ndarray, "set", too_late)
    with pytest.raises(Overwritten):
        all_taken(upload)
