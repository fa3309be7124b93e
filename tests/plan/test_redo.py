"""Rows are processed again on purpose, and each result says what made it."""

import hashlib
import json
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner
from peewee import FloatField

from astra import task
from astra.api import run_here
from astra.cli import show_rows
from astra.cli.group import main
from astra.config.nights import checked
from astra.database.connection import connection, dialect
from astra.errors import TaskError
from astra.models import BossVisitSpectrum, PipelineOutputModel
from astra.models.attempts import Attempt
from astra.models.failures import Failure, NoResult
from astra.models.nights import Night
from astra.models.plans import MadeBy, Page, Plan
from astra.night.plans import NightStep, begin_tasks
from astra.plan.plan import create_plan
from astra.plan.selection import Selection
from astra.resume.resume import resume_local
from astra.status.row_history import history_of
from astra.status.status import status
from astra.status.verify import verify
from tests.sample_tasks import Measured, fill, measure


class Labelled(PipelineOutputModel):
    label = FloatField()


@task(files=("model",), revision=1)
def relabel(
    spectra: Iterable[BossVisitSpectrum], model: str = "model.txt", bad: int = 0, none: int = 0
) -> Iterable[Labelled]:
    """The number in a file, for each spectrum."""
    label = float(Path(model).read_text())
    for spectrum in spectra:
        if bad in (spectrum.spectrum_pk, -1):
            raise ValueError("bad")
        if spectrum.spectrum_pk != none:
            yield Labelled.from_spectrum(spectrum, label=label)


@pytest.fixture
def labels(url, tmp_path):
    Labelled.create_table()
    (tmp_path / "model.txt").write_text("1")
    fill(6)
    return tmp_path / "model.txt"


def run(**options):
    (planned,) = create_plan(relabel, **options)
    if planned.plan is not None:
        run_here(planned.plan)
    return planned


def stored() -> dict[int, float]:
    with connection():
        return dict(Labelled.select(Labelled.spectrum_pk, Labelled.label).tuples())


def test_a_result_says_what_made_it(labels):
    planned = run()
    with connection():
        made = {r.made_by for r in Labelled.select()}
        (by,) = MadeBy.select()
        assert made == {by.pk} and Plan.get().made_by == by.pk
    assert (by.task, by.plan_pk, by.revision) == ("tests.plan.test_redo.relabel", planned.plan, "1")
    assert json.loads(by.arguments) == {"model": "model.txt", "bad": 0, "none": 0}
    assert list(json.loads(by.files)["model"]) == ["model.txt"]
    assert by.commit is None or len(by.commit) >= 40
    list(relabel(BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk == 2), none=1))
    list(relabel(BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk == 3), none=1))
    with connection():
        one, other = (Labelled.get(Labelled.spectrum_pk == key).made_by for key in (2, 3))
        by = MadeBy.get_by_id(one)
        assert one == other != made and by.plan_pk is None and json.loads(by.arguments)["none"] == 1


def test_arguments_that_json_does_not_know_are_told_apart(labels):
    @task
    def dated(rows: Iterable[BossVisitSpectrum], since: date, to: Decimal) -> Iterable[Labelled]:
        for row in rows:
            yield Labelled.from_spectrum(row, label=1.0)

    for since, to in ((date(2020, 1, 1), 1), (date(2021, 1, 1), 1), (date(2021, 1, 1), 2)):
        list(dated(BossVisitSpectrum.select().limit(1), since, Decimal(to)))
    with connection():
        arguments = [json.loads(by.arguments) for by in MadeBy.select().order_by(MadeBy.pk)]
        digests = {by.digest for by in MadeBy.select()}
    assert arguments[1:] == [{"since": "2021-01-01", "to": "1"}, {"since": "2021-01-01", "to": "2"}]
    assert len(arguments) == len(digests) == 3


