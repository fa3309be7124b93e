"""Who is who among databases: a copy does not take the original's plans, folders or files for its own."""

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from peewee import SQL

from astra.api import run_here
from astra.config.run_folder import run_folder, spool_files
from astra.database.connection import bind, connection, database, dialect, reset
from astra.database.sqlite import SQLite
from astra.doctor.database import database as examined
from astra.errors import DatabaseError, UsageError
from astra.models import BossVisitSpectrum
from astra.models.archive import Archive, check_archive
from astra.models.plans import Page, Plan
from astra.models.schema import init_database
from astra.night.clean import clean
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.resume.cancel import cancel
from astra.resume.resume import resume_local
from astra.status.status import status
from astra.status.verify import verify
from tests.conftest import prepare_template
from tests.sample_tasks import Measured, fill, measure
from tests.servers import Copy, Postgres, Standby


def plan_of(n: int) -> Plan:
    fill(n)
    (made,) = create_plan(measure, BossVisitSpectrum, limit=5)
    return get_plan(made.plan)


@pytest.fixture
def copied(url, tmp_path, request):
    """A database with a living plan, and the URL of a copy of it."""
    plan = plan_of(10)
    if url.startswith("sqlite"):
        bind(url)  # closes the file
        copy = tmp_path / "elsewhere" / "copy.db"
        copy.parent.mkdir()
        shutil.copy(url.removeprefix("sqlite:///"), copy)
        yield plan, f"sqlite:///{copy}"
        return
    postgres = request.getfixturevalue("postgres")
    name = urlsplit(url).path.strip("/")
    bind(url)
    postgres.sql(f'CREATE DATABASE "{name}_copy" TEMPLATE "{name}"')
    yield plan, postgres.url(f"{name}_copy")
    bind(url)
    postgres.drop_database(f"{name}_copy")


def test_nothing_is_written_to_a_copy_until_it_is_said_to_be_one(url, copied):
    plan, copy = copied
    bind(copy)
    assert sum(status(plan.pk).rows.values()) == 10  # to look is harmless
    commands = (
        lambda: create_plan(measure, BossVisitSpectrum),
        lambda: resume_local(plan.pk),
        lambda: cancel(plan.pk),
        lambda: clean(keep_days=0),
        lambda: list(measure(BossVisitSpectrum.select())),
        init_database,
    )
    for command in commands:
        with pytest.raises(DatabaseError, match=r"initdb --copied.*initdb --moved"):
            command()
    with connection():
        assert Measured.select().count() == 0 and Plan.get().cancelled is None


def test_a_database_whose_identity_was_deleted_gets_another(url):
    fill(1)
    with connection():
        Archive.delete().execute()
    database.obj.is_known = False
    with pytest.raises(DatabaseError, match=r"astra_archive of .* is empty.*: astra initdb"):
        create_plan(measure, BossVisitSpectrum)
    init_database()
    assert create_plan(measure, BossVisitSpectrum)[0].rows == 1


def test_a_copy_gives_up_the_originals_plans_and_leaves_its_files_alone(url, copied):
    plan, copy = copied
    script = run_folder(plan.folder) / "script.sh"
    script.parent.mkdir(parents=True)
    script.write_text("of the original")
    bind(copy)
    notes: list[str] = []
    init_database(copied=True, notes=notes)
    assert any("are cancelled here: 1;" in note for note in notes)
    assert get_plan(plan.pk).folder != plan.folder
    with connection():
        Page.update(modified=SQL("'2001-01-01 00:00:00'")).execute()
        Plan.update(created=SQL("'2001-01-01 00:00:00'")).execute()
    assert clean(keep_days=1).plans == (plan.pk,)
    assert script.read_text() == "of the original"
    (again,) = create_plan(measure, BossVisitSpectrum)
    assert again.rows == 10
    run_here(again.plan)
    with connection():
        assert Measured.select().count() == 10
    bind(url)
    check_archive()
    with connection():
        assert Measured.select().count() == 0
    resume_local(plan.pk)
    assert status(plan.pk).state == "whole"


