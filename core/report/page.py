"""The report's HTML: tiles, charts, tables, recipe, machine. Everything that comes from a file is escaped; the page
allows itself no script and no address (see the policy in its head).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from core.engine.progress import bytes_text, duration_text
from core.report.charts import Chart, bytes_by_role, error_by_strategy, error_map
from core.report.facts import Facts, Row

WORST = 20
# More tensors than this make a page that browsers open slowly: then those with the largest error are listed.
LISTED = 20_000
_SAID = 200  # lines of fallbacks and warnings

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
"""


def page_of(facts: Facts) -> str:
    """The whole page."""
    style = files("resources").joinpath("styles", "report.css").read_text(encoding="utf-8")
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts.made))
    parts = [
        _HEAD.format(title=escape(facts.title), style=style),
        f"<header><h1>{escape(facts.title)}</h1>",
        f"<p>{escape(facts.target)} · {when} · Quantbench {escape(dict(facts.versions).get('Quantbench', ''))}</p>",
        "</header>",
        _tiles(facts),
        _said("Not as asked", facts.fallbacks, "bad"),
        _said("Warnings before the run", facts.warnings, "warn"),
        _said("Notes", facts.notes, ""),
        *map(_chart, (error_map(facts), error_by_strategy(facts), bytes_by_role(facts))),
        _worst(facts),
        _strategies(facts),
        _recipe(facts),
        _surroundings(facts),
        _all_tensors(facts),
        "</main>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _tiles(facts: Facts) -> str:
    measured = [r.sqnr_db for r in facts.measured if r.sqnr_db is not None]
    tiles = [
        ("size", f"{bytes_text(facts.source_bytes)} → {bytes_text(facts.nbytes)}", f"{facts.nbytes:,} bytes"),
        ("bits per weight", f"{facts.bpw:.2f}", f"{len(facts.rows):,} tensors"),
    ]
    if measured:
        mean = sum(measured) / len(measured)
        tiles.append(("SQNR, mean", f"{mean:.1f} dB", f"worst {measured[0]:.1f} dB"))
    speed = f"{facts.weights_per_second / 1e6:.3g} M weights/s" if facts.weights_per_second >= 1e5 else ""
    tiles.append(("time", duration_text(facts.seconds), speed))
    if facts.peak_rss_bytes:
        tiles.append(("peak memory", bytes_text(facts.peak_rss_bytes), ""))
    count = len(facts.fallbacks)
    tiles.append(
        (
            "not as asked",
            f"{count:,}" if count else "nothing",
            "" if not count else "fallback" if count == 1 else "fallbacks",
        )
    )
    made = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in tiles
    )
    return f'<dl class="tiles">{made}</dl>'


def _said(title: str, lines: Sequence[str], kind: str) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:_SAID])
    more = f"<li>and {len(lines) - _SAID:,} more</li>" if len(lines) > _SAID else ""
    return f'<section class="said {kind}"><h2>{escape(title)}</h2><ul>{items}{more}</ul></section>'


def _chart(chart: Chart | None) -> str:
    if chart is None:
        return ""
    title, drawing = chart
    return f'<section><h2>{escape(title)}</h2><div class="chart">{drawing}</div></section>'


def _worst(facts: Facts) -> str:
    rows = facts.measured[:WORST]
    if not rows:
        return ""
    title = f"The {len(rows)} with the largest error"
    return f"<section><h2>{title}</h2>{_tensor_table(rows)}</section>"


def _strategies(facts: Facts) -> str:
    total = sum(g.nbytes for g in facts.strategies) or 1
    rows = [
        [
            escape(g.name),
            f"{g.tensors:,}",
            f"{g.numel:,}",
            bytes_text(g.nbytes),
            f'<span class="bar" style="width:{100 * g.nbytes / total:.1f}%"></span>{100 * g.nbytes / total:.1f}',
            f"{g.bpw:.2f}",
            _decibel(g.mean_db),
            _decibel(g.worst_db),
        ]
        for g in facts.strategies
    ]
    head = ("strategy", ">tensors", ">weights", ">size", ">share, %", ">bpw", ">SQNR, mean, dB", ">worst, dB")
    return f"<section><h2>Strategies</h2>{_table(head, rows)}</section>"


def _recipe(facts: Facts) -> str:
    return (
        f"<section><h2>Recipe: {escape(facts.recipe_name)}</h2><pre>{escape(facts.recipe)}</pre>"
        "<p class=note>Saved as a .toml file it is what --recipe and “Open recipe” take.</p></section>"
    )


def _surroundings(facts: Facts) -> str:
    run = [("source", facts.source), ("output", facts.out)]
    run += [("calibration", facts.statistics)] if facts.statistics else []
    run += [("fingerprint of the source", facts.fingerprint)] if facts.fingerprint else []
    blocks = [
        _pairs("Run", run),
        _pairs("Machine", facts.machine),
        _pairs("Versions", facts.versions),
        _pairs("Files written", [(name, f"{size:,} bytes") for name, size in facts.files[:_SAID]]),
    ]
    if facts.dropped:
        found = list(facts.dropped.items())
        blocks.append(_pairs("Left out of the output", found[:_SAID]))
    return f'<section class="columns">{"".join(blocks)}</section>'


def _pairs(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs)
    return f'<div><h2>{escape(title)}</h2><dl class="pairs">{lines}</dl></div>'


def _all_tensors(facts: Facts) -> str:
    rows: Sequence[Row] = facts.rows
    title = f"All {len(rows):,} tensors"
    if len(rows) > LISTED:
        rows = facts.measured[:LISTED]
        title = f"{len(rows):,} of {len(facts.rows):,} tensors, those with the largest error"
    return f"<section><details><summary>{title}</summary>{_tensor_table(rows)}</details></section>"


def _tensor_table(rows: Sequence[Row]) -> str:
    noted = any(r.notes for r in rows)
    head = (
        "tensor",
        "role",
        ">shape",
        "stored as",
        ">size",
        ">bpw",
        ">SQNR, dB",
        ">relative MSE",
        ">max |w−ŵ|",
        ">cosine",
        *(("note",) if noted else ()),
    )
    lines = [
        [
            f"<code>{escape(r.name)}</code>",
            escape(r.role),
            "×".join(map(str, r.shape)) or "scalar",
            escape(f"{r.source_dtype} → {r.strategy}" if r.quantized else r.strategy),
            bytes_text(r.nbytes),
            f"{r.bpw:.2f}",
            _decibel(r.sqnr_db),
            _figure(r.relative_mse),
            _figure(r.max_abs),
            "–" if r.cosine is None else f"{r.cosine:.5f}",
            *((escape("; ".join(r.notes)),) if noted else ()),
        ]
        for r in rows
    ]
    return _table(head, lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML. A title that begins with ">" makes a column of numbers."""
    right = [title.startswith(">") for title in head]
    kinds = [' class="n"' if r else "" for r in right]
    titles = "".join(f"<th{k}>{escape(t.removeprefix('>'))}</th>" for t, k in zip(head, kinds, strict=True))
    body = "\n".join(
        f"<tr>{''.join(f'<td{k}>{cell}</td>' for cell, k in zip(row, kinds, strict=True))}</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _decibel(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if math.isfinite(value) else "exact" if value > 0 else "NaN"


def _figure(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.3g}"
