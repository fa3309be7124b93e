"""Plans: frozen, cut into pages, never the same row twice; run on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner

from astra import task
from astra.api import plan_sized, run_here
from astra.cli.group import main
from astra.config.profiles import choose_profile
from astra.config.units import time_limit_s
from astra.database.connection import bind, connection, database
from astra.element.element import run_element
from astra.element.reader import Chunk, Reader
from astra.errors import TaskError, UsageError
from astra.models import BaseModel, BossCombinedSpectrum, BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan, plan_at_most
from astra.resume.resume import resume_local
from astra.status.failures import failures
from astra.status.status import status
from astra.submit.intent import make_intent, new_submission
from astra.version import CURRENT
from tests.conftest import ROOT
from tests.forks import astra
from tests.sample_tasks import Measured, bad_then_patient, fill, measure
from tests.servers import wait_for


def plan_of(**options):
    return create_plan(measure, BossVisitSpectrum, **options)[0]


def test_pending_rows_are_frozen_into_pages(url):
    fill(25)
    planned = plan_of(limit=10)
    assert (planned.pages, planned.rows) == (3, 25)
    pages = list(Page.select().order_by(Page.number))
    assert [p.keys for p in pages] == [
        list(range(25, 15, -1)), list(range(15, 5, -1)), [5, 4, 3, 2, 1]
    ]  # fmt: skip
    assert status(planned.plan).rows == {"done": 0, "unsubmitted": 25}
    again = plan_of(limit=10)
    assert again.plan is None and again.held == 25 and again.live_plans == (planned.plan,)
    assert Plan.select().count() == 1


def test_rows_beside_a_live_plan_take_no_longer_than_rows_alone(sqlite_url):
    """The keys that live plans hold are looked up in a hash: 8 s for these otherwise."""
    fill(14_000)
    durations_s = []
    for max_rows in (7_000, None):
        began = time.process_time()
        (planned,) = create_plan(measure, BossVisitSpectrum, limit=3_500, max_rows=max_rows)
        durations_s.append(time.process_time() - began)
        assert planned.rows == 7_000
    assert planned.held == 7_000
    alone_s, beside_s = durations_s
    assert beside_s < 5 * alone_s + 0.5, durations_s


def test_run_and_add_up(url):
    fill(100)
    planned = plan_of(
        limit=30, arguments={"raise_every": "9", "null_every": "10", "nothing_every": "11"}
    )
    run_here(planned.plan)
    found = status(planned.plan)
    bad = {k for k in range(1, 101) if k % 9 == 0}
    nothing = {k for k in range(1, 101) if k % 11 == 0} - bad
    null = {k for k in range(1, 101) if k % 10 == 0} - bad - nothing
    assert found.state == "failed rows" and found.state.exit_status == 8
    assert found.rows == {
        "done": 100 - len(bad | nothing | null), "failed": len(bad | null),
        "no result": len(nothing),
    }  # fmt: skip
    assert {f.key for f in failures(planned.plan)} == bad | null
    # What ended so is not planned again, unless it is wished or was modified.
    after = plan_of()
    assert (after.plan, after.failed, after.no_result) == (None, len(bad | null), len(nothing))
    BossVisitSpectrum.update(snr=0).where(BossVisitSpectrum.spectrum_pk == 9).execute()
    assert plan_of().rows == 1
    assert plan_of(again=True).rows == len(bad | null | nothing) - 1


def test_failed_rows_are_taken_again(url):
    fill(20)
    planned = plan_of(arguments={"raise_every": 5})
    run_here(planned.plan)
    Plan.update(arguments="{}").execute()  # the task was mended
    resume_local(planned.plan, 1, failed=True)
    assert status(planned.plan).rows == {"done": 20} and failures(planned.plan) == []


def test_arguments_are_parsed_and_checked_before_anything_is_stored(url):
    fill(3)
    for arguments, words in (
        ({"rows_s": "1"}, "row_s"),
        ({"row_s": "fast"}, "not a number"),
        ({"raise_every": "1.5"}, "whole number"),
        ({"batch_size": "0"}, "batch_size"),
        ({"spectra": "1"}, "takes no"),
        ({"write_to_database": "false"}, "stored"),
    ):
        with pytest.raises(TaskError, match=words):
            plan_of(arguments=arguments)
    assert Plan.select().count() == 0


@task
def own_keyword(
    spectra: Iterable[BossVisitSpectrum], write_to_database: bool = False
) -> Iterable[Measured]:
    yield from ()


def test_a_task_that_elements_cannot_run_or_import_is_not_planned(sqlite_url, monkeypatch):
    @task
    def local(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
        yield from ()

    unstored = task(write_to_database=False)(measure.__wrapped__)
    monkeypatch.setattr("tests.sample_tasks.measure", unstored)
    for function, words in (
        (local, r"test_plan.*local cannot be imported by other processes: move it to the top"),
        (unstored, "declared with write_to_database=False: a plan of it could never end"),
        (own_keyword, "own_keyword is called or declared with write_to_database=False"),
        (measure, "tests.sample_tasks:measure is no longer the task that was given"),
    ):
        with pytest.raises(TaskError, match=words):
            create_plan(function)


def test_eight_planners_take_no_row_twice(pg_url):
    fill(500)
    command = [sys.executable, "-m", "astra", "plan", "tests.sample_tasks.measure", "--json",
               "--input-model", "BossVisitSpectrum", "--limit", "7"]  # fmt: skip
    planners = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    made = [json.loads(p.communicate()[0]) for p in planners]
    assert sorted(m["rows"] for m in made) == [0] * 7 + [500]
    keys = [k for page in Page.select() for k in page.keys]
    assert len(keys) == len(set(keys)) == 500


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_planners_take_turns_whatever_the_default_isolation_level_is(pg_url, postgres, level):
    """Who has waited for another sees what that one has planned, not the state before."""
    fill(5)
    name = urlsplit(pg_url).path[1:]
    postgres.sql(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    bind(pg_url)
    with ThreadPoolExecutor() as threads:
        made = [threads.submit(plan_of) for _ in range(4)]
    assert sorted(m.result().rows for m in made) == [0, 0, 0, 5]
    assert plan_of().held == 5


def test_another_version_refuses(url):
    fill(3)
    planned = plan_of()
    Plan.update(v_astra=9000).execute()
    with pytest.raises(UsageError, match=r"0\.9\.0"):
        resume_local(planned.plan)


def test_there_is_no_such_plan(url):
    with pytest.raises(UsageError, match="no plan 7"):
        get_plan(7)


def test_a_killed_elements_page_is_taken_over_in_the_same_run(url, tmp_path):
    fill(2000)
    computed, fast = tmp_path / "computed", tmp_path / "fast"
    arguments = {"row_s": 0.1, "slow_until": str(fast), "write_frequency": 0.2}
    planned = plan_of(limit=500, arguments={**arguments, "computed": str(computed)})
    runner = subprocess.Popen(
        [sys.executable, "-m", "astra", "submit", str(planned.plan), "--local", "-j", "2"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    at_work = (Attempt.n_done > 5) & (Attempt.state == "running")
    wait_for(lambda: Attempt.get_or_none(at_work), "an attempt that has stored rows", 60)
    victim = Attempt.get(at_work)
    os.kill(victim.pid, signal.SIGKILL)
    fast.touch()
    runner.wait(60)
    assert Attempt.get_by_id(victim.pk).state == "superseded"
    assert status(planned.plan).rows == {"done": 2000}
    assert Measured.select().count() == 2000
    twice = len(computed.read_text().split()) - 2000
    assert 0 < twice <= 40  # 0.2 s of work, and what a busy machine takes to write it
    assert resume_local(planned.plan, 2).pages == 0


def test_interrupted_elements_compute_nothing_twice(url, tmp_path):
    fill(2000)
    computed, fast = tmp_path / "computed", tmp_path / "fast"
    arguments = {"row_s": 0.02, "slow_until": str(fast), "computed": str(computed)}
    planned = plan_of(limit=1000, arguments=arguments)
    runner = subprocess.Popen(
        [sys.executable, "-m", "astra", "submit", str(planned.plan), "--local", "-j", "2"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def is_at_work() -> bool:
        return computed.exists() and len(computed.read_text().split()) >= 20

    wait_for(is_at_work, "20 rows", 30)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(30) == 75
    found = status(planned.plan)
    assert found.rows["done"] == len(computed.read_text().split()) < 2000
    fast.touch()
    resume_local(planned.plan, 2)
    assert status(planned.plan).rows == {"done": 2000}
    assert len(computed.read_text().split()) == 2000


_HELD = """
import os, time
from collections.abc import Iterable
import psycopg2
from astra import task
from astra.models import BossVisitSpectrum
from tests.sample_tasks import Measured


