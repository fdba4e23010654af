"""What a journal takes over, what it refuses, and that a torn one costs at most its last line."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from core.engine.journal import Journal
from core.engine.work import UnitResult
from core.errors import OutputError

RUN = {
    "version": "1",
    "checkpoint": "abc",
    "target": "gguf",
    "recipe": "r",
    "layout": "l",
    "statistics": "",
    "device": "cpu",
    "measure": "True",
}
RESULTS = [
    UnitResult(3, 0.25, 4096, (100, 1.5, 0.1, 0.01, 1.4, 1.3), ()),
    UnitResult(0, 1.5, 17, None, ("scale did not fit",)),
    UnitResult(7, 0.0, 1 << 40, (1, math.inf, math.nan, 0.0, 0.0, 5e-324), ("ü", "b")),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".x.journal"


def written(path: Path, results: list[UnitResult] = RESULTS) -> Journal:
    journal = Journal(path, RUN, resume=False)
    journal.write(results)
    return journal


def same(a: UnitResult, b: UnitResult) -> bool:
    return repr(a) == repr(b)  # NaN is not equal to itself, its text is


def test_results_come_back_exactly(path: Path) -> None:
    written(path).close()
    journal = Journal(path, RUN, resume=True)
    assert set(journal.done) == {3, 0, 7}
    for result in RESULTS:
        back = journal.done[result.index]
        errors = None if result.errors is None else tuple(float(v) for v in result.errors)
        assert same(back, UnitResult(result.index, result.seconds, result.written, errors, result.fallbacks))
    journal.close()


def test_every_cut_of_the_file_is_tolerated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # hundreds of times; the content is what matters here
    written(path).close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        journal = Journal(path, RUN, resume=True)
        complete = sum(size >= sum(map(len, lines[: n + 1])) for n in range(len(lines)))
        assert len(journal.done) == max(0, complete - 1), size
        # What follows lands behind the last good line, not behind the torn one.
        journal.write([RESULTS[0]])
        journal.close()
        again = Journal(path, RUN, resume=True)
        assert len(again.done) == len({3, *[r.index for r in RESULTS[: max(0, complete - 1)]]})
        again.close()


@pytest.mark.parametrize("tail", [b"\0" * 64 + b"\n", b"[1]\n", b'{"unit": "x"}\n', b"\xff\xfe\n", b"{}\n" * 3])
def test_garbage_behind_good_lines_is_dropped(path: Path, tail: bytes) -> None:
    written(path).close()
    good = path.read_bytes()
    path.write_bytes(good + tail)
    journal = Journal(path, RUN, resume=True)
    assert set(journal.done) == {3, 0, 7}
    journal.close()
    assert path.read_bytes() == good


@pytest.mark.parametrize("content", [b"", b"\n\n", b"PNG", b'{"quantbench": 1}\n', b"[]\n"])
def test_what_is_no_journal_is_started_anew(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    journal = Journal(path, RUN, resume=True)
    assert journal.done == {}
    journal.write(RESULTS)
    journal.close()
    again = Journal(path, RUN, resume=True)
    assert len(again.done) == 3
    again.close()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("checkpoint", "the checkpoint changed since"),
        ("recipe", "the recipe changed since"),
        ("version", "the version of Quantbench changed"),
        ("device", "the device changed"),
    ],
)
def test_another_run_is_refused_and_left_alone(path: Path, key: str, words: str) -> None:
    written(path).close()
    before = path.read_bytes()
    with pytest.raises(OutputError, match=f"cannot be resumed: {words}.*without --resume"):
        Journal(path, RUN | {key: "other"}, resume=True)
    assert path.read_bytes() == before


def test_all_differences_are_named(path: Path) -> None:
    written(path).close()
    with pytest.raises(OutputError, match="the target, the recipe and the layout of the file changed"):
        Journal(path, RUN | {"target": "t", "recipe": "s", "layout": "m"}, resume=True)


def test_without_resume_it_starts_anew(path: Path) -> None:
    written(path).close()
    journal = Journal(path, RUN, resume=False)
    assert journal.done == {}
    journal.close()
    again = Journal(path, RUN, resume=True)
    assert again.done == {}
    again.close()


def test_two_runs_at_once_are_refused(path: Path) -> None:
    """Another process, as it happens when someone starts the same run twice."""
    journal = written(path)
    code = f"""
from core.engine.journal import Journal
from core.errors import OutputError
from pathlib import Path
try:
    Journal(Path({str(path)!r}), {RUN!r}, resume=True)
except OutputError as error:
    print(error)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert "another run is writing this output; wait for it, or stop it" in done.stdout, done.stderr
    journal.write(RESULTS[:1])
    journal.remove()
    assert not path.exists()


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        Journal(tmp_path / "missing" / ".x.journal", RUN, resume=False)
