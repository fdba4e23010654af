"""How long the window ever stops answering: a timer every 5 ms beside a checkpoint of 50,000 tensors that is opened,
filtered, sorted, assigned, scrolled and quantized. Prints each phase's longest gap and 99th percentile, and the most
processor time that the window's own thread took in one gap, which other programs on the machine do not change.

    python -m benchmarks.window_stall [--layers 5555] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TICK_MS = 5
HIDDEN = 32
PARTS = {
    "self_attn.q_proj": 2,
    "self_attn.k_proj": 2,
    "self_attn.v_proj": 2,
    "self_attn.o_proj": 2,
    "mlp.gate_proj": 2,
    "mlp.up_proj": 2,
    "mlp.down_proj": 2,
    "input_layernorm": 1,
    "post_attention_layernorm": 1,
}


def write_checkpoint(folder: Path, layers: int) -> None:
    """A Llama of many tiny layers: names and counts of a large model, few bytes. Weights are small and never equal."""
    import numpy as np

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 64,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header: dict[str, object] = {}
    offset = 0

    def add(name: str, shape: tuple[int, ...]) -> None:
        nonlocal offset
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size

    add("model.embed_tokens.weight", (64, HIDDEN))
    add("model.norm.weight", (HIDDEN,))
    for layer in range(layers):
        for part, dimensions in PARTS.items():
            add(f"model.layers.{layer}.{part}.weight", (HIDDEN,) * dimensions)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(1)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        left = offset // 2
        while left:
            count = min(left, 1 << 22)
            values = rng.standard_normal(count, np.float32) * 0.05
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            left -= count


class Watch:
    """Gaps between the ticks of a timer, by phase."""

    def __init__(self) -> None:
        from PySide6.QtCore import Qt, QTimer

        self.gaps: dict[str, list[float]] = {}
        self.own: dict[str, float] = {}
        self.phase = "start"
        self._last = time.perf_counter()
        self._last_own = time.thread_time()
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._tick)
        self._timer.start()

    def begin(self, phase: str) -> None:
        self._tick()
        self.phase = phase

    def _tick(self) -> None:
        now, own = time.perf_counter(), time.thread_time()
        self.gaps.setdefault(self.phase, []).append(1000 * (now - self._last))
        self.own[self.phase] = max(self.own.get(self.phase, 0.0), 1000 * (own - self._last_own))
        self._last, self._last_own = now, own

    def report(self) -> float:
        """Prints all phases, returns the longest gap in milliseconds."""
        print(f"{'phase':<34}{'longest, ms':>12}{'p99, ms':>10}{'own, ms':>10}{'ticks':>8}")
        for phase, gaps in self.gaps.items():
            ordered = sorted(gaps)
            p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            print(f"{phase:<34}{ordered[-1]:>12.1f}{p99:>10.1f}{self.own[phase]:>10.1f}{len(ordered):>8}")
        return max(max(g) for phase, g in self.gaps.items() if phase != "start")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.window_stall", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=5555, help="nine tensors each")
    parser.add_argument("--keep", type=Path, help="folder for the checkpoint, reused when it is there")
    args = parser.parse_args(argv)
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch) / "model"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model.safetensors").exists():
            write_checkpoint(folder, args.layers)
        return _drive(folder, Path(scratch))


def _drive(folder: Path, scratch: Path) -> int:
    from PySide6.QtCore import QSettings, Qt

    from app.main import Timing, finish_loading, make_application
    from app.main_window import MainWindow
    from app.settings import Settings
    from app.theme import Theme
    from core.recipes.model import Strategy

    app = make_application()
    settings = Settings(QSettings(str(scratch / "s.ini"), QSettings.Format.IniFormat))
    settings.set("files/output_folder", str(scratch))
    settings.set("work/recipe", "Q8_0")
    window = MainWindow(Theme(app), settings)
    window.show()
    window.load_panels()
    # As in the program itself, where a person takes longer to choose a file than the libraries take to load.
    finish_loading(window, Timing()).join()
    watch = Watch()

    def wait(done: Callable[[], bool], seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise SystemExit(f"window_stall: {watch.phase} did not end: {window.notices.text.text()}")
            app.processEvents()
            time.sleep(0.0005)

    def rest(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        wait(lambda: time.monotonic() > deadline)

    session, panel = window.session, window.commands.tensors

    def settled() -> bool:
        return session.planned and not window.planner.busy and not panel.busy

    watch.begin("open and plan")
    window.commands.open_path(folder)
    wait(settled)
    print(f"{len(session.plan.tensors):,} tensors, {session.plan.nbytes:,} bytes")
    watch.begin("error previews")
    rest(2.0)
    for text in ("attn", "re:blk\\.(1|2)\\d+\\.ffn", "q.weight", "layers 77", ""):
        watch.begin(f"filter {text or 'cleared'!r}")
        panel.bar.edit.setText(text)
        wait(settled)
        rest(0.2)
    for section in (6, 7, 0):
        watch.begin(f"sort by column {section}")
        panel.table.horizontalHeader().setSortIndicator(section, Qt.SortOrder.DescendingOrder)
        rest(0.3)
    watch.begin("flat and grouped")
    panel.bar.group_button.toggle()
    rest(0.2)
    panel.bar.group_button.toggle()
    rest(0.2)
    watch.begin("select all")
    panel.table.selectAll()
    wait(lambda: len(session.selection) == len(session.plan.tensors))
    rest(0.3)
    panel.table.clearSelection()
    rest(0.3)
    watch.begin("assign 11,110 and plan")
    names = tuple(t.tensor.name for t in session.plan.tensors if t.tensor.role.kind in ("q", "k"))
    rest(0.2)
    from app.edits import AssignStrategy

    session.apply(AssignStrategy(names, Strategy("q4_0")))
    wait(settled)
    watch.begin("undo and plan")
    session.undo()
    wait(settled)
    watch.begin("run, nothing touched")
    out = scratch / "out.gguf"
    began = time.perf_counter()
    window.commands.quantize_to(out)
    wait(lambda: bool(window.jobs.running()))
    rest(2.0)
    watch.begin("run, scrolled")
    bar = panel.table.verticalScrollBar()
    deadline = time.monotonic() + 3.0
    while window.jobs.running() and time.monotonic() < deadline:
        bar.setValue((bar.value() + 997) % max(1, bar.maximum()))
        rest(0.02)
    watch.begin("run, filtered")
    for text in ("a", "at", "att", "attn", ""):
        panel.bar.edit.setText(text)
        rest(0.15)
    watch.begin("run to its end")
    wait(lambda: not window.jobs.running() and session.report is not None)
    print(f"run: {time.perf_counter() - began:.1f} s")
    watch.begin("after the run")
    wait(settled)
    rest(0.5)
    watch.begin("close")
    longest = watch.report()
    window.close()
    print(f"longest stall: {longest:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
