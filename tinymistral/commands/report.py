"""What `generate` tells of itself: `--json` and `--stats`."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tinymistral.backend import Backend


@dataclass
class Report:
    """The text of a run and how it came about; filled in as it does.

    The ids, and their log-probabilities, are all that were generated: those of a stop string and
    of </s> too, which the text leaves out.
    """

    prompt: str
    prompt_ids: list[int]
    seed: int | None  # None: nothing is drawn
    load_seconds: float
    prefill_seconds: float = 0.0  # to the first new token
    decode_seconds: float = 0.0  # from there to the last
    texts: list[str] = field(default_factory=list)  # joined, the continuation
    continuation_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    answers: bool = False  # a message, rather than continue a text
    finish_reason: str = "length"  # "eos": the model ended the text; "stop": a stop string came

    def as_json(self) -> str:
        """The report as a JSON object, on one line."""
        continuation = "".join(self.texts)
        fields = {
            "text": continuation if self.answers else self.prompt + continuation,
            "ids": self.prompt_ids + self.continuation_ids,
            "prompt": self.prompt,
            "prompt_ids": self.prompt_ids,
            "continuation": continuation,
            "continuation_ids": self.continuation_ids,
            # NaN, which a broken checkpoint may give, is not JSON.
            "logprobs": [x if math.isfinite(x) else None for x in self.logprobs],
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "counts": {
                "prompt_tokens": len(self.prompt_ids),
                "new_tokens": len(self.continuation_ids),
            },
            "timings": {
                "load_seconds": self.load_seconds,
                "prefill_seconds": self.prefill_seconds,
                "decode_seconds": self.decode_seconds,
            },
        }
        return json.dumps(fields, ensure_ascii=False, allow_nan=False)

    def as_stats(self, backend: Backend) -> str:
        """Speed and memory, on one line."""
        decoded = max(0, len(self.continuation_ids) - 1)  # the first comes out of the prefill
        parts = [
            f"load {self.load_seconds:.3f} s",
            f"prefill {_speed(len(self.prompt_ids), self.prefill_seconds)}",
            f"decode {_speed(decoded, self.decode_seconds)}",
            f"backend {backend.name} {backend.dtype}",
        ]
        if memory := peak_memory():
            parts.append(f"peak memory {memory / 1e6:.0f} MB")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return "; ".join(parts)


def _speed(tokens: int, seconds: float) -> str:
    rate = f", {tokens / seconds:.0f} tokens/s" if tokens and seconds else ""
    return f"{tokens} tokens in {seconds:.3f} s{rate}"


def peak_memory() -> int:
    """Return the most bytes this process has had in memory; 0 where that is not told."""
    status = Path("/proc/self/status")  # Linux
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text("utf-8"))):
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    # Linux's own figure here would be at least that of the process which started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