def note(where: str) -> None:
    link = psycopg2.connect(os.environ["ASTRA_DATABASE_URL"])
    link.autocommit = True
    end, held = time.monotonic() + 60, 1
    while held and time.monotonic() < end:  # a backend may outlive its client by a moment
        with link.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            (held,) = cursor.fetchone()
    link.close()
    with open(os.environ["NOTED"], "a") as file:
        file.write(f"{where} {held}\\n")


note("import")


@task
def analysis(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    note("begin")
    for spectrum in spectra:
        note("row")
        yield Measured.from_spectrum(spectrum, value=1.0)
"""


def submitted_to_one(plan: Plan) -> Submission:
    """All pages of a plan, given to one element."""
    submission = new_submission(plan, [1], 0, plan.n_pages, "local")
    with connection():
        make_intent(submission, list(Page.select().where(Page.plan == plan.pk)))
    return submission


def test_no_connection_is_held_while_a_task_is_imported_or_computes(pg_url, tmp_path, monkeypatch):
    """On each of three pages of one process."""
    fill(6)
    database.close()
    (tmp_path / "holding.py").write_text(_HELD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("NOTED", str(tmp_path / "noted"))
    done = astra("plan", "holding.analysis", "--limit", "2", "--json", cwd=tmp_path)
    done.check_returncode()
    (tmp_path / "noted").unlink()
    plan = get_plan(json.loads(done.stdout)["plan"])
    submission = submitted_to_one(plan)
    words = ["--plan", str(plan.pk), "--job", submission.token, "--element", "1"]
    subprocess.run(
        [sys.executable, "-m", "astra", "run-page", *words], cwd=tmp_path, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    noted = (tmp_path / "noted").read_text().splitlines()
    assert noted == ["import 0", *["begin 0", "row 0", "row 0"] * 3]
    assert status(plan.pk).state == "whole"


def test_commands_say_what_is_wrong(url):
    def run(*words):
        return CliRunner().invoke(main, words)

    done = run("plan", "tests.sample_tasks.mesure")
    assert done.exit_code == 2 and "Did you mean" in done.output and "Traceback" not in done.output
    assert run("statsu").exit_code == 2 and "status" in run("statsu").output
    assert "nothing is pending" in run("plan", "tests.sample_tasks.measure").output
    assert run("plan", "tests.sample_tasks.measure").exit_code == 0
    assert "there is no plan yet" in run("status").output
    if "sqlite" in url:
        fill(2)
        done = run("submit", "tests.sample_tasks.measure")
        assert done.exit_code == 2 and "--local" in done.output


def test_cancelled_rows_are_free_again(url):
    fill(5)
    planned = plan_of()
    done = CliRunner().invoke(main, ["cancel", str(planned.plan), "--json"])
    assert json.loads(done.output)["rows_freed"] == 5
    assert plan_of().rows == 5


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [(90, 5400), ("90", 5400), ("1:30", 90), ("02:00:00", 7200), ("1-0", 86400),
     ("1-12:30", 131400), ("UNLIMITED", None)],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(limit, seconds):
    assert time_limit_s(limit) == seconds


def test_a_warning_that_would_come_at_once_is_left_out(tmp_path):
    assert choose_profile(None, None).options["signal"] == "B:USR1@120"
    assert not choose_profile(None, {"time": "00:04:00"}).options.get("signal")


def test_failures_are_as_many_as_the_status_says(url):
    fill(20)
    first = plan_of(limit=20, arguments={"raise_every": "5"})
    run_here(first.plan)
    # Two of the four fail again, two have a result now.
    second = plan_of(limit=20, arguments={"raise_every": "10"}, again=True)
    run_here(second.plan)
    assert status(first.plan).rows["failed"] == len(failures(first.plan)) == 4
    assert {f.key: f.since for f in failures(first.plan)} == {
        10: f"failed again in plan {second.plan}",
        20: f"failed again in plan {second.plan}",
        5: "has ended differently since: it has a result now, or none",
        15: "has ended differently since: it has a result now, or none",
    }
    assert {f.key: f.since for f in failures(second.plan)} == {10: None, 20: None}
    assert CliRunner().invoke(main, ["failures", str(first.plan)]).exit_code == 0


def test_a_result_after_a_failure_is_stored_while_the_next_row_is_computed(url):
    """What waits first is a failure: the clock of what comes after it runs all the same."""
    fill(3)
    arguments = {"write_frequency": 0.1}
    (planned,) = create_plan(bad_then_patient, BossVisitSpectrum, arguments=arguments)
    run_here(planned.plan)
    assert status(planned.plan).rows == {"done": 2, "failed": 1}
    assert Measured.get(Measured.spectrum_pk == 1).value < 10


def test_lists_of_keys_are_compressed_with_lz4(pg_url):
    columns = [("page", "keys"), ("page", "key_texts"), ("submission", "elements")]
    query = "SELECT attcompression FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s"
    assert [database.execute_sql(query, c).fetchone()[0] for c in columns] == ["l", "l", "l"]
    fill(4_000)
    plan_of(limit=4_000)
    found = "SELECT pg_column_compression(keys), cardinality(keys) FROM page"
    assert database.execute_sql(found).fetchall() == [("lz4", 4_000)]


def test_tables_that_change_often_leave_room_for_new_versions_of_their_rows(pg_url):
    query = "SELECT relname FROM pg_class WHERE 'fillfactor=50' = ANY(reloptions)"
    assert sorted(database.execute_sql(query).fetchall()) == [("attempt",), ("page",)]


def test_the_settings_of_a_table_are_those_that_its_model_declares(pg_url):
    class Roomy(BaseModel):
        class Meta:
            abstract = True  # which only keeps it from the tables of other tests
            table_settings = "WITH (fillfactor = 70)"

    Roomy.create_table()
    query = "SELECT reloptions FROM pg_class WHERE relname = 'roomy'"
    assert database.execute_sql(query).fetchone() == (["fillfactor=70"],)


def test_no_more_rows_are_read_at_a_time_than_their_arrays_allow(url, monkeypatch):
    """Three large spectra fit into a chunk, wherever they stand; small rows are read at once."""
    fill(300)
    plan = get_plan(plan_of(limit=100).plan)
    (second,) = Page.select().where(Page.number == 2)
    spectrum = BossVisitSpectrum
    for place in (50, 51, 52, 90, 91, 92, 93, 94, 95):
        flux = np.ones(125_000)
        spectrum.update(stored_flux=flux).where(
            spectrum.spectrum_pk == second.keys[place]
        ).execute()
    read, chunks = Reader._read, []

    def counted(self: Reader, keys: list[int]) -> Chunk:
        rows, left = read(self, keys)
        chunks.append((self.claim.page.number, len(rows)))
        return rows, left

    monkeypatch.setattr(Reader, "_read", counted)
    submission = submitted_to_one(plan)
    assert [run.state for run in run_element(plan.pk, 1, submission.token)] == ["done"] * 3
    # 1 MB and a header each: a fourth is more than 4 MB.
    assert chunks == [(1, 100), (2, 90), (2, 3), (2, 7), (3, 100)]
    assert status(plan.pk).rows == {"done": 300}


def test_no_page_goes_through_all_results(pg_url):
    """This holds even if the table was last analysed when it was empty, as in a first night."""
    database.execute_sql("ALTER TABLE measured SET (autovacuum_enabled = false)")
    fill(20_000)
    database.execute_sql(
        "INSERT INTO measured (spectrum_pk, v_astra, input_modified, value, tag)"
        " SELECT spectrum_pk, %s, modified, 1, '' FROM boss_visit_spectrum"
        " WHERE spectrum_pk > 2000",
        (CURRENT.number,),
    )
    plan = get_plan(plan_of(limit=1000).plan)
    submission = submitted_to_one(plan)

    def n_read() -> int:
        database.close()  # what a connection has read is told when it ends
        (found,) = database.execute_sql(
            "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'measured'"
        ).fetchone()
        return found

    before = n_read()
    assert [run.state for run in run_element(plan.pk, 1, submission.token)] == ["done"] * 2
    assert Measured.select().count() == 20_000  # which is read from end to end
    wait_for(lambda: n_read() >= before + 20_000, "the server's statistics", 60)
    assert n_read() < before + 40_000


def test_a_generator_of_keys_counts_for_each_input_model(url):
    for model in (BossVisitSpectrum, BossCombinedSpectrum):
        fill(3, model)
    plans = plan_at_most(measure, {"keys": (key for key in (1, 2, 4)), "max_rows": 10})
    assert [planned.rows for planned in plans] == [2, 1]
    sized = plan_sized(measure, {"sdss_ids": iter([102])}, element_time_s=60)
    assert [planned.rows for planned, _ in sized] == [1, 1]


@pytest.mark.parametrize(
    "options", [{"limit": 2**24}, {"limit": 10**5000}, {"max_rows": 10**5000}, {"keys": 5},
                {"keys": [10**5000]}, {"sdss_ids": [10**5000]}],
    ids=["limit", "digits", "max_rows", "keys", "key", "sdss_ids"],
)  # fmt: skip
def test_numbers_that_no_column_holds_are_refused(url, options):
    fill(1)
    with pytest.raises(TaskError):
        plan_of(**options)


@pytest.mark.parametrize("command", ["status", "submit", "try", "resume"])
def test_a_plan_whose_number_has_thousands_of_digits(sqlite_url, command):
    done = CliRunner().invoke(main, [command, "9" * 5000, *(["1"] if command == "try" else [])])
    assert isinstance(done.exception, SystemExit | UsageError), done.exception
