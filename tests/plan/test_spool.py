"""Spool files: stored by whoever comes first, from wherever they are recovered."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import psycopg2
import pytest

from astra import task
from astra.api import run_here
from astra.config import run_folder, settings
from astra.database.connection import connection, database
from astra.element.claiming import claim_page, this_process
from astra.element.element import Element
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt, Suspect
from astra.models.failures import Failure
from astra.models.plans import Page, Submission
from astra.plan import spool
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.results.rows import Checkpoint, HandedRow, YieldedResult, target_of
from astra.results.stopping import Stop
from astra.resume.resume import resume_local
from astra.status.status import status
from astra.status.verify import verify
from astra.submit.intent import make_intent, new_submission
from tests.conftest import ROOT
from tests.forks import astra
from tests.sample_tasks import Measured, fill, measure


def spooled(n: int = 20, limit: int = 10) -> int:
    """A plan whose first page's element could not store what it yielded."""
    fill(n)
    (planned,) = create_plan(measure, BossVisitSpectrum, limit=limit)
    page = Page.get(Page.number == 1)
    submission = Submission.create(
        plan=planned.plan, token="t", kind="local", state="submitted", job_name="t", host="here",
        elements=[1], offset=0, pages_per_element=1, profile="{}", created_by="test",
    )  # fmt: skip
    Page.update(submission_pk=submission.pk).where(Page.pk == page.pk).execute()
    claim = claim_page(get_plan(planned.plan), 1, submission, 1, this_process("local", Path()))
    results = []
    for row in BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk << page.keys[:6]):
        handed = HandedRow(row.spectrum_pk, None, row.modified, Attempt.get().began)
        results.append(YieldedResult(Measured.from_spectrum(row, value=-1.0), handed))
    plan = get_plan(planned.plan)
    target = target_of(plan, BossVisitSpectrum, Measured, 1)
    assert spool.save(plan, claim, Checkpoint(results), target) is not None
    Attempt.update(pid_began="gone").execute()
    return planned.plan


def test_what_was_spooled_is_not_computed_again(url):
    plan = spooled()
    Page.update(submission_pk=None).execute()
    assert f"1 spool file holds results that the database did not store: astra recover {plan}" in (
        status(plan).notes
    )
    assert spool.recover(get_plan(plan)).rows == 6
    run_here(plan)
    found = verify(plan)
    assert found.sound and found.whole
    assert Measured.select().where(Measured.value == -1).count() == 6
    assert run_folder.spool_files(get_plan(plan).folder) == []


@pytest.mark.parametrize("refuses", ["all", "some"])
def test_a_table_that_refuses_what_was_spooled_costs_no_row(pg_url, refuses, caplog):
    """The file is kept, unless rows are to blame."""
    plan = spooled()
    Page.update(submission_pk=None).execute()
    which = (
        "true"
        if refuses == "all"
        else "NEW.spectrum_pk = (SELECT keys[1] FROM page WHERE number = 1)"
    )
    with connection():
        database.execute_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF {which} THEN RAISE 'frozen'; END IF; RETURN NEW; END $$"
        )
        database.execute_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON measured FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    if refuses == "some":
        found = spool.recover(get_plan(plan))
        assert (found.rows, found.refused, Failure.select().count()) == (5, 1, 1)
        return
    (file,) = spool.recover(get_plan(plan)).kept
    assert (done := astra("recover", plan)).returncode == 4
    assert "0 rows stored" in done.stdout and f"refuses its results: {file}" in done.stdout
    assert "frozen" in caplog.text
    assert "failed" not in status(plan).rows and not Failure.select().exists()
    with connection():
        database.execute_sql("DROP TRIGGER refuse ON measured")
    assert spool.recover(get_plan(plan)).rows == 6
    run_here(plan)
    assert verify(plan).sound and verify(plan).whole
    assert Measured.select().where(Measured.value == -1).count() == 6


def test_a_file_that_is_refused_keeps_no_page_from_its_element(pg_url):
    """Rows of which a trigger refuses the results fail as they do in an element."""
    plan = spooled(40)
    Page.update(submission_pk=None).execute()
    with connection():
        database.execute_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.spectrum_pk > 34 THEN RAISE 'frozen'; END IF; RETURN NEW; END $$"
        )
        database.execute_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON measured FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    resume_local(plan, 2)
    assert status(plan).rows == {"done": 34, "failed": 6}
    assert verify(plan).sound and run_folder.spool_files(get_plan(plan).folder) == []


