"""The log keeps every row: with several processes, through damage, from version to version."""

from __future__ import annotations

import csv
import io
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from core.errors import OutputError
from core.evaluation import experiments
from core.evaluation.experiments import COLUMNS, MIGRATIONS, Experiment, Log, as_csv


def row(number: int = 0, **more: object) -> Experiment:
    given = {"recipe": "q4_0", "bytes": 5 * 2**32 + number, "kld": 0.0125, "time": 1000.0 + number} | more
    return Experiment("evaluation", "a/model", **given)  # type: ignore[arg-type]


def test_rows_come_back_the_latest_first(tmp_path: Path) -> None:
    log = Log(tmp_path / "folder" / "log.db")
    assert log.rows() == ()
    assert not log.path.exists()
    for number in (2, 0, 1):
        assert log.add(row(number)) == ""
    found = log.rows()
    assert [r.time for r in found] == [1002.0, 1001.0, 1000.0]
    assert found[0].bytes == 5 * 2**32 + 2
    assert found[0].perplexity is None
    assert "quantbench" in found[0].versions
    log.remove([found[0].id])
    assert [r.time for r in log.rows()] == [1001.0, 1000.0]


def _write(path: Path, first: int) -> None:
    for number in range(first, first + 15):
        assert Log(path).add(row(number)) == ""


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(tmp_path / "log.db", 100 * n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(r.time - 1000 for r in Log(tmp_path / "log.db").rows()) == [
        100 * n + number for n in range(3) for number in range(15)
    ]
    with sqlite3.connect(tmp_path / "log.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_damaged_log_is_said_in_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.db")
    damaged = b"this is no database " * 100
    log.path.write_bytes(damaged)
    with pytest.raises(OutputError, match="damaged") as caught:
        log.rows()
    assert "\n" not in str(caught.value)
    assert "move the file away" in str(caught.value)
    for number in range(2):
        assert "logged beside the log" in log.add(row(number))
    assert log.path.read_bytes() == damaged
    log.path.rename(tmp_path / "old.db")
    assert log.add(row(2)) == ""
    assert [r.time for r in log.rows()] == [1002.0, 1001.0, 1000.0]
    assert [p.name for p in tmp_path.iterdir() if "waiting" in p.name] == []


def test_lines_that_are_no_rows_are_kept(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.db")
    (tmp_path / "log.db.waiting.jsonl").write_text(
        '{"kind": "evaluation", "model": "m", "time": 1}\n{"colour": 1}\nxyz\n'
    )
    assert [r.model for r in log.rows()] == ["m"]
    assert (tmp_path / "log.db.waiting.unread").read_text() == '{"colour": 1}\nxyz\n'


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "not logged" in Log(tmp_path / "file" / "log.db").add(row())


def test_rows_that_wait_stay_when_the_log_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "_BUSY_SECONDS", 0.1)
    log = Log(tmp_path / "log.db")
    log.add(row(0))
    other = sqlite3.connect(log.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "logged beside the log" in log.add(row(1))
    other.execute("COMMIT")
    other.close()
    assert [r.time for r in log.rows()] == [1001.0, 1000.0]


def test_an_older_log_is_brought_up_to_date_and_a_newer_one_left_alone(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.db")
    with sqlite3.connect(log.path) as connection:
        connection.execute(MIGRATIONS[0])
        connection.execute("PRAGMA user_version = 1")
        names = [name for name in COLUMNS if name != "id"]
        connection.execute(
            f"INSERT INTO experiments ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            [getattr(row(7), name) for name in names],
        )
    connection.close()
    assert log.add(row(8)) == ""
    assert [r.time for r in log.rows()] == [1008.0, 1007.0]
    connection = sqlite3.connect(log.path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(OutputError, match="newer Quantbench"):
        log.rows()


def test_csv_is_read_back_by_others(tmp_path: Path) -> None:
    text = as_csv([row(1, recipe='odd, "name"'), row(0, recipe="=1+1", kld=None)])
    found = list(csv.DictReader(io.StringIO(text)))
    assert found[0]["recipe"] == 'odd, "name"'
    assert found[0]["time"] == "1970-01-01T00:16:41+00:00"
    assert found[1]["kld"] == ""
    assert found[1]["recipe"] == "'=1+1"
