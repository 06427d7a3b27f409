"""The driver side of a sweep: manifests, plan, scheduling on Ray, results, answers. Never imports torch."""

__version__ = "0.1.0"