def test_one_that_was_moved_goes_on_with_its_plans(url, copied):
    plan, copy = copied
    with connection():
        before = Archive.get().identifier
    bind(copy)
    init_database(moved=True)
    with connection():
        assert Archive.get().identifier == before
    resume_local(plan.pk)
    assert status(plan.pk).state == "whole"
    with pytest.raises(UsageError, match="neither copied nor moved"):
        init_database(moved=True)


def test_a_file_may_be_renamed_and_restored_in_its_place(sqlite_url, tmp_path):
    plan_of(5)
    bind(sqlite_url)
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    renamed = file.rename(tmp_path / "renamed.db")
    bind(f"sqlite:///{renamed}")
    check_archive()
    shutil.copy(renamed, tmp_path / "backup")
    reset()
    shutil.copy(tmp_path / "backup", tmp_path / "new")
    (tmp_path / "new").replace(renamed)  # another inode
    bind(f"sqlite:///{renamed}")
    check_archive()


def test_a_copy_in_another_filesystem_or_on_another_host_is_one(sqlite_url, tmp_path):
    """Inodes are given in each filesystem anew, and paths on each host."""
    (tmp_path / "here.db").touch()
    same = SQLite.is_same_location
    left, gone = f"the file {tmp_path}/here.db", f"the file {tmp_path}/gone.db"
    assert same(f"{gone} (inode 7, a)", "the file /copy.db (inode 7, a)")  # it was renamed
    bind(sqlite_url)
    copy = sqlite_url.removeprefix("sqlite:///")
    assert not same(f"{left} (inode 7, a)", f"the file {copy} (inode 7, a)")
    assert same(f"{left} (inode 7, a)", f"{left} (inode 7, b)")  # it is shared
    assert same(f"{left} (inode 7, a)", f"{left} (inode 8, a)")  # it was restored
    assert not same(f"{left} (inode 7, a)", f"{left} (inode 8, b)")


def test_a_schema_that_was_copied_within_its_database_is_a_copy(pg_url):
    bind(pg_url)
    with connection(), database.atomic() as transaction:
        check_archive()
        database.execute_sql("CREATE SCHEMA other")
        database.execute_sql("CREATE TABLE other.astra_archive AS TABLE astra_archive")
        known, here = Archive.get().made_in, dialect().location()
        assert here != dialect().location("other") and not dialect().is_same_location(
            f"{here}", dialect().location("other")
        )
        assert dialect().is_same_location(known, here)
        transaction.rollback()


def test_a_copy_of_a_servers_files_is_a_copy(pg_url, postgres):
    """It has the original's numbers, and a port of its own; a standby that took over may write."""
    plan = plan_of(10)
    bind(pg_url)
    with Copy(postgres) as server:
        copy = server.url(urlsplit(pg_url).path.strip("/"))
        bind(copy)
        with pytest.raises(DatabaseError, match="--copied"):
            cancel(plan.pk)
        init_database(copied=True)
        with connection():
            assert Plan.get().cancelled is not None
        check_archive()
    bind(pg_url)
    resume_local(plan.pk)
    assert status(plan.pk).state == "whole"


def test_a_standby_that_has_taken_over_is_no_copy(pg_url, postgres):
    with Standby(postgres) as server:
        bind(server.url(urlsplit(pg_url).path.strip("/")))
        server.promote()
        check_archive()
        init_database()
        with connection():
            assert Archive.get().made_in == dialect().location()


def test_a_standby_is_no_copy(pg_url, postgres):
    plan_of(10)
    with Standby(postgres) as server:
        bind(server.url(urlsplit(pg_url).path.strip("/")))
        with pytest.raises(DatabaseError, match="is a standby, on which nothing can be"):
            check_archive()


