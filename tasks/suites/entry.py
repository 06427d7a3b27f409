"""One line of a suite's table of models. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """``builder`` is ``module:function`` within the suite; batch sizes are the defaults where a manifest names none."""

    builder: str
    batch_size: int  # training
    eval_batch_size: int  # inference

    def default_batch_size(self, mode: str) -> int:
        return self.eval_batch_size if mode == "inference" else self.batch_size
