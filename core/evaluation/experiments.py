"""The log of experiments: one row for every run (quantization, evaluation, generation) in an SQLite file among the
user's data. Several processes may write to it at once.

A row that cannot be written (a damaged file, a full disk) waits in a text file beside the log and is taken in when the
log can be written again: nothing is lost, and no run fails because of its log.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import core
from core.errors import OutputError

QUANTIZATION, EVALUATION, GENERATION = "quantization", "evaluation", "generation"
# Another process writing is waited for this long.
_BUSY_SECONDS = 10.0
_LIBRARIES = ("torch", "transformers", "xllamacpp")


@dataclass(frozen=True)
class Experiment:
    """One run. None: not known, or it does not apply.

    time                seconds since 1970
    model, out          paths: of what was read, and of what was written or judged
    recipe, target      "" for a model as it is
    bytes, bpw          of what was written or judged
    kld, top1           mean divergence in nats and agreement in 0 … 1, against the original
    text                what was predicted, and how it was scored
    input_tokens        read; output_tokens: generated
    seconds             of the run, or of the request
    tokens_per_second   while reading (evaluation) or generating
    versions            of this program and the libraries that computed
    """

    kind: str
    model: str
    recipe: str = ""
    target: str = ""
    bytes: int | None = None
    bpw: float | None = None
    perplexity: float | None = None
    perplexity_error: float | None = None
    kld: float | None = None
    kld_p99: float | None = None
    top1: float | None = None
    text: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    device: str = ""
    out: str = ""
    versions: str = field(default_factory=lambda: versions())
    time: float = field(default_factory=time.time)
    id: int = 0


COLUMNS = tuple(f.name for f in fields(Experiment))
_STORED = tuple(name for name in COLUMNS if name != "id")
# What is done to a file of each older version, in order. The file's version is how many were done.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE experiments (
        id INTEGER PRIMARY KEY, kind TEXT NOT NULL, model TEXT NOT NULL, recipe TEXT NOT NULL, target TEXT NOT NULL,
        bytes INTEGER, bpw REAL, perplexity REAL, perplexity_error REAL, kld REAL, kld_p99 REAL, top1 REAL,
        text TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER, seconds REAL, tokens_per_second REAL,
        peak_bytes INTEGER, device TEXT NOT NULL, out TEXT NOT NULL, versions TEXT NOT NULL, time REAL NOT NULL
    )
    """,
    "CREATE INDEX experiments_by_time ON experiments (time)",
)


def log_path() -> Path:
    """QUANTBENCH_EXPERIMENTS, or a file in the user's data folder."""
    import platformdirs

    given = os.environ.get("QUANTBENCH_EXPERIMENTS")
    return Path(given) if given else Path(platformdirs.user_data_dir("quantbench", appauthor=False)) / "experiments.db"


