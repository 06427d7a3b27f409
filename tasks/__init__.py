"""The worker side of a sweep: build one model, time it eager and compiled, prove both compute the same.

Nothing in this package imports ``orchestrator``, ray, pydantic, pyarrow or yaml, so a GPU node needs only torch and the model libraries.
"""

PROTOCOL_VERSION = 1
"""Part of every task's digest: raise it when a change here can move a measured number."""
