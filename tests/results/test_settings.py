"""Settings, moments, constraints and policies of a database that astra did not choose."""

from datetime import timedelta

import pytest

from astra.api import run_here
from astra.database.connection import bind, connection, database, reset, writing
from astra.models import BossVisitSpectrum
from astra.models.failures import Failure
from astra.plan.plan import create_plan
from astra.status.verify import verify
from tests.sample_tasks import Measured, fill, measure

pytestmark = pytest.mark.postgres


def run_all() -> dict[str, str]:
    """What failed of a plan of all pending rows, which is sound and has no pending row left."""
    (planned,) = create_plan(measure, BossVisitSpectrum, limit=60)
    assert planned.plan is not None
    run_here(planned.plan)
    found = verify(planned.plan)
    assert found.sound and found.whole, found
    with connection():
        return {str(f.key): f.message for f in Failure.select()}


@pytest.mark.parametrize("moment", ["20260-01-01", "0044-03-15 BC", "infinity", "-infinity"])
def test_a_moment_that_python_does_not_have(pg_url, moment):
    fill(60)
    with connection():
        database.execute_sql("ALTER TABLE boss_visit_spectrum DISABLE TRIGGER USER")
        database.execute_sql(
            f"UPDATE boss_visit_spectrum SET modified = '{moment}' WHERE spectrum_pk = 7"
        )
        database.execute_sql("ALTER TABLE boss_visit_spectrum ENABLE TRIGGER USER")
    failures = run_all()
    with connection():
        n_results = Measured.select().count()
    assert n_results + len(failures) == 60 and failures.keys() <= {"7"}


def test_a_period_that_python_does_not_have_is_read_as_its_text(pg_url):
    periods = ["1 year 2 mons", "-1 mons +3 days", "2147483647 days"]
    with connection():
        texts = ", ".join(f"interval '{period}'" for period in periods)
        *read, day = database.execute_sql(f"SELECT {texts}, interval '1 day'").fetchone()
    assert (read, day) == (periods, timedelta(days=1))


def test_an_error_that_would_come_at_commit_is_its_rows(pg_url):
    fill(60)
    with connection():
        database.execute_sql("CREATE TABLE allowed (spectrum_pk bigint PRIMARY KEY)")
        database.execute_sql(
            "INSERT INTO allowed SELECT spectrum_pk FROM boss_visit_spectrum WHERE spectrum_pk <> 7"
        )
        database.execute_sql(
            "ALTER TABLE measured ADD FOREIGN KEY (spectrum_pk) REFERENCES allowed "
            "DEFERRABLE INITIALLY DEFERRED"
        )
    failures = run_all()
    assert list(failures) == ["7"] and "allowed" in failures["7"]
    with connection():
        assert Measured.select().count() == 59


@pytest.mark.parametrize(
    ("policy", "refused"),
    [
        ("true", []),
        ("spectrum_pk <> 7", ["7"]),
        ("spectrum_pk % 8 > 0", [str(8 * n) for n in range(1, 16)]),
    ],
)
def test_row_level_security_is_no_obstacle(pg_url, postgres, monkeypatch, policy, refused):
    """COPY raises where policies hold: results are written in another way, as they allow."""
    fill(120)
    name = pg_url.partition("?")[0].rpartition("/")[2]
    with connection():
        database.execute_sql("ALTER TABLE measured ENABLE ROW LEVEL SECURITY")
        database.execute_sql("ALTER TABLE measured FORCE ROW LEVEL SECURITY")
        database.execute_sql(
            f"CREATE POLICY allowed ON measured USING (true) WITH CHECK ({policy})".replace(
                "%", "%%"
            )
        )
    url = postgres.url(name, user="astra")
    monkeypatch.setenv("ASTRA_DATABASE_URL", url)
    reset()
    bind(url)
    failures = run_all()
    assert sorted(failures, key=int) == refused
    with connection():
        assert Measured.select().count() == 120 - len(refused)


def test_checkpoints_are_on_the_disk_whatever_a_role_is_set_to(pg_url):
    with connection():
        database.execute_sql("SET synchronous_commit = off")
        with writing():
            ((found,),) = database.execute_sql("SHOW synchronous_commit").fetchall()
        assert found == "on"
        ((found,),) = database.execute_sql("SHOW synchronous_commit").fetchall()
        assert found == "off"