def versions() -> str:
    """ "quantbench 0.1, torch 2.13": what is installed of what matters. Imports nothing of it."""
    from importlib.metadata import PackageNotFoundError, version

    found = [f"quantbench {core.__version__}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


class Log:
    """The log in a file, which is made when the first row comes."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = log_path() if path is None else path

    @property
    def _waiting(self) -> Path:
        return self.path.with_name(self.path.name + ".waiting.jsonl")

    def add(self, row: Experiment) -> str:
        """Writes a row. Returns "", or in one line why it waits beside the log. Raises nothing."""
        try:
            with self._with_waiting() as connection:
                _insert(connection, row)
        except OutputError as error:
            return self._wait(row, error)
        return ""

    def rows(self) -> tuple[Experiment, ...]:
        """All rows, the latest first. raises OutputError: damaged, or of a newer version; nothing is changed then"""
        if not self.path.exists() and not self._waiting.exists():
            return ()
        with self._with_waiting() as connection:
            found = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM experiments ORDER BY time DESC, id DESC")
            return tuple(Experiment(**dict(zip(COLUMNS, values, strict=True))) for values in found)

    def remove(self, ids: Sequence[int]) -> None:
        """Forgets rows. raises OutputError"""
        with self._open() as connection:
            connection.executemany("DELETE FROM experiments WHERE id = ?", [(i,) for i in ids])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file at the present version, inside one transaction. raises OutputError"""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise self._error(error) from error
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            _migrate(connection, self.path)
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._error(error) from error
        finally:
            connection.close()  # what is not committed is rolled back

    def _error(self, error: Exception) -> OutputError:
        said = getattr(error, "strerror", None) or str(error)
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            return OutputError(
                f"the log of experiments is damaged ({said})", "move the file away, and a new one begins", self.path
            )
        return OutputError(
            f"the log of experiments cannot be used ({said})", "set QUANTBENCH_EXPERIMENTS to another file", self.path
        )

    def _wait(self, row: Experiment, error: OutputError) -> str:
        line = json.dumps({name: getattr(row, name) for name in _STORED}) + "\n"
        try:
            self._waiting.parent.mkdir(parents=True, exist_ok=True)
            with open(self._waiting, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as second:
            return f"not logged: {error}; and {self._waiting}: {second.strerror or second}"
        return f"logged beside the log, in {self._waiting.name}: {error}"

    @contextmanager
    def _with_waiting(self) -> Iterator[sqlite3.Connection]:
        """The log, with the rows that waited beside it. These go from there only once they are in the log."""
        taken = self._waiting.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        with self._open() as connection:
            try:
                os.replace(self._waiting, taken)  # whoever comes second finds nothing
            except OSError:
                yield connection
                return
            try:
                odd = _insert_lines(connection, taken.read_text("utf-8", "replace").splitlines())
                yield connection
                connection.execute("COMMIT")
                connection.execute("BEGIN")
            except BaseException:
                with open(self._waiting, "ab") as file:
                    file.write(taken.read_bytes())
                taken.unlink()
                raise
        if odd:
            with open(self._waiting.with_suffix(".unread"), "a", encoding="utf-8") as file:
                file.write("\n".join(odd) + "\n")
        taken.unlink()


def _insert_lines(connection: sqlite3.Connection, lines: Sequence[str]) -> list[str]:
    """Rows that waited; returns the lines that are none."""
    odd = []
    for line in lines:
        try:
            row = Experiment(**json.loads(line))
        except (ValueError, TypeError):
            odd.append(line)
        else:
            _insert(connection, row)
    return odd


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise OutputError(
            f"the log of experiments is of version {version}, written by a newer Quantbench",
            "update Quantbench, or set QUANTBENCH_EXPERIMENTS to another file",
            path,
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        connection.execute(script)
        connection.execute(f"PRAGMA user_version = {number}")


def _insert(connection: sqlite3.Connection, row: Experiment) -> None:
    marks = ", ".join("?" * len(_STORED))
    connection.execute(
        f"INSERT INTO experiments ({', '.join(_STORED)}) VALUES ({marks})", [getattr(row, name) for name in _STORED]
    )


def as_json(row: Experiment) -> dict[str, Any]:
    return asdict(row)


def as_csv(rows: Sequence[Experiment]) -> str:
    """A table with a line of titles, as spreadsheets read it; times in UTC, ISO 8601."""
    import csv
    import io
    from datetime import UTC, datetime

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = as_json(row)
        values["time"] = datetime.fromtimestamp(row.time, UTC).isoformat(timespec="seconds")
        writer.writerow(["" if values[name] is None else _cell(values[name]) for name in COLUMNS])
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is kept from that."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def of_quantization(plan: Any, report: Any) -> Experiment:
    """The row of a finished run. plan: engine.model.Plan; report: its Report"""
    return Experiment(
        QUANTIZATION,
        str(plan.source),
        plan.recipe.name,
        plan.target.name,
        report.nbytes,
        plan.bpw,
        seconds=report.seconds,
        peak_bytes=report.peak_rss_bytes,
        device=report.device,
        out=str(report.out),
    )


def of_evaluation(
    result: Any,
    windows: Any,
    model: Path,
    *,
    recipe: str = "",
    target: str = "",
    judged: Path | None = None,
    nbytes: int = 0,
    parameters: int = 0,
) -> Experiment:
    """The row of an evaluation. result: perplexity.Evaluation; windows: text.Windows

    judged  file or folder that was compared with the model. nbytes: of what the figures are of, the model itself where
            it was compared with nothing; parameters: how many weights that is
    """
    other = result.against
    quality = result.perplexity if other is None else other.perplexity
    return Experiment(
        EVALUATION,
        str(model),
        recipe,
        target,
        nbytes or None,
        8 * nbytes / parameters if parameters else None,
        quality.value,
        quality.error,
        None if other is None else other.distance.kld_mean,
        None if other is None else other.distance.kld_p99,
        None if other is None else other.distance.top1_agreement,
        f"{windows.samples.name}: {windows.convention}",
        input_tokens=result.tokens,
        seconds=result.seconds,
        tokens_per_second=result.tokens_per_second,
        peak_bytes=result.peak_rss_bytes,
        device=result.device,
        out="" if judged is None else str(judged),
    )


def of_generation(result: Any, model: Path, nbytes: int, parameters: int) -> Experiment:
    """The row of a generation. result: generation.Generation"""
    return Experiment(
        GENERATION,
        str(model),
        bytes=nbytes,
        bpw=8 * nbytes / parameters if parameters else None,
        text=result.runtime,
        input_tokens=result.input_tokens,
        output_tokens=result.output_tokens,
        seconds=result.seconds,
        tokens_per_second=result.tokens_per_second,
        peak_bytes=result.peak_rss_bytes,
        device=result.device,
    )