def test_changed_is_what_other_arguments_or_files_made(labels):
    assert run().rows == 6
    assert run(redo="changed").plan is None
    labels.rename(labels.with_name("other.txt"))
    again = {"redo": "changed", "arguments": {"model": "other.txt"}}
    assert run(**again).plan is None  # the same contents
    labels.with_name("other.txt").write_text("2")
    assert run(**again, max_rows=4).rows == 4
    assert sorted(stored().values()) == [1, 1, 2, 2, 2, 2]
    with connection():
        before = {r.spectrum_pk: (r.task_pk, r.created) for r in Labelled.select()}
    planned = run(**again)
    assert planned.rows == 2 and status(planned.plan).rows == {"done": 2}
    assert set(stored().values()) == {2} and run(**again).plan is None
    with connection():
        assert before == {r.spectrum_pk: (r.task_pk, r.created) for r in Labelled.select()}
        plans = [plan.pk for plan in Plan.select()]
    assert len(plans) == 3 and all(verify(plan).sound for plan in plans)
    fill(1)
    assert run(**again).rows == 1  # what is pending is taken, too
    again["arguments"]["bad"] = 5
    planned = run(**again)
    assert planned.rows == 7
    assert stored()[5] == 2 and status(planned.plan).rows == {"done": 6, "failed": 1}
    assert run(**again).failed == 1  # it failed as it was asked to
    with connection():
        assert (
            Labelled.select().count() == 7
            and Failure.get().made_by == Plan.get_by_id(planned.plan).made_by
        )


def test_a_revision_counts_and_a_commit_does_not(labels, monkeypatch):
    run()
    monkeypatch.setattr("astra.tasks.provenance.code_version", lambda function: "another")
    assert run(redo="changed").plan is None
    object.__setattr__(relabel.__astra__, "revision", 2)
    try:
        assert run(redo="changed").rows == 6
    finally:
        object.__setattr__(relabel.__astra__, "revision", 1)


def test_why_says_what_has_changed_since_a_result(labels, tmp_path_factory, monkeypatch, capsys):
    run()
    digest = hashlib.sha256(labels.read_bytes()).hexdigest()
    show_rows.row_history(history_of(relabel, "1"))
    assert f"; model: model.txt (SHA-256 {digest[:12]}); revision 1" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # relative paths are the plan's
    assert history_of(relabel, "1").why == "it has a result that is up to date"
    labels.write_text("2")
    changed = "it has a result that is up to date; since then the file model.txt has changed"
    story = history_of(relabel, "1")
    assert (story.why, story.pending) == (changed, False)
    assert story.next.endswith("--keys 1 --redo changed")
    labels.unlink()
    assert "since then model: the file" in history_of(relabel, "1").why
    labels.write_text("1")
    object.__setattr__(relabel.__astra__, "revision", 2)
    try:
        assert history_of(relabel, "1").why.endswith("the task has become revision 2")
    finally:
        object.__setattr__(relabel.__astra__, "revision", 1)


def test_redo_takes_all_failed_or_older_rows(labels):
    run(arguments={"bad": 2, "none": 3})
    assert stored().keys() == {1, 4, 5, 6}
    with connection():
        now = dialect().now()
        day = now + timedelta(days=1)
    assert run(redo="older-than 2020-01-01").plan is None
    failed = run(redo="failed", arguments={"none": 3})
    assert (failed.rows, failed.no_result) == (1, 1) and 2 in stored()
    assert run(redo="failed").plan is None
    (planned,) = create_plan(relabel, redo=f"older-than {now.isoformat()}")
    assert planned.rows == 5  # all but the one since
    held = create_plan(relabel, redo="all")[0]
    assert held.rows == 1 and held.held == 5
    for plan in (planned, held):
        run_here(plan.plan)
    assert stored().keys() == set(range(1, 7))
    assert run(redo=f"older-than {day.date()}").rows == 6
    assert run(redo="all").rows == 6
    for wrong in ("everything", "older-than", "older-than yesterday", "all 3", ""):
        with pytest.raises(TaskError, match="--redo"):
            create_plan(relabel, redo=wrong)


@pytest.mark.parametrize("redo", ["all", "failed"])
def test_a_limited_number_of_rows_is_done_again_in_turn(labels, redo):
    """A row that fails each time does not take the place of the others."""
    run(arguments={"bad": 2, "none": 3} if redo == "all" else {"bad": -1})
    keys = []
    for _ in range(3):
        planned = run(redo=redo, max_rows=2, arguments={"bad": 2})
        assert planned.rows == 2
        with connection():
            keys += [
                key for page in Page.select().where(Page.plan == planned.plan) for key in page.keys
            ]
    assert sorted(keys) == [1, 2, 3, 4, 5, 6]
    assert run(redo=redo, max_rows=1, arguments={"bad": 2}).rows == 1


