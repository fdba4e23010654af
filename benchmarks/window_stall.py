"""How much of the window's own time each action takes, and how long it ever stops answering beside a job, with a
checkpoint of 50,000 tensors. Two tables:

    actions   processor time of the window's thread from the action until its outcome is shown and every job that it
              began is done (previews of errors go on): the least, median and worst of the repetitions, and the most in
              one go, from one wait for events to the next, in the best of them. Nothing ticks meanwhile: a timer
              every 5 ms costs 0.1 ms each time. Beside other programs the least is the one to look at: it says how much
              longer the same piece of work takes there
    job       with a timer every 5 ms. longest, p99: between two ticks, with all that other threads and programs took;
              stood still: of that gap, how long a process with nothing to do on one of the cores was not woken either,
              as where the host of a virtual machine stops it (metronome.py); without: the longest gap but for that; its
              own, core: of that one, the processor time of the window's thread, and how long it waited for a core;
              own: the most that it took between two ticks, anywhere in the phase; sum: over the whole phase

    python -m benchmarks.window_stall [--layers 5555] [--keep FOLDER] [--repeat 3] [--run SECONDS] [--profile]
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.main_window import MainWindow
    from benchmarks.loop_watch import Watch

ERRORS = "errors"  # the key of the jobs that preview errors
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.window_stall", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=5555, help="nine tensors each")
    parser.add_argument("--keep", type=Path, help="folder for the checkpoint, reused when it is there")
    parser.add_argument("--repeat", type=int, default=3, help="how often each action is done")
    parser.add_argument("--run", type=float, default=0.0, metavar="SECONDS", help="stop the run after so long")
    parser.add_argument("--profile", action="store_true", help="say what was called in the longest gap of each phase")
    args = parser.parse_args(argv)
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch) / "model"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model.safetensors").exists():
            write_checkpoint(folder, args.layers)
        return _drive(folder, Path(scratch), args.repeat, args.run, args.profile)


def _drive(folder: Path, scratch: Path, repeat: int, run_seconds: float, profile: bool) -> int:
    from PySide6.QtCore import QSettings

    from app.main import Timing, finish_loading, make_application
    from app.main_window import MainWindow
    from app.settings import Settings
    from app.theme import Theme
    from benchmarks.loop_watch import Watch, disturbance

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
    print(f"the same piece of work: {disturbance()}")
    watch = Watch(profile)
    watch.wait(lambda: window.ready)
    watch.begin("nothing at all, one second")
    watch.rest(1.0)
    Driver(window, watch, folder, scratch / "out.gguf").drive(repeat, run_seconds)
    watch.begin("close")
    print(f"the same piece of work: {disturbance()}")
    watch.report_phases()
    window.close()
    return 0


class Driver:
    """The hands and eyes of a user."""

    def __init__(self, window: MainWindow, watch: Watch, folder: Path, out: Path) -> None:
        self.window, self.watch, self.folder, self.out = window, watch, folder, out
        self.session = window.session
        self.panel: Any = window.panel("tensors")
        self.table = self.panel.table

    def drive(self, repeat: int, run_seconds: float) -> None:
        self.actions(repeat)
        self.watch.report_actions()
        self.run(run_seconds)
        if not run_seconds:
            self.compare()

    def settled(self) -> bool:
        """Whether plan and panels are there. Previews of errors go on for as long as there is time."""
        window = self.window
        if window.planner.busy or self.panel.busy or not self.session.planned:
            return False
        return not [job for job in window.jobs.previews() if job.key not in ("", ERRORS)]

    def all_selected(self) -> bool:
        return len(self.session.selection) == len(self.session.plan.tensors) and self.settled()  # type: ignore[union-attr]

    def act(self, name: str, action: Callable[[], object], done: Callable[[], bool] | None = None) -> None:
        if not self.watch.act(name, action, done or self.settled):
            raise SystemExit(f"window_stall: {name} did not end: {self.window.notices.text.text()}")
        self.watch.rest(0.2)

    def clear(self) -> None:
        self.table.clearSelection()
        self.watch.rest(0.2)

    def actions(self, repeat: int) -> None:
        """Each action of the list, in turn, so that a busy minute of the machine meets them all."""
        from PySide6.QtCore import Qt

        from app.edits import AssignStrategy
        from core.recipes.model import Strategy

        session, panel, header = self.session, self.panel, self.table.horizontalHeader()
        for i in range(repeat):
            if i:
                session.close()
                self.watch.rest(1.0)
            self.act("open and plan", lambda: self.window.commands.open_path(self.folder))
            self.watch.rest(1.0)
            for text in ("attn", "re:blk\\.(1|2)\\d+\\.ffn", "q.weight", "layers 77", ""):
                self.act(f"filter {text or 'cleared'!r}", lambda t=text: panel.bar.edit.setText(t))
            for section in (6, 7, 0):
                self.act(
                    f"sort by column {section}",
                    lambda s=section: header.setSortIndicator(s, Qt.SortOrder.DescendingOrder),
                )
            self.act("flat", panel.bar.group_button.toggle)
            self.act("grouped", panel.bar.group_button.toggle)
            for bottom, inspector in (("errormap", "info"), ("errormap", "outliers"), ("rules", "histogram")):
                self.window.show_panel(bottom)
                self.window.show_panel(inspector)
                self.watch.rest(0.5)
                self.act(f"select all by {bottom}, {inspector}", self.table.selectAll, self.all_selected)
                self.clear()
            for bottom, inspector in (("rules", "histogram"), ("errormap", "info")):
                self.window.show_panel(bottom)
                self.window.show_panel(inspector)
                self.table.selectAll()
                self.watch.wait(self.all_selected)
                place = f"by {bottom}, {inspector}"
                self.act(f"assign to all {place}", lambda: panel.assign(Strategy("q4_0")))
                self.act(f"undo {place}", session.undo)
                self.act(f"redo {place}", session.redo)
                self.act(f"undo again {place}", session.undo)
                self.clear()
            assert session.plan is not None
            names = tuple(t.tensor.name for t in session.plan.tensors if t.tensor.role.kind in ("q", "k"))
            self.act(f"assign to {len(names):,}", lambda n=names: session.apply(AssignStrategy(n, Strategy("q4_0"))))
            self.act(f"undo of {len(names):,}", session.undo)
        print(f"{len(session.plan.tensors):,} tensors, {session.plan.nbytes:,} bytes")  # type: ignore[union-attr]

    def run(self, seconds: float) -> None:
        """A job from its start to its end, and all that is done beside it."""
        from PySide6.QtCore import Qt

        from app.panels import PANELS

        window, watch, table = self.window, self.watch, self.table
        window.show_panel("histogram")
        self.clear()
        watch.begin("run, its start, nothing selected")
        began = time.perf_counter()
        window.commands.quantize_to(self.out)
        watch.wait(lambda: bool(window.jobs.running()))
        watch.rest(2.0)
        watch.begin("run, one selected")
        table.selectRow(2)
        watch.rest(1.0)
        for record in PANELS:
            if record.area == "main":
                continue
            watch.begin(f"run, {record.id}, one selected")
            table.clearSelection()
            table.selectRow(3)
            window.show_panel(record.id)
            watch.rest(1.0)
            watch.begin(f"run, {record.id}, all selected")
            table.selectAll()
            watch.rest(1.5)
        self.clear()
        watch.begin("run, scrolled")
        bar = table.verticalScrollBar()
        deadline = time.monotonic() + 2.0
        while window.jobs.running() and time.monotonic() < deadline:
            bar.setValue((bar.value() + 997) % max(1, bar.maximum()))
            watch.rest(0.02)
        watch.begin("run, filtered")
        for text in ("a", "at", "att", "attn", ""):
            self.panel.bar.edit.setText(text)
            watch.rest(0.15)
        watch.begin("run, sorted by its errors")
        for section in (7, 0, 7, 0):
            table.horizontalHeader().setSortIndicator(section, Qt.SortOrder.AscendingOrder)
            watch.rest(0.2)
        if seconds:
            watch.rest(seconds)
            watch.begin("run stopped")
            window.commands.cancel_job()
            watch.wait(lambda: not window.jobs.running())
        else:
            # The jobs panel and the error map follow it, with everything selected: the most there is to do.
            window.show_panel("errormap")
            window.show_panel("info")
            table.selectAll()
            watch.begin("run to its end, all selected")
            assert window.jobs.running(), "the run was over before all was done beside it"
            watch.wait(lambda: not window.jobs.running() and self.session.report is not None)
            print(f"run: {time.perf_counter() - began:.1f} s")
        watch.begin("after the run")
        watch.wait(self.settled)
        watch.rest(1.0)
        self.clear()

    def compare(self) -> None:
        """The checkpoint against the file that was written, in the Compare panel."""
        from PySide6.QtCore import Qt

        watch = self.watch
        panel: Any = self.window.panel("compare")
        watch.begin("compare with the result")
        self.window.show_panel("compare")
        panel.compare_with(str(self.out))
        watch.wait(lambda: not panel.state.running)
        watch.begin("compared")
        watch.rest(1.0)
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
