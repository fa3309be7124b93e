"""The story of one row, as it goes: pending, done, out of date, failed, redone, deleted."""

import json
import shlex
from collections.abc import Iterable

import pytest
from click.testing import CliRunner
from peewee import CompositeKey, FloatField, IntegerField, Model, TextField

from astra import task
from astra.api import cancel, run_here
from astra.cli.group import main
from astra.database.connection import connection, database
from astra.errors import TaskError, UsageError
from astra.models import BossVisitSpectrum, OutputModel, result_of
from astra.models.attempts import Attempt
from astra.models.key_parsing import keys_of
from astra.models.plans import Submission
from astra.plan.plan import create_plan
from astra.status.logs import logs
from astra.status.results import StoredResults
from astra.status.row_history import history_of
from tests.sample_tasks import Measured, fill, measure, per_source

NAME = "tests.status.test_why.weigh"


class Stone(Model):
    name = TextField(primary_key=True)
    mass = FloatField(null=True)
    updated = IntegerField(null=True)

    class Meta:
        table_name = "stone_why"
        database = database


class Plate(Model):
    night = TextField()
    fiber = IntegerField()
    mass = FloatField(null=True)

    class Meta:
        table_name = "plate_why"
        primary_key = CompositeKey("night", "fiber")
        database = database


class Weight(OutputModel):
    stone = result_of(Stone)
    weight = FloatField()


class PlateWeight(OutputModel):
    plate = result_of(Plate)
    weight = FloatField()


@task(revision=1)
def weigh(rows: Iterable[Stone], g: float = 9.81) -> Iterable[Weight]:
    for row in rows:
        if g < 0:
            raise ValueError(f"no gravity for {row.name}")
        if row.mass is not None:
            yield Weight.from_row(row, weight=row.mass * g)


@task
def weigh_elsewhere(rows: Iterable[Stone]) -> Iterable[Weight]:
    yield from ()


@task
def weigh_plates(rows: Iterable[Plate]) -> Iterable[PlateWeight]:
    for row in rows:
        yield PlateWeight.from_row(row, weight=row.mass)


@pytest.fixture
def stones(url):
    with connection():
        database.create_tables([Stone, Plate, Weight, PlateWeight])
        Stone.insert_many([{"name": n, "mass": 1.0} for n in ("a", "it's, b")]).execute()
        Stone.insert(name="void").execute()
        Plate.insert(night="2024-01-01", fiber=3, mass=2.0).execute()
    yield
    with connection():
        database.drop_tables([Stone, Plate])


def run(function=weigh, **options):
    for planned in create_plan(function, **options):
        if planned.plan is not None:
            run_here(planned.plan)


