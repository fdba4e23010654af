"""The report of a run: read back by the standard library's own HTML and XML parsers, as a browser would."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import main
from core.checkpoints import open_checkpoint
from core.engine.model import TensorReport
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import OutputError
from core.recipes import load
from core.report import write_report
from core.report.charts import error_by_strategy, error_map
from core.report.drawing import CIVIDIS, cividis, ink_on, ticks
from core.report.facts import facts_of
from core.report.page import page_of
from core.targets import get_target

VOID = {"meta"}


class Page(HTMLParser):
    """Tables as lists of rows, texts by tag, all attributes; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def finished(demo: Path, tmp_path_factory):
    """Plan and report of a run on the demo."""
    out = tmp_path_factory.mktemp("run") / "demo.gguf"
    with open_checkpoint(demo) as checkpoint:
        plan = make_plan(checkpoint, load("Q4_0"), get_target("gguf"))
        return plan, run(plan, checkpoint, out)


def test_the_page_holds_what_the_run_reported(finished) -> None:
    plan, report = finished
    page = Page(page_of(facts_of(plan, report, made=0.0)))
    worst, strategies, everything = page.tables
    assert len(everything) == 1 + len(plan.tensors)
    by_name = {t.name: t for t in report.tensors}
    for row in everything[1:]:
        known = by_name[row[0]].sqnr_db
        assert row[6] == ("–" if known is None else "exact" if known == float("inf") else f"{known:.1f}")
        assert row[7] == ("–" if known is None else f"{by_name[row[0]].relative_mse:.3g}")
    measured = sorted(t.sqnr_db for t in report.tensors if t.sqnr_db is not None and t.sqnr_db < 1e9)
    assert [row[6] for row in worst[1:]] == [f"{v:.1f}" for v in measured[:20]]
    assert sum(int(row[1]) for row in strategies[1:]) == len(plan.tensors)
    (text,) = page.texts["pre"]
    assert tomllib.loads(text)["rule"] == [{"preset": "Q4_0"}]
    said = " ".join(page.texts["dd"] + page.texts["small"])
    for wanted in (f"{report.nbytes:,} bytes", f"{plan.bpw:.2f}", plan.fingerprint, str(report.out)):
        assert wanted in said
    assert {"torch", "numpy", "Python", "processor", "memory"} <= set(page.texts["dt"])


def test_it_asks_nobody_for_anything(finished) -> None:
    text = page_of(facts_of(*finished))
    page = Page(text)
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "img", "iframe", "object"}
    assert not {k for _, k, _ in page.attributes} & {"src", "href", "data", "srcset", "xlink:href"}
    assert "url(" not in text
    assert "@import" not in text
    assert not re.findall(r"https?://", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_error_map_shows_every_cell(finished) -> None:
    facts = facts_of(*finished)
    title, drawing = error_map(facts)
    cells = [e for e in ET.fromstring(drawing).iter("rect") if e.find("title") is not None]
    layered = {(r.role, r.layer) for r in facts.measured}
    assert len(cells) == len(layered)
    worst = facts.measured[0]
    assert f"{worst.sqnr_db:.1f} dB" in title
    brightest = max(cells, key=lambda e: sum(int(e.get("fill")[i : i + 2], 16) for i in (1, 3, 5)))
    assert brightest.find("title").text.startswith(worst.name)
    strips = ET.fromstring(error_by_strategy(facts)[1])
    dots = [e.find("title").text for e in strips.iter("circle")]
    assert sum(int(re.search(r": ([\d,]+) tensor", d)[1].replace(",", "")) for d in dots) == len(facts.measured)


def test_names_from_a_file_stay_text(finished) -> None:
    plan, report = finished
    evil = "</td><script>alert(1)</script>&\"'"
    tensors = list(plan.tensors)
    i = next(i for i, t in enumerate(tensors) if t.quantized)
    name = tensors[i].tensor.name
    fate = replace(tensors[i].fate, reason=evil, fallback=True)
    tensors[i] = replace(tensors[i], tensor=replace(tensors[i].tensor, name=evil), fate=fate)
    reports = tuple(replace(t, name=evil, sqnr_db=1.0) if t.name == name else t for t in report.tensors)
    text = page_of(facts_of(replace(plan, tensors=tuple(tensors)), replace(report, tensors=reports)))
    assert "<script" not in text
    page = Page(text)
    assert page.tables[0][1][0] == evil
    assert any(evil in line for line in page.texts["li"])
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(drawing)


@pytest.mark.parametrize("value", [None, float("inf"), float("nan")])
def test_a_run_without_figures_has_a_page_too(finished, value) -> None:
    plan, report = finished
    tensors = tuple(TensorReport(t.name, t.strategy, t.nbytes, t.numel, 0.0, value) for t in report.tensors)
    page = Page(page_of(facts_of(plan, replace(report, tensors=tensors))))
    assert len(page.tables) == 2, "nothing to rank"
    assert any("Where the bytes are" in h for h in page.texts["h2"])


def test_many_layers_and_experts_stay_small(finished) -> None:
    plan, report = finished
    facts = facts_of(plan, report)
    some = [r for r in facts.measured if r.layer is not None]
    rows = tuple(
        replace(r, name=f"{r.name}.{i}", layer=i % 126, sqnr_db=20 + i % 50 / 10) for i in range(2000) for r in some
    )
    large = replace(facts, rows=rows)
    assert len(error_map(large)[1]) < 400_000
    assert len(error_by_strategy(large)[1]) < 100_000
    page = Page(page_of(large))
    assert len(page.tables[-1]) == 1 + 20_000
    assert any(f"of {len(rows):,} tensors" in text for text in page.texts["summary"])


def test_scales() -> None:
    assert cividis(-1) == CIVIDIS[0]
    assert cividis(2) == CIVIDIS[-1]
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (cividis(i / 100) for i in range(101))]
    assert light == sorted(light), "lightness only grows: that is what colour-blind eyes read"
    assert ink_on(CIVIDIS[0]) == "#fff"
    assert ink_on(CIVIDIS[-1]) == "#000"
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(22.8, 35.1, 8) == [24, 26, 28, 30, 32, 34]
    assert ticks(3, 3) == [3]


def test_by_the_command_line(demo: Path, tmp_path: Path, capsys) -> None:
    words = ["quantize", str(demo), "--recipe", "q8_0", "--target", "dense", "--out", str(tmp_path / "out")]
    assert main.main([*words, "--report", str(tmp_path / "none" / "r.html")]) == 1
    assert "folder that exists" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "said before the work"
    assert main.main([*words, "--report", str(tmp_path / "r.html")]) == 0
    assert f"{tmp_path / 'r.html'}: the report" in capsys.readouterr().out
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.texts["h1"] == ["demo as q8_0"]


def test_a_report_that_cannot_be_written_leaves_nothing(finished, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_report(tmp_path / "none" / "r.html", *finished)
    size = write_report(tmp_path / "r.html", *finished)
    assert (tmp_path / "r.html").stat().st_size == size
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