def test_a_number_that_only_numpy_has_is_spooled(sqlite_url):
    fill(1)
    result = Measured.from_spectrum(BossVisitSpectrum.get(), value=np.longdouble(1.5))
    checkpoint = Checkpoint([YieldedResult(result, HandedRow(1, None))])
    (line,) = spool._lines(checkpoint)
    assert json.loads(line)["result"]["value"] == 1.5
    result.value = np.clongdouble(1.5)
    assert list(spool._lines(checkpoint)) == [], "it cannot be stored either"


class _Amount(Decimal):
    pass


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1), np.int64(7), np.bool_(True), np.float64("inf"),
        np.arange(3, dtype=np.float32), np.zeros((0, 4), dtype=np.int16), [1, [2.5, None]],
        np.array([(1, 2.5)], dtype=[("pixel", "i4"), ("flux", "f4")]), {"of": {"date": "a text"}},
        date(2024, 2, 29), datetime(2024, 2, 29, 1, 2, 3, 4), b"\x00\xff", UUID(int=7),
        Decimal("1.10"), _Amount("1.10"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_of_any_type_is_read_from_a_spool_file_as_it_was_yielded(value):
    read = spool._value(json.loads(json.dumps(spool._plain(value))))
    if isinstance(value, np.ndarray):
        assert (read.dtype, read.shape) == (value.dtype, value.shape)
        assert read.tobytes() == value.tobytes()
    else:
        assert read == value


def test_an_array_of_objects_is_spooled_as_a_list():
    """As the texts of a pandas column, which an array of PostgreSQL takes."""
    values = ["a", None, Decimal("1.10")]
    read = spool._value(json.loads(json.dumps(spool._plain(np.array(values, dtype=object)))))
    assert read == values


def test_a_further_result_of_a_row_is_not_spooled(sqlite_url):
    """The file would not say that it is one, and it would be stored with those of its row."""
    fill(1)
    result = Measured.from_spectrum(BossVisitSpectrum.get(), value=1.0)
    further = YieldedResult(result, HandedRow(1, None), again=True)
    assert list(spool._lines(Checkpoint([further]))) == []


_ENDLESS: list[object] = []
_ENDLESS.append(_ENDLESS)


@pytest.mark.parametrize("unfit", [object(), _ENDLESS], ids=["object", "endless"])
def test_all_results_of_a_row_are_spooled_or_none(sqlite_url, unfit):
    """The row would end with the others, and the one that cannot be spooled would be missing."""
    fill(2)
    one, two = BossVisitSpectrum.select().order_by(BossVisitSpectrum.spectrum_pk)
    checkpoint = Checkpoint()
    for row, texts in ((one, [None, unfit, None]), (two, [None, None])):
        handed = HandedRow(row.spectrum_pk, None)
        for text in texts:
            result = Measured.from_spectrum(row, value=1.0, text=text)
            checkpoint.results.append(YieldedResult(result, handed))
    assert [json.loads(line)["key"] for line in spool._lines(checkpoint)] == [2, 2]


def test_two_who_recover_at_once(url, monkeypatch):
    """Resume and a starting element both read the file before either has stored it."""
    plan = get_plan(spooled())
    read, both = spool.load_file, threading.Barrier(2, timeout=60)

    def read_together(path, output):
        found = read(path, output)
        both.wait()
        return found

    monkeypatch.setattr(spool, "load_file", read_together)
    errors = []

    def recover():
        try:
            spool.recover(plan)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=recover) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and run_folder.spool_files(plan.folder) == []
    found = verify(plan.pk)
    assert found.sound and found.rows["result"] == 6


_held: list = []


