"""Spinning kernels on a CUDA device: how its clock is told, its queue is kept full, and other processes on it are noticed."""

from __future__ import annotations

import time

import torch

from tasks.idle import Probe, Quiet, wait_until_idle

PROBE_CYCLES = 400_000
"""0.2 ms at 2 GHz."""


def event() -> torch.cuda.Event:
    """An event that can be timed."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def spin(cycles: int) -> None:
    """Keep the device busy for so many of its cycles."""
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]  # noqa: SLF001 - torch has no public spin


class CudaQueue:
    """The work queued on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def synchronize(self) -> None:
        """Wait for what this process has queued."""
        torch.cuda.synchronize(self._device)

    def wait_until_idle(self, limit_s: float) -> Quiet:
        """Wait for what other processes have queued, for about so long."""
        self.synchronize()
        with torch.cuda.device(self._device):
            return wait_until_idle(self._probe, time.monotonic, limit_s)

    def _probe(self) -> Probe:
        start, end = event(), event()
        began = time.perf_counter()
        start.record()
        spin(PROBE_CYCLES)
        end.record()
        end.synchronize()
        host_ms = 1000 * (time.perf_counter() - began)
        return Probe(float(start.elapsed_time(end)), host_ms)