def said(*words: str) -> str:
    done = CliRunner().invoke(main, ["why", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_history_of_a_row_is_in_order(stones):
    story = history_of(weigh, "a")
    assert story.pending and not story.results + story.plans and "no result at" in story.why
    assert story.next == f"astra plan {NAME} --keys a"
    create_plan(weigh)
    story = history_of(weigh, "a")
    assert story.pending and "page 1 of plan 1 contains it" in story.why
    assert story.next == "astra status 1" and story.plans[0].outcome == "pending"
    cancel(1)
    assert "no result at" in history_of(weigh, "a").why
    run()
    story = history_of(weigh, "a")
    assert not story.pending and "up to date" in story.why
    (result,) = story.results
    assert result.up_to_date and result.made_by.arguments == {"g": 9.81}
    assert (result.made_by.plan, result.made_by.revision) == (2, "1")
    assert [(p.plan, p.outcome, len(p.attempts)) for p in story.plans] == [
        (1, "pending", 0), (2, "result", 1)
    ]  # fmt: skip
    of_other = f"it has a result of {NAME}, which shares the table, that is up to date"
    assert history_of(weigh_elsewhere, "a").why == of_other
    with connection():  # as of an element whose log is in another folder than its plan's
        Attempt.update(log=None, job_id=7, array_index=1).execute()
        Submission.update(log_folder="/logs").execute()
    assert history_of(weigh, "a").plans[1].attempts[0].log == logs(2)[0].path == "/logs/7_1.log"
    run(redo="all", where="name == 'a'", arguments={"g": -1.0})
    story = history_of(weigh, "a")
    assert not story.pending and "since, it failed" in story.why
    assert [end.exception for end in story.ends] == ["ValueError"] and len(story.results) == 1
    assert story.ends[0].made_by.arguments == {"g": -1.0} and story.results[0].made_by.plan == 2
    text = said(NAME, "a")
    for part in (
        "not pending: it has a result", "computed in plan 2; arguments: g=9.81", "revision 1",
        "plan 1 was cancelled", "plan 3 was created; the row is in page 1, --redo all, --where \"name == 'a'\": failure",
        "failure (plan 3, attempt", "ValueError: no gravity for a", "Traceback (most recent",
    ):  # fmt: skip
        assert part in text, (part, text)
    assert (
        text.index("plan 1 was created")
        < text.index("plan 2 was created")
        < text.index("failure (plan")
    )


def test_rows_without_a_result_and_rows_that_are_gone(stones):
    run()
    story = history_of(weigh, "void")
    assert not story.pending and "yielded no result" in story.why and "--again" in story.next
    assert [end.what for end in story.ends] == ["no result"]
    assert "no result (plan 1, attempt" in said(NAME, "void")
    story = json.loads(said(NAME, "it's, b", "--json"))
    assert (
        story["next"]
        == """astra plan tests.status.test_why.weigh --keys '"it'"'"'s, b"' --redo all"""
    )
    with connection():
        Stone.delete().where(Stone.name == "a").execute()
    story = history_of(weigh, "a")
    assert not story.exists and not story.pending and len(story.results) == 1
    assert story.plans[0].outcome == "result" and "history:" in said(NAME, "a")
    with pytest.raises(UsageError, match="stone_why has no row with the key nosuch"):
        history_of(weigh, "nosuch")
    with pytest.raises(UsageError, match="stone_why has no row with the key 5"):
        history_of(weigh, 5)


def test_a_failure_that_is_not_taken_again(stones):
    run(arguments={"g": -1.0})
    story = history_of(weigh, "a")
    assert not story.pending and "failed" in story.why and story.next.endswith("--redo failed")
    run(redo="failed")
    assert "up to date" in history_of(weigh, "a").why and history_of(weigh, "a").ends == ()


def test_a_key_of_two_columns_is_accepted_in_both_forms(stones):
    run(weigh_plates)
    story = history_of(weigh_plates, '["2024-01-01", 3]')
    assert len(story.results) == 1 and f"--keys '{story.key}' --redo all" in story.next
    assert history_of(weigh_plates, "2024-01-01,3").key == story.key
    with pytest.raises(TaskError, match="is not a key"):
        history_of(weigh_plates, "2024-01-01")


@pytest.mark.parametrize(
    "key", ["", "  ", "a,b", 'say "so"', "two\nlines", "two\rlines", "two\u2028lines", "-5", "[x"]
)
def test_what_to_type_plans_a_row_with_any_text_as_its_key(stones, key):
    Stone.insert(name=key, mass=1.0).execute()
    run()
    words = shlex.split(history_of(weigh, key).next)
    assert keys_of(words[words.index("--keys") + 1]) == [key]


def test_a_list_that_can_be_the_name_of_no_file_is_a_list(stones):
    assert len(keys_of(",".join(map(str, range(3000))))) == 3000
    assert keys_of("a,b\0") == ["a", "b\0"]
    with pytest.raises(TaskError, match="it is empty, or contains a NUL"):
        history_of(weigh, "b\0")


def test_a_negative_number_is_a_key_and_no_option(stones):
    done = CliRunner().invoke(main, ["why", NAME, "-5", "--json"])
    assert "has no row with the key -5" in done.output
    done = CliRunner().invoke(main, ["why", NAME, "-5", "--jsn"])
    assert "No such option '--jsn'" in done.output


class Numbered(Model):
    class Meta:
        table_name = "numbered_why"
        database = database


class OfEither(OutputModel):
    numbered = result_of(Numbered, null=True)
    stone = result_of(Stone, null=True)


@task
def of_either(rows: Iterable[Numbered | Stone]) -> Iterable[OfEither]:
    for row in rows:
        yield OfEither.from_row(row)


def test_a_key_of_the_second_input_model_only_is_found(url):
    with connection():
        for model in (Numbered, Stone, OfEither):
            model.create_table()
        Stone.create(name="flint")
    found = history_of(of_either, "flint")
    assert (found.input_model, found.pending) == ("Stone", True)
    with pytest.raises(TaskError, match="is not a key"):
        history_of(of_either, "flint", Numbered)
    with pytest.raises(UsageError, match="name the table of these keys with --input-model"):
        StoredResults(of_either, ["flint"])


def test_a_row_that_was_modified_and_one_whose_group_another_represents(url):
    fill(4)
    run(measure, input_model=BossVisitSpectrum)
    Measured.update(made_by=None).where(Measured.spectrum_pk == 2).execute()
    BossVisitSpectrum.update(snr=7.0).where(BossVisitSpectrum.spectrum_pk == 1).execute()
    story = history_of(measure, 1, BossVisitSpectrum)
    assert story.pending and story.why == "it was modified since its result"
    assert "computed" in said("tests.sample_tasks.measure", "3")
    assert "computed" not in said("tests.sample_tasks.measure", "2")  # as by somebody's INSERT
    BossVisitSpectrum.update(source=1).execute()
    last = BossVisitSpectrum.select().order_by(BossVisitSpectrum.modified.desc())
    BossVisitSpectrum.update(snr=8.0).where(BossVisitSpectrum.spectrum_pk == 4).execute()
    assert last.get().spectrum_pk == 4
    story = history_of(per_source, 2, BossVisitSpectrum)
    assert not story.pending and story.next is None
    assert story.why == "another row of its group was modified later, and represents the group"
