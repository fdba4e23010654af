"""Runs benchmarks: `python -m benchmarks` all of them, `python -m benchmarks formats --help` one, with its options."""

from __future__ import annotations

import sys

from benchmarks import formats, headers

if __name__ == "__main__":
    if sys.argv[1:2] == ["formats"]:
        formats.main(sys.argv[2:])
    elif len(sys.argv) == 1:
        formats.main()
        headers.main()
    else:
        raise SystemExit(f"unknown benchmark {sys.argv[1]!r}: there is formats; without a name all are run")
