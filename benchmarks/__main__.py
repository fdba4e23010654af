"""Runs all benchmarks: `python -m benchmarks`."""

from __future__ import annotations

from benchmarks import formats, headers

if __name__ == "__main__":
    formats.main()
    headers.main()
