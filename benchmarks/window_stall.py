"""How long the window ever stops answering: a timer every 5 ms beside a checkpoint of 50,000 tensors that is opened,
filtered, sorted, assigned, scrolled, quantized and compared. Prints for each phase

    longest, p99   between two ticks, with all that other threads and programs took meanwhile
    own            the most processor time that the window's own thread took between two ticks: what it did in one go
    sum            its processor time over the whole phase: what the action cost the window, until its outcome was shown

    python -m benchmarks.window_stall [--layers 5555] [--keep FOLDER] [--run SECONDS] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.main_window import MainWindow

TICK_MS = 5
START, BETWEEN = "libraries and plots", "between the actions"
# What an action shows is on the screen this long after it is settled; what comes later refines it.
SHOWN_SECONDS = 0.03
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
    """Gaps between the ticks of a timer, by phase; runs the event loop until something is so."""

    def __init__(self, profile: bool = False) -> None:
        from PySide6.QtCore import QEventLoop, Qt, QTimer

        self.gaps: dict[str, list[float]] = {}
        self.own: dict[str, float] = {}
        self.sum: dict[str, float] = {}
        self.worst: dict[str, str] = {}
        self.phase = START
        self._profile = cProfile.Profile(time.thread_time) if profile else None
        self._done: Callable[[], bool] = lambda: True
        self._loop = QEventLoop()
        self._last = time.perf_counter()
        self._last_own = time.thread_time()
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._tick)
        self._timer.start()
        if self._profile is not None:
            self._profile.enable()

    def begin(self, phase: str) -> None:
        self._tick()
        self.phase = phase

    def wait(self, done: Callable[[], bool], seconds: float = 900.0) -> bool:
        """Runs the event loop until done() is true; False when that took too long."""
        deadline = time.monotonic() + seconds
        self._done = lambda: done() or time.monotonic() > deadline
        self._loop.exec()
        self._done = lambda: True
        return time.monotonic() <= deadline

    def rest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > deadline)

    def _tick(self) -> None:
        now, own = time.perf_counter(), 1000 * (time.thread_time() - self._last_own)
        phase = self.phase
        self.gaps.setdefault(phase, []).append(1000 * (now - self._last))
        self.sum[phase] = self.sum.get(phase, 0.0) + own
        if own > self.own.get(phase, 0.0):
            self.own[phase] = own
            if self._profile is not None and own > 10:
                self.worst[phase] = self._described()
        if self._profile is not None:
            self._profile.disable()
            self._profile.clear()
            self._profile.enable()
        self._last, self._last_own = time.perf_counter(), time.thread_time()
        if self._done():
            self._loop.quit()

    def _described(self) -> str:
        """What was called since the last tick, the longest first."""
        assert self._profile is not None
        self._profile.disable()
        text = io.StringIO()
        pstats.Stats(self._profile, stream=text).sort_stats("cumulative").print_stats(28)
        lines = [line for line in text.getvalue().splitlines() if line.strip()]
        start = next((i for i, line in enumerate(lines) if "ncalls" in line), 0)
        return "\n".join(lines[start:])

    def report(self) -> float:
        """Prints all phases, returns the longest gap in milliseconds."""
        print(f"{'phase':<34}{'longest, ms':>12}{'p99, ms':>10}{'own, ms':>10}{'sum, ms':>10}{'ticks':>8}")
        for phase, gaps in self.gaps.items():
            ordered = sorted(gaps)
            p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            print(
                f"{phase:<34}{ordered[-1]:>12.1f}{p99:>10.1f}{self.own.get(phase, 0):>10.1f}"
                f"{self.sum[phase]:>10.0f}{len(ordered):>8}"
            )
        for phase, text in self.worst.items():
            print(f"\n{phase}, {self.own[phase]:.0f} ms in one go:\n{text}")
        return max(max(g) for phase, g in self.gaps.items() if phase != START)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.window_stall", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=5555, help="nine tensors each")
    parser.add_argument("--keep", type=Path, help="folder for the checkpoint, reused when it is there")
    parser.add_argument("--run", type=float, default=0.0, metavar="SECONDS", help="stop the run after so long")
    parser.add_argument("--profile", action="store_true", help="say what was called in the longest gap of each phase")
    args = parser.parse_args(argv)
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch) / "model"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model.safetensors").exists():
            write_checkpoint(folder, args.layers)
        return _drive(folder, Path(scratch), args.run, args.profile)


def _drive(folder: Path, scratch: Path, run_seconds: float, profile: bool) -> int:
    from PySide6.QtCore import QSettings, Qt

    from app.edits import AssignStrategy
    from app.main import Timing, finish_loading, make_application
    from app.main_window import MainWindow
    from app.settings import Settings
    from app.theme import Theme
    from core.recipes.model import Strategy

    os.environ["QUANTBENCH_EXPERIMENTS"] = str(scratch / "experiments.db")
    app = make_application()
    settings = Settings(QSettings(str(scratch / "s.ini"), QSettings.Format.IniFormat))
    settings.set("files/output_folder", str(scratch))
    settings.set("work/recipe", "Q8_0")
    window = MainWindow(Theme(app), settings)
    window.show()
    window.load_panels()
    # As in the program itself, where a person takes longer to choose a file than the libraries take to load.
    finish_loading(window, Timing())
    watch = Watch(profile)
    watch.wait(lambda: window.ready)
    rest = watch.rest
    session, panel = window.session, window.commands.tensors

    def wait(done: Callable[[], bool]) -> None:
        if not watch.wait(done):
            raise SystemExit(f"window_stall: {watch.phase} did not end: {window.notices.text.text()}")

    def settled() -> bool:
        return not window.planner.busy and not panel.busy and session.planned

    def act(phase: str, action: Callable[[], object], seconds: float = 0.3) -> None:
        watch.begin(phase)
        action()
        wait(settled)
        rest(SHOWN_SECONDS)
        watch.begin(BETWEEN)
        rest(seconds)

    def choose_all() -> None:
        panel.table.selectAll()
        wait(lambda: len(session.selection) == len(session.plan.tensors))

    watch.begin("nothing at all, one second")
    rest(1.0)
    act("open and plan", lambda: window.commands.open_path(folder))
    print(f"{len(session.plan.tensors):,} tensors, {session.plan.nbytes:,} bytes")
    watch.begin("error previews")
    rest(2.0)
    for text in ("attn", "re:blk\\.(1|2)\\d+\\.ffn", "q.weight", "layers 77", ""):
        act(f"filter {text or 'cleared'!r}", lambda t=text: panel.bar.edit.setText(t), 0.2)
    header = panel.table.horizontalHeader()
    descending = Qt.SortOrder.DescendingOrder
    for section in (6, 7, 0):
        act(f"sort by column {section}", lambda s=section: header.setSortIndicator(s, descending))
    act("flat", panel.bar.group_button.toggle)
    act("grouped", panel.bar.group_button.toggle)
    for bottom, inspector in (("rules", "histogram"), ("errormap", "info"), ("errormap", "outliers")):
        window.show_panel(bottom)
        window.show_panel(inspector)
        rest(0.5)
        act(f"select all by {bottom}, {inspector}", choose_all, 0.5)
        panel.table.clearSelection()
        rest(0.5)
    panel.table.selectAll()
    rest(0.5)
    act("assign to all", lambda: panel.assign(Strategy("q4_0")))
    act("undo", session.undo)
    act("redo", session.redo)
    act("undo again", session.undo)
    panel.table.clearSelection()
    rest(0.3)
    names = tuple(t.tensor.name for t in session.plan.tensors if t.tensor.role.kind in ("q", "k"))
    act("assign to 11,110", lambda: session.apply(AssignStrategy(names, Strategy("q4_0"))))
    act("undo of 11,110", session.undo)
    window.show_panel("histogram")
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
    watch.begin("run, sorted by its errors")
    for _ in range(4):
        header.setSortIndicator(7, Qt.SortOrder.AscendingOrder)
        rest(0.2)
        header.setSortIndicator(0, Qt.SortOrder.AscendingOrder)
        rest(0.2)
    watch.begin("run, all selected")
    panel.table.selectAll()
    rest(2.0)
    panel.table.clearSelection()
    watch.begin("run, error map shown")
    window.show_panel("errormap")
    rest(2.0)
    if run_seconds:
        rest(run_seconds)
        watch.begin("run stopped")
        window.commands.cancel_job()
        wait(lambda: not window.jobs.running())
    else:
        watch.begin("run to its end")
        wait(lambda: not window.jobs.running() and session.report is not None)
        print(f"run: {time.perf_counter() - began:.1f} s")
    act("after the run", lambda: None, 0.5)
    if not run_seconds:
        _compare(window, watch, out)
    watch.begin("close")
    longest = watch.report()
    window.close()
    print(f"longest stall: {longest:.1f} ms")
    return 0


def _compare(window: MainWindow, watch: Watch, out: Path) -> None:
    """The checkpoint against the file that was written, in the Compare panel."""
    from PySide6.QtCore import Qt

    panel: Any = window.panel("compare")
    watch.begin("compare with the result")
    window.show_panel("compare")
    panel.compare_with(str(out))
    watch.wait(lambda: not panel.state.running)
    watch.begin("compare, sorted")
    for section in (2, 5, 0):
        panel.table.horizontalHeader().setSortIndicator(section, Qt.SortOrder.DescendingOrder)
        watch.rest(0.3)
    watch.begin("compare, filtered")
    for text in ("a", "at", "attn_q", ""):
        panel.words.setText(text)
        watch.rest(0.3)
    watch.begin("compare, all selected")
    panel.table.selectAll()
    watch.rest(1.0)


if __name__ == "__main__":
    sys.exit(main())
