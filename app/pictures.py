"""Every picture of the documentation, made anew with one command: each panel in light and dark, at two sizes, from the
demo checkpoint and from one with planted oddities. One function per panel; PICTURES lists them. Needs no display.

    python -m app.pictures [--out docs/images] [--only outliers,histogram] [--theme light|dark] [--size 1280x800]
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt

from app.screenshot import Shots

if TYPE_CHECKING:
    from app.main_window import MainWindow

DEMO = Path(__file__).resolve().parent.parent / "resources" / "demo"
THEMES = ("light", "dark")
SIZES = ("1280x800", "2560x1440")
ODD = "model.layers.0.mlp.down_proj.weight"


def main(argv: Sequence[str] | None = None) -> int:
    """Saves the pictures and prints their paths. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m app.pictures", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the pictures")
    parser.add_argument("--only", default="", help=f"some of {', '.join(PICTURES)}, with commas between")
    parser.add_argument("--theme", choices=THEMES, action="append", help="only this one")
    parser.add_argument("--size", action="append", help="only this one, width×height in pixels")
    args = parser.parse_args(argv)
    wanted = [w for w in args.only.split(",") if w] or list(PICTURES)
    unknown = [w for w in wanted if w not in PICTURES]
    if unknown:
        parser.error(f"no picture is called {', '.join(unknown)}; there are {', '.join(PICTURES)}")
    if sys.platform.startswith("linux"):
        os.environ["QT_QPA_PLATFORM"] = "offscreen"
    args.out.mkdir(parents=True, exist_ok=True)
    missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        odd = write_oddities(Path(scratch))
        for size in args.size or SIZES:
            width, _, height = size.partition("x")
            for theme in args.theme or THEMES:
                shots = Shots(args.out, theme, (int(width), int(height)))
                try:
                    for name in wanted:
                        if not PICTURES[name](shots, odd):
                            sys.stderr.write(f"pictures: {name} was not ready in time\n")
                            missed += 1
                finally:
                    shots.close()
    return 1 if missed else 0


# One function per panel: opens what it needs, waits until the panel has settled, saves. Whether it was ready in time.


def outliers(shots: Shots, odd: Path) -> bool:
    """A spike, a dead column and three loud channels."""
    if not (shots.open(odd) and shots.select(ODD)):
        return False
    panel = shots.show_panel("outliers")
    ready = shots.wait(lambda: panel.state.result is not None and panel.state.result.exact and not panel.busy)
    shots.save_panel("outliers")
    return ready


def errormap(shots: Shots, odd: Path) -> bool:
    """The demo under its preset, every tensor measured, one role selected."""
    if not shots.open(DEMO):
        return False
    panel = shots.show_panel("errormap")
    ready = shots.wait(lambda: panel.state.ready and panel.state.complete)
    layout = panel.state.layout
    if ready and layout is not None:
        line = layout.lines.index("down")
        shots.window.session.select(panel.state.in_cells((line, c) for c in range(1, len(layout.columns))))
        panel.canvas.hovered.emit(line, 1)
    shots.save_panel("errormap")
    return ready


def bench(shots: Shots, odd: Path) -> bool:
    """A tensor of the demo under what GGUF carries."""
    if not (shots.open(DEMO) and shots.select("model.layers.1.mlp.down_proj.weight")):
        return False
    panel = shots.show_panel("bench")

    def done() -> bool:
        state = panel.state
        return state.request is not None and not panel.busy and all(r.final for r in state.listed())

    ready = shots.wait(done)
    shots.save_panel("bench")
    return ready


def _planned(window: MainWindow, preset: str) -> bool:
    return window.session.planned and window.session.recipe.name == preset


def compare(shots: Shots, odd: Path) -> bool:
    """The demo as Q4_K_M and as Q8_0, each against what they were made from."""
    window, folder = shots.window, Path(shots.scratch.name)
    if not shots.open(DEMO):
        return False
    made = [folder / f"demo-{preset}.gguf" for preset in ("Q8_0", "Q4_K_M")]
    for preset, out in zip(("Q8_0", "Q4_K_M"), made, strict=True):
        window.commands.set_preset(preset)
        if not shots.wait(partial(_planned, window, preset)):
            return False
        window.commands.quantize_to(out)
        if not shots.wait(out.exists):
            return False
    window.notices.dismiss()
    panel = shots.show_panel("compare")
    panel.choose("a", str(made[0]))
    panel.choose("source", str(DEMO))
    panel.compare_with(str(made[1]))
    ready = shots.wait(lambda: panel.state.result is not None)
    panel.table.horizontalHeader().setSortIndicator(panel.model.section_of("sqnr"), Qt.SortOrder.AscendingOrder)
    shots.save_panel("compare")
    return ready


PICTURES: dict[str, Callable[[Shots, Path], bool]] = {
    "outliers": outliers,
    "errormap": errormap,
    "bench": bench,
    "compare": compare,
}


def write_oddities(folder: Path) -> Path:
    """A Llama of one layer whose tensors are odd in one way each: a spike, loud channels and a dead column in `down`,
    NaN in `up`, two humps in `gate`, heavy tails in `q`. Made-up weights, the same each time."""
    import numpy as np

    hidden, inner = 512, 1536
    rng = np.random.default_rng(7)

    def gaussian(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns), np.float32) * np.float32(0.02)

    down = gaussian(hidden, inner)
    down[:, [200, 840, 1311]] *= 12
    down[:, 77] = 0
    down[311, 1033] = 1.9
    up = gaussian(inner, hidden)
    up[700, 40] = np.nan
    gate = gaussian(inner, hidden) * np.float32(0.4)
    gate += np.where(rng.random(gate.shape) < 0.5, np.float32(0.05), np.float32(-0.05))
    layer = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": gaussian(512, hidden),
        f"{layer}input_layernorm.weight": np.ones(hidden, np.float32),
        f"{layer}self_attn.q_proj.weight": rng.standard_t(3, (hidden, hidden)).astype(np.float32) * np.float32(0.01),
        f"{layer}self_attn.k_proj.weight": gaussian(hidden, hidden),
        f"{layer}self_attn.v_proj.weight": gaussian(hidden, hidden),
        f"{layer}self_attn.o_proj.weight": gaussian(hidden, hidden),
        f"{layer}post_attention_layernorm.weight": np.ones(hidden, np.float32),
        f"{layer}mlp.gate_proj.weight": gate,
        f"{layer}mlp.up_proj.weight": up,
        ODD: down,
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 512,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    place = folder / "oddities"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header, offset = {}, 0
    for name, w in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(w.shape), "data_offsets": [offset, offset + w.nbytes]}
        offset += w.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (place / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for w in tensors.values():
            file.write(np.ascontiguousarray(w).tobytes())
    return place


if __name__ == "__main__":
    sys.exit(main())
