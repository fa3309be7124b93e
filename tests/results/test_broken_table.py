"""A table that is broken, or a task that cannot work, is nobody's row: the rows stay pending."""

from collections.abc import Iterable

import pytest

from astra import task
from astra.api import run_here
from astra.database.connection import connection, database, dialect
from astra.models import BossVisitSpectrum
from astra.models.failures import Failure
from astra.models.plans import Plan
from astra.plan.plan import create_plan
from astra.resume.resume import resume_local
from astra.status.status import status
from astra.status.verify import verify
from tests.own_tables import Counted, CountedPeriod, of_counted
from tests.sample_tasks import Measured, fill, measure


def run(function=measure, n: int = 30, **planning) -> int:
    fill(n)
    (made,) = create_plan(function, BossVisitSpectrum, **planning)
    run_here(made.plan)
    return made.plan


def left_pending(plan: int) -> bool:
    """Check that nothing is stored, no row has failed, and the plan needs attention."""
    found = status(plan)
    with connection():
        n_rows = Plan.get_by_id(plan).n_rows
        stored = Measured.select().count() + Failure.select().count()
    return (
        stored == 0 and found.state == "attention" and found.rows == {"done": 0, "broken": n_rows}
    )


def repaired(plan: int) -> bool:
    resume_local(plan)
    return status(plan).state == "whole" and verify(plan).sound


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_a_column_that_the_model_does_not_have_wants_a_value(url, batch_size):
    with connection():
        database.execute_sql("ALTER TABLE measured ADD COLUMN extra INTEGER DEFAULT 0")
        if dialect().name == "postgresql":
            database.execute_sql("ALTER TABLE measured ALTER COLUMN extra DROP DEFAULT")
            database.execute_sql("ALTER TABLE measured ALTER COLUMN extra SET NOT NULL")
        else:
            database.execute_sql("ALTER TABLE measured DROP COLUMN extra")
            database.execute_sql("ALTER TABLE measured ADD COLUMN extra INTEGER")
            database.execute_sql(
                "CREATE TRIGGER wants BEFORE INSERT ON measured WHEN NEW.extra IS NULL "
                "BEGIN SELECT RAISE(ABORT, 'NOT NULL constraint failed: measured.extra'); END"
            )
    plan = run(arguments={"batch_size": batch_size}, limit=10)
    assert left_pending(plan)
    with connection():
        if dialect().name == "postgresql":
            database.execute_sql("ALTER TABLE measured DROP COLUMN extra")
        else:
            database.execute_sql("DROP TRIGGER wants")
    assert repaired(plan)


@pytest.mark.parametrize("n", [3, 30])
@pytest.mark.parametrize(
    ("statements", "repair"),
    [
        ("ADD extra integer, ADD CONSTRAINT no CHECK (extra IS NOT NULL)", "DROP CONSTRAINT no"),
        ("ADD extra integer DEFAULT 99 REFERENCES source", "DROP COLUMN extra"),
        ("ADD extra integer DEFAULT 1 UNIQUE", "DROP COLUMN extra"),
        ("ADD CONSTRAINT frozen CHECK (false)", "DROP CONSTRAINT frozen"),
        ("; ALTER SEQUENCE measured_task_pk_seq MAXVALUE 2",
         "; ALTER SEQUENCE measured_task_pk_seq NO MAXVALUE"),
    ],
)  # fmt: skip
def test_what_no_value_of_a_result_can_meet_is_the_tables(pg_url, n, statements, repair):
    with connection():
        database.execute_sql(f"ALTER TABLE measured {statements}".rpartition("; ")[2])
    plan = run(n=n, limit=n)
    assert left_pending(plan)
    with connection():
        database.execute_sql(f"ALTER TABLE measured {repair}".rpartition("; ")[2])
    assert repaired(plan)


def test_a_missing_partition_is_the_tables(pg_url):
    """Rows of other partitions would be stored, and yet it is no fault of a row."""
    with connection():
        Counted.create_table()
        CountedPeriod.create_table()
        Counted.insert_many([(n, n) for n in range(10, 40)]).execute()
        for statement in (
            "ALTER TABLE counted_period RENAME TO before",
            "CREATE TABLE counted_period (LIKE before INCLUDING DEFAULTS INCLUDING GENERATED) "
            "PARTITION BY RANGE (counted_id)",
            "CREATE TABLE low PARTITION OF counted_period FOR VALUES FROM (0) TO (35)",
            "CREATE UNIQUE INDEX ON counted_period (counted_id, v_astra_major_minor, "
            "result_number)",
        ):
            database.execute_sql(statement)
    (made,) = create_plan(of_counted, arguments={"limit": 0.0})
    run_here(made.plan)
    assert status(made.plan).rows == {"done": 0, "broken": 30}
    with connection():
        database.execute_sql(
            "CREATE TABLE high PARTITION OF counted_period FOR VALUES FROM (35) TO (99)"
        )
        database.execute_sql("ALTER TABLE high ADD CONSTRAINT few CHECK (period < 77)")
    resume_local(made.plan)  # if a constraint is on what the model declares, the row is to blame
    assert status(made.plan).rows == {"done": 29, "failed": 1}


def test_a_value_that_its_domain_does_not_have_is_that_rows(pg_url):
    """The server names no table for such a constraint."""
    with connection():
        database.execute_sql("CREATE DOMAIN few AS bigint CHECK (VALUE <> 5)")
        database.execute_sql("ALTER TABLE measured ALTER spectrum_pk TYPE few")
    plan = run(limit=30)
    assert status(plan).rows == {"done": 29, "failed": 1}