def test_old_results_stay_where_there_are_no_new_ones(labels):
    run()
    again = {"arguments": {"bad": 1, "none": 2}}
    planned = run(redo="all", **again)
    assert status(planned.plan).rows == {"done": 4, "failed": 1, "no result": 1}
    assert stored().keys() == set(range(1, 7))
    with connection():
        assert (NoResult.get().key, Failure.get().key) == ("2", "1")
        assert {NoResult.get().made_by, Failure.get().made_by} == {Plan.get_by_id(2).made_by}
        assert Labelled.get(Labelled.spectrum_pk == 1).made_by == Plan.get_by_id(1).made_by
    assert verify(1).sound and verify(planned.plan).sound
    assert run().plan is None
    left = run(redo="changed", **again)
    assert (left.plan, left.failed, left.no_result) == (None, 1, 1)


def test_results_say_what_made_them_where_the_task_has_changed_since_its_plan(labels, monkeypatch):
    (planned,) = create_plan(relabel)
    changed = replace(relabel.__astra__, revision=2)
    monkeypatch.setattr(relabel, "__astra__", changed)
    monkeypatch.setattr(changed.function, "__defaults__", ("model.txt", 2, 3))
    run_here(planned.plan)
    with connection():
        plan, ends = Plan.get(), [Failure.get(), NoResult.get(), *Labelled.select()]
        (by,) = MadeBy.select().where(MadeBy.pk << {end.made_by for end in ends})
    assert by.pk != plan.made_by and (by.plan_pk, by.revision, len(ends)) == (plan.pk, "2", 6)
    assert json.loads(by.arguments) == {"model": "model.txt", "bad": 2, "none": 3}
    assert verify(planned.plan).sound and run(redo="changed").plan is None


def test_a_task_that_stores_nothing_since_its_plan_breaks_the_page(labels, monkeypatch):
    (planned,) = create_plan(relabel)
    changed = replace(relabel.__astra__, keywords={"write_to_database": False})
    monkeypatch.setattr(relabel, "__astra__", changed)
    run_here(planned.plan)
    with connection():
        (attempt,) = Attempt.select()
    assert attempt.state == "broken" and "write_to_database=False since plan" in attempt.message


def test_a_file_that_changed_since_breaks_the_page(labels):
    (planned,) = create_plan(relabel)
    text = labels.read_text()
    labels.write_text("5")
    run_here(planned.plan)
    with connection():
        said = {a.message for a in Attempt.select()}
    assert all("has changed since plan 1 was made" in one for one in said) and said
    assert stored() == {}
    labels.unlink()
    resume_local(planned.plan)
    with connection():
        last = Attempt.select().order_by(Attempt.pk.desc()).first()
        assert "does not exist; put it back" in last.message
    labels.write_text(text)
    resume_local(planned.plan)
    assert len(stored()) == 6
    with pytest.raises(TaskError, match=r"the file none\.txt does not exist"):
        create_plan(relabel, arguments={"model": "none.txt"})
    with pytest.raises(TaskError, match=r"the file \S*mem cannot be read"):
        create_plan(relabel, arguments={"model": "/proc/self/mem"})
    for files in ("modle", ("spectra",), 5, {"model": 5}):
        with pytest.raises(TaskError, match="files"):
            task(files=files)(relabel.__astra__.function)


def test_a_result_of_a_later_reading_is_kept(labels, caplog):
    """Another process has computed a row in the meantime, from what it read later."""
    run()
    with connection():
        of_row = Labelled.spectrum_pk == 3
        later = {"label": 7.0, "input_read": datetime(2100, 1, 1, tzinfo=UTC)}
        Labelled.update(later).where(of_row).execute()
    labels.write_text("2")
    planned = run(redo="all")
    assert stored() == {1: 2, 2: 2, 3: 7, 4: 2, 5: 2, 6: 2}
    assert "tests.plan.test_redo.relabel 3: a later result was kept" in caplog.text
    assert verify(planned.plan).rows["result"] == 6 and verify(planned.plan).sound


def test_a_list_of_files_and_folders(labels, tmp_path):
    @task(files=("grids",))
    def gridded(rows: Iterable[BossVisitSpectrum], grids) -> Iterable[Labelled]:
        for row in rows:
            yield Labelled.from_spectrum(row, label=1.0)

    (tmp_path / "folder" / "part").mkdir(parents=True)
    rows = BossVisitSpectrum.select().limit(1)
    for text in "ab":
        (tmp_path / "folder" / "part" / "grid").write_text(text)
        list(gridded(rows, [labels, None, tmp_path / "folder"]))
    with connection():
        first, second = (json.loads(by.files)["grids"] for by in MadeBy.select())
    paths = [str(labels), str(tmp_path / "folder")]
    assert list(first) == list(second) == paths
    assert [first[path] == second[path] for path in paths] == [True, False]
    with pytest.raises(TaskError, match="grids=3: give the path of a file, or None"):
        list(gridded(rows, [labels, 3]))


