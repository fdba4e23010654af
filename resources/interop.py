"""The table of docs/interop.md: format × target × runtime, from the registries and the evidence kept with each target.

python -m resources.interop writes it again.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from core.formats import FORMATS
from core.roles import Role
from core.targets import TARGETS
from core.targets.base import OutputTensor, Plain, Target

PAGE = Path(__file__).resolve().parent.parent / "docs" / "interop.md"
BEGIN, END = "<!-- made by python -m resources.interop -->", "<!-- end -->"
# A size that every format fits, and a weight that every container quantizes.
_SAMPLE = OutputTensor("model.layers.0.mlp.down_proj.weight", Plain("w"), (4096, 4096), "BF16", Role("down", 0))


def carried(target: Target) -> list[str]:
    """Names of the listed formats that the target writes."""
    return [f.name for f in FORMATS if f.encodable and target.refuses(f, _SAMPLE) is None]


def evidence(target: Target, name: str) -> dict[str, tuple[str, str]]:
    """Runtime → how it is known to read this format, and where that is shown. The first record wins."""
    found: dict[str, tuple[str, str]] = {}
    for record in target.verified:
        if any(fnmatchcase(name, pattern) for pattern in record.formats):
            found.setdefault(record.runtime, (record.how, record.where))
    return found


def table() -> str:
    lines = []
    for target in TARGETS:
        groups: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
        for name in carried(target):
            seen = tuple((runtime, *said) for runtime, said in evidence(target, name).items())
            groups.setdefault(seen, []).append(name)
        lines += [
            f"### {target.name}",
            "",
            target.help,
            "",
            "| formats | runtime | verified | where |",
            "|---|---|---|---|",
        ]
        for seen, names in groups.items():
            for number, (runtime, how, where) in enumerate(seen or (("", "not tried with any", ""),)):
                lines.append(f"| {', '.join(names) if not number else ''} | {runtime} | {how} | {where} |")
        lines.append("")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with a fresh table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
