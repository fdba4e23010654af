"""The only modal questions of the window: choosing files, and what to do with running jobs when it closes. The window
gets them as an object, so that tests answer by themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from PySide6.QtWidgets import QFileDialog, QMessageBox, QWidget

CloseAnswer = Literal["pause", "discard", "stay"]

_CHECKPOINTS = "Checkpoints (*.safetensors *.gguf *.pt *.pth *.bin *.json *.ckpt);;All files (*)"
_RECIPES = "Recipes (*.toml);;All files (*)"

_TEXTS = "Texts (*.txt *.md *.raw *.json *.jsonl *.py);;All files (*)"
_IMATRICES = "Importance matrices (*.gguf *.dat *.imatrix);;All files (*)"


class Dialogs(Protocol):
    """Every question returns None (or "stay") when the user thinks better of it."""

    def open_file(self, parent: QWidget, folder: str) -> Path | None: ...

    def open_folder(self, parent: QWidget, folder: str) -> Path | None: ...

    def save_output(self, parent: QWidget, suggested: Path, folder: bool, suffix: str) -> Path | None:
        """Where the output goes. For one file, the user has agreed to replace what is there."""

    def open_recipe(self, parent: QWidget, folder: str) -> Path | None: ...

    def save_recipe(self, parent: QWidget, suggested: Path) -> Path | None: ...

    def open_calibration(self, parent: QWidget, kind: str, folder: str) -> Path | None:
        """kind: "text" or "imatrix"."""

    def save_file(self, parent: QWidget, title: str, suggested: Path, kinds: str) -> Path | None:
        """Any other file; kinds as Qt spells them, "Page (*.html)". The user has agreed to replace what is there."""

    def ask_close(self, parent: QWidget, runs: tuple[str, ...], others: tuple[str, ...]) -> CloseAnswer: ...


class NativeDialogs:
    """The system's own dialogs."""

    def open_file(self, parent: QWidget, folder: str) -> Path | None:
        name, _ = QFileDialog.getOpenFileName(parent, "Open checkpoint", folder, _CHECKPOINTS)
        return Path(name) if name else None

    def open_folder(self, parent: QWidget, folder: str) -> Path | None:
        name = QFileDialog.getExistingDirectory(parent, "Open checkpoint folder", folder)
        return Path(name) if name else None

    def save_output(self, parent: QWidget, suggested: Path, folder: bool, suffix: str) -> Path | None:
        if folder:
            # A new folder is named like a file. Whether an existing one may be used is for preflight to say.
            name, _ = QFileDialog.getSaveFileName(
                parent, "Name the output folder", str(suggested), options=QFileDialog.Option.DontConfirmOverwrite
            )
        else:
            kind = f"*{suffix}" if suffix else "*"
            name, _ = QFileDialog.getSaveFileName(
                parent, "Write output", str(suggested), f"Output ({kind});;All files (*)"
            )
        return Path(name) if name else None

    def open_recipe(self, parent: QWidget, folder: str) -> Path | None:
        name, _ = QFileDialog.getOpenFileName(parent, "Open recipe", folder, _RECIPES)
        return Path(name) if name else None

    def save_recipe(self, parent: QWidget, suggested: Path) -> Path | None:
        name, _ = QFileDialog.getSaveFileName(parent, "Save recipe", str(suggested), _RECIPES)
        if not name:
            return None
        path = Path(name)
        return path if path.suffix else path.with_suffix(".toml")

    def open_calibration(self, parent: QWidget, kind: str, folder: str) -> Path | None:
        title, kinds = ("Open importance matrix", _IMATRICES) if kind == "imatrix" else ("Open text", _TEXTS)
        name, _ = QFileDialog.getOpenFileName(parent, title, folder, kinds)
        return Path(name) if name else None

    def save_file(self, parent: QWidget, title: str, suggested: Path, kinds: str) -> Path | None:
        name, _ = QFileDialog.getSaveFileName(parent, title, str(suggested), f"{kinds};;All files (*)")
        if not name:
            return None
        path = Path(name)
        return path if path.suffix else path.with_suffix(suggested.suffix)

    def ask_close(self, parent: QWidget, runs: tuple[str, ...], others: tuple[str, ...]) -> CloseAnswer:
        """runs can go on at the next start; others begin anew whenever they are asked for again."""
        box = QMessageBox(parent)
        box.setIcon(QMessageBox.Icon.Question)
        box.setWindowTitle("Close Quantbench")
        titles = (*runs, *others)
        box.setText(f"{titles[0]} is not finished." if len(titles) == 1 else f"{len(titles)} jobs are not finished.")
        lines = []
        if runs:
            lines.append("A paused run keeps what is done, and can go on at the next start.")
        if others:
            lines.append(f"{', '.join(others)}: cannot be paused, and will be stopped.")
        box.setInformativeText("\n".join(lines))
        pause = box.addButton("Pause and close", QMessageBox.ButtonRole.AcceptRole) if runs else None
        word = "Discard and close" if runs else "Stop and close"
        discard = box.addButton(word, QMessageBox.ButtonRole.DestructiveRole)
        stay = box.addButton("Stay", QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(pause if pause is not None else stay)
        box.setEscapeButton(stay)
        box.exec()
        if pause is not None and box.clickedButton() is pause:
            return "pause"
        return "discard" if box.clickedButton() is discard else "stay"