def test_rows_are_chosen_by_keys_and_conditions(labels, tmp_path):
    words = ["plan", "tests.plan.test_redo.relabel"]
    (tmp_path / "keys.txt").write_text("3\n1\n3\n77\n")
    done = CliRunner().invoke(main, [*words, "--keys", "keys.txt", "--where", "spectrum_pk > 1"])
    assert done.exit_code == 0 and "1 row in 1 page" in done.output, done.output
    assert "1 key without a row in BossVisitSpectrum: 77" in done.output
    with connection():
        assert Plan.get().where == "spectrum_pk > 1"
    run_here(1)
    done = CliRunner().invoke(main, [*words, "--redo", "older-than", "2999-01-01", "--json"])
    assert json.loads(done.stdout)["rows"] == 6
    for wrong, said in (
        (("--where", "nosuch > 1"), "has no column 'nosuch'"),
        (("--keys", "nosuch.txt"), "is not a key"),
        (("--keys", "88,99"), "has no row with the key 88, 99"),
        (("--redo", "older-than"), "needs a date"),
    ):
        done = CliRunner().invoke(main, [*words, *wrong])
        assert done.exit_code == 2 and said in done.output, done.output
    with connection():
        before = MadeBy.select().count()
    done = CliRunner().invoke(main, ["submit", "tests.sample_tasks.measure", "--local", "--keys", "2",
                                     "--input-model", "BossVisitSpectrum"])  # fmt: skip
    assert done.exit_code == 0, done.output
    with connection():
        assert [m.spectrum_pk for m in Measured.select()] == [2]
        assert MadeBy.select().count() == before + 1
        assert create_plan(measure, BossVisitSpectrum, where="snr / (pk - pk) > 0")[0].plan is None


NIGHT = """
[nights.labels]
max_rows = 5000
redo = "changed"
where = "spectrum_pk > 0"
tasks = ["tests.plan.test_redo.relabel"]
"""


def run_night(settings) -> list[int]:
    """Begin a night, run its plans here, and ask once more what is new; the rows of its plans."""
    night = Night.create(name="labels", date="2026-11-28", cwd=".", host="here", created_by="me")
    step = NightStep()
    begin_tasks(night, settings, step)
    for due in step.due:
        run_here(due.plan)
    begin_tasks(night, settings, step, again=True)
    return [rows for _, rows in step.new]


@pytest.mark.postgres
def test_a_new_model_relabels_the_archive_over_two_nights(pg_url, tmp_path):
    """10,000 rows in two nights of 5,000, newest first; no row is without a result meanwhile."""
    settings = checked(tomllib.loads(NIGHT)["nights"])["labels"]
    Labelled.create_table()
    (tmp_path / "model.txt").write_text("1")
    fill(10_000)
    with connection():
        BossVisitSpectrum.update(snr=7).where(BossVisitSpectrum.spectrum_pk <= 5000).execute()
    assert run(where="spectrum_pk > 0").rows == 10_000
    with connection():
        identity = Labelled.select(Labelled.spectrum_pk, Labelled.task_pk, Labelled.created)
        before = set(identity.tuples())
        dialect().run(
            """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$BEGIN RAISE 'a result is taken away'; END$$;
               CREATE TRIGGER kept BEFORE DELETE OR TRUNCATE ON labelled
                 FOR EACH STATEMENT EXECUTE FUNCTION refuse()"""
        )
    assert run_night(settings) == []
    (tmp_path / "model.txt").write_text("2")
    assert run_night(settings) == [5000]
    assert {key for key, label in stored().items() if label == 2} == set(range(1, 5001))
    assert run_night(settings) == [5000]
    assert set(stored().values()) == {2}
    assert run_night(settings) == []
    with connection():
        after = set(identity.tuples())
    assert after == before and len(after) == 10_000


def test_a_moment_before_all_that_python_knows_is_refused():
    with pytest.raises(TaskError, match="older-than needs a date"):
        Selection(redo="older-than 0001-01-01T00:00:00+05:00")