def test_a_backup_that_was_recovered_beside_its_original_may_be_said_to_be_a_copy(pg_url, postgres):
    """It looks like a standby that has taken over."""
    plan = plan_of(10)
    with Standby(postgres) as server:
        bind(server.url(urlsplit(pg_url).path.strip("/")))
        server.promote()
        assert not [found for found in examined() if "archive" in found.message]
        init_database(copied=True)
        with connection():
            assert Plan.get().cancelled is not None and Plan.get().token != plan.token
        with pytest.raises(UsageError, match="neither copied nor moved"):
            init_database(copied=True)


def test_a_copy_of_a_standby_that_has_taken_over_is_a_copy(pg_url, postgres):
    """Whoever writes first after a failover records where the archive is now."""
    name, role = urlsplit(pg_url).path.strip("/"), "plans_after_failover"
    postgres.create_role(role, "x")
    bind(pg_url)
    init_database(grant=(f"{role}:plans",))
    with Standby(postgres) as primary:
        primary.promote()
        bind(primary.url(name, role, "x"))
        check_archive()
        with Copy(primary) as copy:
            bind(copy.url(name))
            with pytest.raises(DatabaseError, match="--copied"):
                check_archive()
        bind(primary.url(name))
        check_archive()


def test_a_copy_in_the_former_place_of_a_renamed_file_is_a_copy(sqlite_url, tmp_path):
    former = Path(sqlite_url.removeprefix("sqlite:///"))
    reset()
    renamed = former.rename(tmp_path / "renamed.db")
    bind(f"sqlite:///{renamed}")
    check_archive()
    reset()
    shutil.copy(renamed, former)
    bind(sqlite_url)
    with pytest.raises(DatabaseError, match="--copied"):
        check_archive()


def test_any_role_knows_where_it_is(pg_url, postgres):
    name = urlsplit(pg_url).path.strip("/")
    role = f"nobody_{name}"
    postgres.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    bind(pg_url)
    with connection():
        here = dialect().location()
    bind(postgres.url(name, role, "x"))
    with connection():
        assert dialect().location() == here


def test_spool_files_of_two_archives_in_one_run_directory_are_distinguished(url):
    """Two archives may have a plan 1 each, whose pages have a first attempt each."""
    plan = plan_of(5)
    other = Plan(pk=plan.pk, token="other")
    folder = run_folder(other.folder) / "spool"
    folder.mkdir(parents=True)
    for name in ("page-1-attempt-1.spool", "page-x-attempt-1.spool", "notes.spool"):
        (folder / name).write_text("stray")
    assert spool_files(plan.folder) == []
    assert [path.name for path in spool_files(other.folder)] == ["page-1-attempt-1.spool"]


@pytest.mark.postgres
def test_a_copy_numbers_its_rows_on_after_a_crash():
    """PostgreSQL logs 32 numbers in advance, for the original alone."""
    with Postgres() as server:
        prepare_template(server.create_database("original"))
        bind(server.url("original"))
        fill(20)
        create_plan(measure, "BossVisitSpectrum", limit=5)
        reset()
        bind(server.copy_database("original", "copied"))
        init_database(copied=True)
        (planned,) = create_plan(measure, "BossVisitSpectrum", limit=5)
        reset()
        server.kill()
        server.start()
        bind(server.url("copied"))
        assert not [breach for breach in verify(planned.plan).breaches if breach.check == "guards"]
        cancel(planned.plan)
        (again,) = create_plan(measure, "BossVisitSpectrum", limit=5)
        assert again.plan > planned.plan
        reset()


def test_an_archive_behind_the_schema_of_a_role_is_no_copy(pg_url):
    """By default, the schema of a role's own name comes first in its ``search_path``."""
    with connection():
        database.execute_sql("CREATE SCHEMA AUTHORIZATION CURRENT_USER")
    reset()
    with connection():
        check_archive()
