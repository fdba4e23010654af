"""How much memory this process has used at most, during a run."""

from __future__ import annotations

import sys


def process_peak() -> int:
    """Peak resident bytes since the process began."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMemory:
    """Peak resident bytes from creation on. Exact when the process's own peak grew meanwhile; else, in a long-lived
    process that once used more, the largest of the samples taken."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._before = process_peak()
        self._largest = 0
        self.sample()

    def sample(self) -> None:
        self._largest = max(self._largest, self._process.memory_info().rss)

    def peak(self) -> int:
        self.sample()
        now = process_peak()
        return now if now > self._before else self._largest
