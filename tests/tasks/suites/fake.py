"""The product's fake tensors, under the name by which the tests of the suites know them."""

from __future__ import annotations

from tasks.suites.fake import fake_tensors

__all__ = ["fake_tensors"]
