"""Every picture of the documentation: each panel and state in light and dark, at two sizes, from the demo checkpoint
and from one with planted oddities. Needs no display.

    python -m app.pictures [--out docs/images] [--only outliers,histogram] [--theme light|dark] [--size 1280x800]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from app.pictures.oddities import write_oddities
from app.pictures.scenes import SCENES
from app.pictures.stage import Stage

THEMES = ("light", "dark")
SIZES = ("1280x800", "2560x1440")
# The screen of the offscreen platform: large enough for the largest window, so that popovers find their room.
SCREEN = """{"screens": [{"name": "pictures", "x": 0, "y": 0, "width": 3840, "height": 2160, "logicalDpi": 96,
"logicalBaseDpi": 96, "dpr": 1}]}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Saves the pictures and prints their paths. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m app.pictures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the pictures")
    parser.add_argument("--only", default="", help=f"some of {', '.join(SCENES)}, with commas between")
    parser.add_argument("--theme", choices=THEMES, action="append", help="only this one")
    parser.add_argument("--size", action="append", help="only this one, width×height in pixels")
    args = parser.parse_args(argv)
    wanted = [w for w in args.only.split(",") if w] or list(SCENES)
    unknown = [w for w in wanted if w not in SCENES]
    if unknown:
        parser.error(f"no picture is called {', '.join(unknown)}; there are {', '.join(SCENES)}")
    sizes = [(int(w), int(h)) for w, _, h in (size.partition("x") for size in args.size or SIZES)]
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quantbench-") as scratch:
        folder = Path(scratch)
        if sys.platform.startswith("linux"):
            (folder / "screen.json").write_text(SCREEN, encoding="utf-8")
            os.environ["QT_QPA_PLATFORM"] = f"offscreen:configfile={folder / 'screen.json'}"
        os.environ["QUANTBENCH_EXPERIMENTS"] = str(folder / "experiments.sqlite")
        stage = Stage(args.out, folder, write_oddities(folder), args.theme or THEMES, sizes)
        try:
            for name in wanted:
                if not SCENES[name](stage, name):
                    stage.missed.append(name)
                    sys.stderr.write(f"pictures: {name} was not ready in time\n")
        finally:
            stage.close()
    from app.main import leave_if_stuck

    status = 1 if stage.missed else 0
    leave_if_stuck(stage.window, status)
    return status


if __name__ == "__main__":
    sys.exit(main())