@task
def hold_the_page(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """From the fifth row on others hold the page; the last row but one has no result."""
    for place, spectrum in enumerate(spectra):
        if place == 4:
            url, stop = _held
            link = psycopg2.connect(url)
            link.cursor().execute("SELECT pk FROM page FOR UPDATE")
            _held.append(link)
            threading.Timer(0.5, stop.ask, ("the test",)).start()
        else:
            yield Measured.from_spectrum(spectrum, value=1.0)


def test_a_request_to_stop_while_rows_are_written_before_a_suspect(pg_url, tmp_path):
    """Another process locks the page for too long; no row is to blame for that."""
    fill(6)
    (planned,) = create_plan(hold_the_page, BossVisitSpectrum, limit=6)
    page = Page.get()
    Suspect.create(
        page=page.pk,
        place=page.n_rows - 1,
        group=1,
        deaths=1,
        exception="KilledProcess",
        cause="died",
    )
    plan = get_plan(planned.plan)
    submission = new_submission(plan, [1], 0, 1, "local")
    make_intent(submission, [page])
    database.close()
    (tmp_path / "astra.toml").write_text("[element]\ngrace_s = 0.3\n")
    settings.use(settings.load(tmp_path / "astra.toml"))
    stop = Stop()
    _held[:] = [pg_url, stop]
    with Element(plan, submission, stop) as element:
        found = element.run_page(1, 1)
    _held[-1].close()
    assert found.state == "interrupted" and "4 rows are kept in" in found.message
    assert Failure.select().count() == 0
    Attempt.update(pid_began="gone").execute()
    resume_local(plan.pk, 1)
    assert status(plan.pk).rows == {"done": 6} and verify(plan.pk).sound


_MODULE = """
from collections.abc import Iterable
from peewee import FloatField
from astra import task
from astra.models import BossVisitSpectrum, PipelineOutputModel

class FarAway(PipelineOutputModel):
    value = FloatField()

@task
def far_away(spectra: Iterable[BossVisitSpectrum]) -> Iterable[FarAway]:
    for spectrum in spectra:
        yield FarAway.from_spectrum(spectrum, value=1.0)
"""


@pytest.mark.parametrize("command", ["recover", "resume"])
def test_a_task_that_only_its_plan_knows_the_way_to(sqlite_url, tmp_path, command):
    code, elsewhere = tmp_path / "code", tmp_path / "elsewhere"
    code.mkdir()
    elsewhere.mkdir()
    (code / "distant.py").write_text(_MODULE)
    script = (
        "import distant, tests.plan.test_spool as t\n"
        "from astra.models.schema import init_database\n"
        "init_database(('distant',))\n"
        "t.measure, t.Measured = distant.far_away, distant.FarAway\n"
        "t.spooled()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=code, env=environment, check=True)
    words = [command, "1", *(["--local"] if command == "resume" else [])]
    done = astra(*words, env=environment, cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run_folder.spool_files(get_plan(1).folder) == []


def test_foreign_files_in_the_spool_folder_are_skipped(sqlite_url):
    """A pipe, a folder, a link and files of others, all with the name of a spool file."""
    fill(20)
    (planned,) = create_plan(measure, BossVisitSpectrum, limit=20)
    plan = get_plan(planned.plan)
    folder = run_folder.spool_folder(plan.folder)
    folder.mkdir(parents=True, exist_ok=True)
    pipe, directory, link, noise, forged = (
        folder / f"page-1-attempt-{number}.spool" for number in range(1, 6)
    )
    os.mkfifo(pipe)
    directory.mkdir()
    link.symlink_to("/etc/passwd")
    noise.write_bytes(b"\xff\x00 no header")
    body = b"{}\n"
    header = {"format": spool._FORMAT, "sha256": hashlib.sha256(body).hexdigest()}
    forged.write_bytes(json.dumps(header).encode() + b"\n" + body)
    empty = {"page": 1, "attempt": "t", "rows": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    of_others = (
        ({"format": "astra spool 99"}, b"", "is of the format 'astra spool 99'"),
        ({"format": spool._FORMAT, "plan": plan.token, **empty}, b"cut", "checksum does not match"),
        ({"format": spool._FORMAT, "plan": "other", **empty}, b"", "of another plan (token other)"),
    )
    for number, (first, rest, _) in enumerate(of_others, 6):
        path = folder / f"page-1-attempt-{number}.spool"
        path.write_bytes(json.dumps(first).encode() + b"\n" + rest)
    (folder / "notes.txt").write_text("somebody's")
    done = astra("recover", plan.pk)
    assert done.returncode == 0 and "0 rows stored from 0 spool files" in done.stdout
    assert done.stdout.count("no longer valid, its rows are computed again: ") == 8
    assert all(reason in done.stderr for *_, reason in of_others)
    assert f"plan {plan.pk}: no spool file, nothing to store" in astra("recover", plan.pk).stdout
    resume_local(plan.pk)
    assert verify(plan.pk).whole and (folder / "notes.txt").exists()


def test_a_folder_in_which_nothing_can_be_changed_keeps_no_element_from_its_page(url, monkeypatch):
    """As one of another member of the group, or on a disk that is read-only by now."""
    plan = get_plan(spooled())
    (path,) = run_folder.spool_files(plan.folder)
    (path.parent / "page-2-attempt-7.spool").write_text("no header")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    assert [spool.recover(plan).rows for _ in range(2)] == [6, 0]
