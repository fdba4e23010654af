"""The File menu. Opening, saving and leaving."""

from __future__ import annotations

from app.actions.record import Action

FILE = (
    Action(
        "open-file",
        "Open checkpoint …",
        "File",
        lambda c: c.open_file(),
        "Ctrl+O",
        "folder-open",
        "A safetensors, GGUF or torch file, or the config.json of a folder",
    ),
    Action(
        "open-folder",
        "Open checkpoint folder …",
        "File",
        lambda c: c.open_folder(),
        "Ctrl+Shift+O",
        "folder-open",
        "A Hugging Face folder",
    ),
    Action(
        "open-demo",
        "Open the demo model",
        "File",
        lambda c: c.open_demo(),
        "",
        "flask",
        "A Llama of three million weights that comes with Quantbench",
    ),
    Action(
        "close-checkpoint",
        "Close checkpoint",
        "File",
        lambda c: c.close_checkpoint(),
        "Ctrl+W",
        enabled=lambda c: c.has_checkpoint,
    ),
    Action(
        "open-recipe",
        "Open recipe …",
        "File",
        lambda c: c.open_recipe(),
        "Ctrl+Shift+R",
        "file-text",
        "Rules from a TOML file",
        section=True,
    ),
    Action(
        "save-recipe",
        "Save recipe …",
        "File",
        lambda c: c.save_recipe(),
        "Ctrl+S",
        "floppy-disk",
        "The rules as a TOML file, for another checkpoint or the command line",
    ),
    Action(
        "export-plot",
        "Export plot …",
        "File",
        lambda c: c.export_plot(values=False),
        "Ctrl+Shift+X",
        "image",
        "The plot in front as a picture, PNG or SVG",
        section=True,
    ),
    Action(
        "export-values",
        "Export plot's values …",
        "File",
        lambda c: c.export_plot(values=True),
        "",
        "file-arrow-down",
        "What the plot in front shows, as CSV",
    ),
    Action("quit", "Quit", "File", lambda c: c.quit(), "Ctrl+Q", section=True),
)
