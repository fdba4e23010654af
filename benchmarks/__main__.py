"""`python -m benchmarks`: the short tables, each in a process of its own; `python -m benchmarks NAME [OPTIONS]`: one of
them in full."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

# What `make bench` prints, in order, with the options that keep it short.
SHORT: dict[str, list[str]] = {
    "formats": ["--seconds", "0.25"],
    "headers": [],
    "startup": ["--runs", "3"],
    "first_paint": ["--rounds", "3"],
    "quality": [],
}
WITH_OPTIONS = (
    "formats",
    "threads",
    "first_use",
    "startup",
    "first_paint",
    "opening",
    "window_stall",
    "quality",
    "published",
)

if __name__ == "__main__":
    name, *options = sys.argv[1:] or [""]
    if name in WITH_OPTIONS:
        sys.exit(import_module(f"benchmarks.{name}").main(options))
    if name in SHORT:
        sys.exit(import_module(f"benchmarks.{name}").main())
    if name:
        known = ", ".join(dict.fromkeys((*SHORT, *WITH_OPTIONS)))
        raise SystemExit(f"unknown benchmark {name!r}: there are {known}; without a name some are run")
    failed = 0
    for each, short in SHORT.items():
        print(f"\n{each}", flush=True)
        # What one of them imports or keeps in memory is nothing to the next.
        failed |= subprocess.run([sys.executable, "-m", "benchmarks", each, *short], check=False).returncode
    sys.exit(failed)