def freeze() -> None:
    """A trigger that refuses whatever is written."""
    with connection():
        if dialect().name == "sqlite":
            database.execute_sql(
                "CREATE TRIGGER refuse_all BEFORE INSERT ON measured "
                "BEGIN SELECT RAISE(ABORT, 'frozen'); END"
            )
            return
        database.execute_sql(
            "CREATE FUNCTION refuse_all() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'frozen'; END $$"
        )
        database.execute_sql(
            "CREATE TRIGGER refuse_all BEFORE INSERT ON measured FOR EACH ROW EXECUTE FUNCTION refuse_all()"
        )


@pytest.mark.parametrize(("batch_size", "n"), [(1, 3), (1000, 3), (7, 30), (1, 60), (1000, 60)])
def test_a_trigger_that_every_row_meets(url, batch_size, n):
    freeze()
    plan = run(n=n, arguments={"batch_size": batch_size}, limit=n)
    assert left_pending(plan)
    with connection():
        database.execute_sql(
            "DROP TRIGGER refuse_all" + (" ON measured" if dialect().name == "postgresql" else "")
        )
    assert repaired(plan)


def test_results_beside_too_many_refused_ones_are_stored(pg_url):
    """They are not computed again; the rows whose results were refused stay pending."""
    with connection():
        database.execute_sql("ALTER TABLE measured ADD CONSTRAINT few CHECK (spectrum_pk <= 5)")
    plan = run(limit=30)
    assert status(plan).rows == {"done": 5, "broken": 25} and verify(plan).sound
    with connection():
        assert Measured.select().count() == 5 and Failure.select().count() == 0
        database.execute_sql("ALTER TABLE measured DROP CONSTRAINT few")
    assert repaired(plan)


def test_a_trigger_that_one_row_meets_is_that_rows(url):
    """The error is then that of the row, and delays no other row."""
    fill(30)
    with connection():
        (key,) = BossVisitSpectrum.select(BossVisitSpectrum.spectrum_pk).limit(1).tuples()[0]
        if dialect().name == "sqlite":
            database.execute_sql(
                "CREATE TRIGGER one BEFORE INSERT ON measured "
                f"WHEN NEW.spectrum_pk = {key} BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            )
        else:
            database.execute_sql(
                "CREATE FUNCTION one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"IF NEW.spectrum_pk = {key} THEN RAISE EXCEPTION 'not this one'; END IF; "
                "RETURN NEW; END $$"
            )
            database.execute_sql(
                "CREATE TRIGGER one BEFORE INSERT ON measured FOR EACH ROW EXECUTE FUNCTION one()"
            )
    (made,) = create_plan(measure, BossVisitSpectrum, limit=10)
    run_here(made.plan)
    found = status(made.plan)
    assert found.state == "failed rows" and found.rows == {"done": 29, "failed": 1}
    assert verify(made.plan).sound


#: SQLSTATEs of lost connections, of conflicts, of rights, and one of nobody's, by the row they meet.
STATES = dict(enumerate(("08006", "57P01", "57014", "40001", "42501", "AS001", "25006"), 7))


@pytest.mark.parametrize("n", [30, 60])
def test_a_trigger_chooses_its_sqlstate_and_it_is_its_rows_all_the_same(pg_url, n):
    """No connection was lost, whatever the SQLSTATE means elsewhere, so nothing is retried."""
    fill(n)
    chosen = " ".join(
        f"IF NEW.spectrum_pk = {key} THEN RAISE 'not {key}' USING ERRCODE = '{state}'; END IF;"
        for key, state in STATES.items()
    )
    with connection():
        database.execute_sql(
            "CREATE FUNCTION choose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"{chosen} RETURN NEW; END $$"
        )
        database.execute_sql(
            "CREATE TRIGGER choose BEFORE INSERT ON measured FOR EACH ROW EXECUTE FUNCTION choose()"
        )
    (made,) = create_plan(measure, BossVisitSpectrum)
    run_here(made.plan)
    assert status(made.plan).rows == {"done": n - len(STATES), "failed": len(STATES)}
    with connection():
        failed = {int(f.key): f.message for f in Failure.select()}
    assert failed == {key: f"not {key}" for key in STATES}


@task
def misspelt(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, valeu=1.0)


@task
def of_dicts(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        yield {"spectrum_pk": spectrum.spectrum_pk, "value": 1.0}  # type: ignore[misc]


@task
def wrongly_called(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for _ in spectra:
        yield Measured.from_spectrum()


@task
def of_one_list(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    yield [Measured.from_spectrum(row, value=1.0) for row in spectra]  # type: ignore[misc]


@task(many=True)
def of_one_list_with_many(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    yield [Measured.from_spectrum(row, value=1.0) for row in spectra]  # type: ignore[misc]


@task
def without_keys(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for _ in list(spectra)[1:]:
        yield Measured(value=1.0)


@task
def none_or_nothing(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for row in spectra:
        if row.spectrum_pk % 3 == 0:
            yield None  # type: ignore[misc]
        elif row.spectrum_pk % 3 == 1:
            yield Measured.from_spectrum(row, value=1.0)


def test_none_is_a_mistake_in_its_own_row_alone(url):
    plan = run(none_or_nothing)
    assert status(plan).rows == {"done": 10, "failed": 10, "no result": 10}
    assert verify(plan).sound


@pytest.mark.parametrize(
    "function",
    [misspelt, of_dicts, wrongly_called, of_one_list, of_one_list_with_many, without_keys],
)
def test_a_task_that_cannot_work_leaves_its_first_rows_pending(url, function):
    assert left_pending(run(function, max_rows=3))
