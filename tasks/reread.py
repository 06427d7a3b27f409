"""What libraries have read while they were imported, and a forked worker has otherwise. Standard library only; imports none of them.

Most of it cannot differ, for it is part of the key of the parent (``tasks.prepared``). The rest is here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

NEVER_AGAIN = "TORCH_CACHING_PRECOMPILE"
"""Environment variable that has torch use a directory which it has chosen while it was imported."""


def reread() -> None:
    """Have the libraries that are imported look at this process's environment, and draw numbers of their own."""
    _compile_threads()
    _directories()
    _random_numbers()


def _compile_threads() -> None:
    config: Any = sys.modules.get("torch._inductor.config")
    if config is not None:
        config.compile_threads = int(os.environ["TORCHINDUCTOR_COMPILE_THREADS"])


def _directories() -> None:
    """Inductor's compiled headers, which lie in the temporary directory: an attempt that starts cold has none."""
    codecache: Any = sys.modules.get("torch._inductor.codecache")
    if hasattr(codecache, "_HEADER_DIR"):
        chosen = codecache._HEADER_DIR  # noqa: SLF001 - no setting leads there
        codecache._HEADER_DIR = str(Path(codecache.default_cache_dir(), Path(chosen).name))  # noqa: SLF001
        if hasattr(codecache, "_HEADER_LOCK_DIR"):
            below = Path(codecache._HEADER_LOCK_DIR).relative_to(chosen)  # noqa: SLF001
            codecache._HEADER_LOCK_DIR = str(Path(codecache._HEADER_DIR, below))  # noqa: SLF001


def _random_numbers() -> None:
    """Python's own generator is seeded anew by every fork."""
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
