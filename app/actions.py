"""Every action of the window as one table: the menu bar, the command palette, shortcuts and tooltips come from it.

To add one: a line in ACTIONS, and its handler on Commands (commands.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PySide6.QtGui import QAction, QKeySequence

if TYPE_CHECKING:
    from PySide6.QtWidgets import QWidget

    from app.commands import Commands
    from app.theme import Theme

MENUS = ("File", "Edit", "View", "Run", "Help")


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a user can do.

    menu      which menu it is in; "" for none (the palette and buttons have it still)
    shortcut  as Qt spells it ("Ctrl+O"); "" for none
    handler   called with the window's commands; enabled too (None: always)
    checked   for switches: whether it is on
    section   True puts a line above it in the menu
    """

    id: str
    text: str
    menu: str
    handler: Callable[[Commands], object]
    shortcut: str = ""
    icon: str = ""
    help: str = ""
    enabled: Callable[[Commands], bool] | None = None
    checked: Callable[[Commands], bool] | None = None
    section: bool = False


ACTIONS = (
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
    Action(
        "undo",
        "Undo",
        "Edit",
        lambda c: c.undo(),
        "Ctrl+Z",
        "arrow-u-up-left",
        enabled=lambda c: bool(c.session.undo_label),
    ),
    Action(
        "redo",
        "Redo",
        "Edit",
        lambda c: c.redo(),
        "Ctrl+Shift+Z",
        "arrow-u-up-right",
        enabled=lambda c: bool(c.session.redo_label),
    ),
    Action(
        "filter",
        "Filter tensors",
        "Edit",
        lambda c: c.focus_filter(),
        "Ctrl+F",
        "magnifying-glass",
        "Words that all occur in the name, or re: and a regular expression",
        enabled=lambda c: c.has_checkpoint,
        section=True,
    ),
    Action(
        "assign",
        "Assign strategy …",
        "Edit",
        lambda c: c.tensors.open_picker(),
        "Ctrl+E",
        "tag",
        "A format and method for all selected tensors",
        enabled=lambda c: c.has_selection,
    ),
    Action(
        "keep",
        "Keep unquantized",
        "Edit",
        lambda c: c.keep_selection(),
        "Ctrl+K",
        "lock-simple",
        "The selected tensors stay as they are",
        enabled=lambda c: c.has_selection,
    ),
    Action(
        "by-rules",
        "Let the rules decide",
        "Edit",
        lambda c: c.tensors.assign(None),
        "Ctrl+Backspace",
        "arrow-counter-clockwise",
        "Takes assignments by hand away from the selected tensors",
        enabled=lambda c: c.has_selection,
    ),
    Action(
        "add-rule",
        "Add rule",
        "Edit",
        lambda c: c.add_rule(),
        "Ctrl+Shift+A",
        "plus",
        "A rule that looks like the selected tensor, open for typing",
        enabled=lambda c: c.has_checkpoint,
        section=True,
    ),
    Action(
        "add-rule-for-roles",
        "Add rule for these roles",
        "Edit",
        lambda c: c.tensors.add_rule_like_selection(),
        "",
        "plus",
        "A rule for all tensors of the selected roles",
        enabled=lambda c: c.has_selection,
    ),
    Action(
        "palette",
        "Command palette",
        "View",
        lambda c: c.open_palette(),
        "Ctrl+Shift+P",
        "command",
        "Every action by its name",
    ),
    Action(
        "grouped",
        "Group by block",
        "View",
        lambda c: c.toggle_grouped(),
        "Ctrl+G",
        "tree-structure",
        "Tensors under their block, or one flat list",
        checked=lambda c: c.grouped,
        section=True,
    ),
    Action("fold-all", "Fold all blocks", "View", lambda c: c.tensors.fold_all(True), "Ctrl+Shift+Left"),
    Action("unfold-all", "Unfold all blocks", "View", lambda c: c.tensors.fold_all(False), "Ctrl+Shift+Right"),
    Action(
        "theme-system",
        "Colours as the system",
        "View",
        lambda c: c.set_theme("system"),
        icon="circle-half",
        checked=lambda c: c.theme.mode == "system",
        section=True,
    ),
    Action(
        "theme-light",
        "Light colours",
        "View",
        lambda c: c.set_theme("light"),
        icon="sun",
        checked=lambda c: c.theme.mode == "light",
    ),
    Action(
        "theme-dark",
        "Dark colours",
        "View",
        lambda c: c.set_theme("dark"),
        icon="moon",
        checked=lambda c: c.theme.mode == "dark",
    ),
    Action(
        "density-compact",
        "Compact rows",
        "View",
        lambda c: c.set_density("compact"),
        icon="rows",
        help="More tensors on screen",
        checked=lambda c: c.theme.density == "compact",
        section=True,
    ),
    Action(
        "density-comfortable",
        "Comfortable rows",
        "View",
        lambda c: c.set_density("comfortable"),
        icon="list",
        help="More air between rows and in buttons",
        checked=lambda c: c.theme.density == "comfortable",
    ),
    Action("font-larger", "Larger text", "View", lambda c: c.step_font(10), "Ctrl++", "magnifying-glass-plus"),
    Action("font-smaller", "Smaller text", "View", lambda c: c.step_font(-10), "Ctrl+-", "magnifying-glass-minus"),
    Action("font-usual", "Text as the system", "View", lambda c: c.step_font(0), icon="text-aa"),
    Action("show-tensors", "Go to tensors", "View", lambda c: c.go_to("tensors"), "Ctrl+1", section=True),
    Action("show-histogram", "Go to histogram", "View", lambda c: c.go_to("histogram"), "Ctrl+2"),
    Action("show-outliers", "Go to outliers", "View", lambda c: c.go_to("outliers"), "Ctrl+7"),
    Action("show-bench", "Go to bench", "View", lambda c: c.go_to("bench"), "Ctrl+9"),
    Action("show-compare", "Go to compare", "View", lambda c: c.go_to("compare")),
    Action("show-info", "Go to info", "View", lambda c: c.go_to("info"), "Ctrl+3"),
    Action("show-rules", "Go to rules", "View", lambda c: c.go_to("rules"), "Ctrl+4"),
    Action("show-calibration", "Go to calibration", "View", lambda c: c.go_to("calibration")),
    Action("show-errormap", "Go to error map", "View", lambda c: c.go_to("errormap"), "Ctrl+8"),
    Action("show-experiments", "Go to experiments", "View", lambda c: c.go_to("experiments"), "Ctrl+0"),
    Action("show-jobs", "Go to jobs", "View", lambda c: c.go_to("jobs"), "Ctrl+5"),
    Action("show-log", "Go to log", "View", lambda c: c.go_to("log"), "Ctrl+6"),
    Action(
        "quantize",
        "Quantize …",
        "Run",
        lambda c: c.quantize(),
        "Ctrl+Return",
        "play",
        "Choose the output and write it",
        enabled=lambda c: c.can_quantize,
    ),
    Action(
        "choose-method",
        "Choose method …",
        "Run",
        lambda c: c.choose_method(),
        "Ctrl+M",
        "sliders-horizontal",
        "How codes are chosen, and its parameters, for all that the recipe's last rule decides over",
    ),
    Action(
        "calibrate-text",
        "Calibrate with a text …",
        "Run",
        lambda c: c.choose_calibration("text"),
        "",
        "activity",
        "A text of the kind that the model is used for; methods learn from it which columns matter",
        enabled=lambda c: c.has_checkpoint,
    ),
    Action(
        "calibrate-imatrix",
        "Use an importance matrix …",
        "Run",
        lambda c: c.choose_calibration("imatrix"),
        "",
        "",
        "A file that llama-imatrix or Quantbench wrote",
        enabled=lambda c: c.has_checkpoint,
    ),
    Action(
        "gather",
        "Gather importance now",
        "Run",
        lambda c: c.gather(),
        "",
        "",
        "Sends the samples through the model, so that previews know which columns matter",
        enabled=lambda c: c.can_gather,
    ),
    Action(
        "preflight",
        "Preflight",
        "Run",
        lambda c: c.show_problems(),
        "Ctrl+P",
        "shield-check",
        "What is known before the first byte is written",
        enabled=lambda c: c.has_checkpoint,
    ),
    Action(
        "evaluate-recipe",
        "Evaluate recipe",
        "Run",
        lambda c: c.evaluate_recipe(),
        "Ctrl+Shift+V",
        "gauge",
        "Perplexity and KLD of what the recipe would write, without writing it",
        enabled=lambda c: c.can_quantize,
        section=True,
    ),
    Action(
        "evaluate-result",
        "Evaluate result",
        "Run",
        lambda c: c.evaluate_result(),
        "",
        "gauge",
        "Perplexity and KLD of the written file, against the open checkpoint",
        enabled=lambda c: c.has_result and c.has_checkpoint,
    ),
    Action(
        "evaluation-text",
        "Text for evaluation …",
        "Run",
        lambda c: c.choose_evaluation_text(),
        "",
        "file-text",
        "What evaluations predict, instead of Python's standard library",
    ),
    Action(
        "pause",
        "Pause or resume",
        "Run",
        lambda c: c.toggle_pause(),
        "Ctrl+.",
        "pause",
        "The running job",
        enabled=lambda c: c.is_running,
        section=True,
    ),
    Action(
        "cancel",
        "Cancel job",
        "Run",
        lambda c: c.cancel_job(),
        "Ctrl+Shift+.",
        "stop",
        "What is done is kept until you discard it",
        enabled=lambda c: c.is_running,
    ),
    Action(
        "resume-run",
        "Resume",
        "",
        lambda c: c.resume_run(),
        icon="play",
        help="Continues the run that was stopped",
        enabled=lambda c: c.stopped_run is not None,
    ),
    Action(
        "discard-run",
        "Discard",
        "",
        lambda c: c.discard_run(),
        icon="trash",
        help="Removes what the stopped run left on disk",
        enabled=lambda c: c.stopped_run is not None,
    ),
    Action(
        "open-result",
        "Open result",
        "Run",
        lambda c: c.open_result(),
        "Ctrl+Shift+E",
        "arrow-square-out",
        "The written file as the checkpoint to look at",
        enabled=lambda c: c.has_result,
        section=True,
    ),
    Action(
        "reveal-result",
        "Reveal in folder",
        "Run",
        lambda c: c.reveal_result(),
        "Ctrl+Shift+F",
        "folder",
        "The written file in the system's file manager",
        enabled=lambda c: c.has_result,
    ),
    Action(
        "save-report",
        "Save report …",
        "Run",
        lambda c: c.save_report(),
        "Ctrl+Shift+S",
        "chart-line",
        "The last run as one page: sizes, error of every tensor, recipe, machine",
        enabled=lambda c: c.has_report,
    ),
    Action(
        "compare",
        "Compare with …",
        "Run",
        lambda c: c.compare_with(),
        "Ctrl+D",
        "git-diff",
        "The open checkpoint against another, tensor by tensor",
        enabled=lambda c: c.has_checkpoint,
        section=True,
    ),
    Action(
        "compare-result",
        "Compare result",
        "Run",
        lambda c: c.compare_result(),
        "Ctrl+Shift+D",
        "git-diff",
        "The open checkpoint against the file that was written",
        enabled=lambda c: c.has_checkpoint and c.has_result,
    ),
    Action(
        "save-comparison",
        "Export comparison …",
        "Run",
        lambda c: c.save_comparison(),
        "",
        "file-arrow-down",
        "The tensors that the Compare panel lists, as CSV",
        enabled=lambda c: c.has_comparison,
    ),
    Action(
        "tour",
        "First steps",
        "Help",
        lambda c: c.show_tour(),
        "F1",
        "compass",
        "Four sentences on how to get from a model to a small one",
    ),
    Action("about", "About Quantbench", "Help", lambda c: c.about()),
)


