"""Runs benchmarks: `python -m benchmarks` those of `make bench`, `python -m benchmarks formats --help` one, with its
options."""

from __future__ import annotations

import sys
from importlib import import_module

# What `make bench` prints, in order, with the options that keep it short.
SHORT: dict[str, list[str]] = {
    "formats": [],
    "headers": [],
    "startup": ["--runs", "3"],
    "first_paint": ["--rounds", "3"],
    "quality": [],
}
WITH_OPTIONS = ("formats", "startup", "first_paint", "opening", "window_stall", "quality", "published")

if __name__ == "__main__":
    name, *options = sys.argv[1:] or [""]
    if name in WITH_OPTIONS:
        sys.exit(import_module(f"benchmarks.{name}").main(options))
    if name:
        raise SystemExit(
            f"unknown benchmark {name!r}: there are {', '.join(WITH_OPTIONS)}; without a name some are run"
        )
    for each, short in SHORT.items():
        main = import_module(f"benchmarks.{each}").main
        print(f"\n{each}")
        main(short) if each in WITH_OPTIONS else main()