def make_actions(commands: Commands, theme: Theme, parent: QWidget) -> dict[str, QAction]:
    """A QAction for each record, with its shortcut in the tooltip."""
    made: dict[str, QAction] = {}
    for record in ACTIONS:
        action = QAction(record.text, parent)
        action.setObjectName(record.id)
        if record.icon:
            action.setIcon(theme.icon(record.icon))
        if record.shortcut:
            action.setShortcut(QKeySequence(record.shortcut))
        action.setStatusTip(record.help)
        action.setToolTip(tooltip(record, action))
        action.setCheckable(record.checked is not None)
        action.triggered.connect(lambda _=False, r=record: commands.dispatch(r))
        parent.addAction(action)
        made[record.id] = action
    return made


def tooltip(record: Action, action: QAction) -> str:
    """ "Open checkpoint (Ctrl+O)", and what it does on a second line."""
    keys = action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
    text = record.text.removesuffix(" …")
    head = f"{text} ({keys})" if keys else text
    return f"{head}\n{record.help}" if record.help else head


def refresh(actions: dict[str, QAction], commands: Commands) -> None:
    """Enables and checks all actions as things are now."""
    for record in ACTIONS:
        action = actions[record.id]
        if record.enabled is not None:
            action.setEnabled(record.enabled(commands))
        if record.checked is not None:
            action.setChecked(record.checked(commands))
