"""Whatever is forged by hand in the database is found by `verify`.

One sound archive is built for each database; each forgery is rolled back.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from astra.api import run_here
from astra.database.connection import bind, connection, database, dialect, reset
from astra.models import BossVisitSpectrum, Source
from astra.models.plans import Page, Plan, Submission
from astra.models.schema import init_database
from astra.plan.plan import create_plan
from astra.status.verify import verify
from astra.status.verify_rows import Verifier
from tests.sample_tasks import fill, measure, on_sources
from tests.servers import Postgres

#: Page 1 of plan 1 holds the keys 30 to 21, of which 27 failed and 22 has no result.
_PAGE = "(SELECT pk FROM page WHERE plan_pk = 1 AND number = 1)"
_ATTEMPT = f"UPDATE attempt SET {{}} WHERE page_pk = {_PAGE}"
_FIRST = "UPDATE page SET {} WHERE plan_pk = 1 AND number = 1"
_RESULT = "UPDATE measured SET {} WHERE spectrum_pk = 23"
_FAILED = "UPDATE failure SET {} WHERE key_text = '27'"
_NOTHING = "UPDATE no_result SET {} WHERE key_text = '22'"
_SUBMITTED = "UPDATE submission SET {} WHERE plan_pk = 1"
_PLAN = "UPDATE plan SET {} WHERE pk = 1"
_LATE = "'2999-01-01 00:00:00.000000'"
_EARLY = "'1999-01-01 00:00:00.000000'"
_COPIED = (
    "INSERT INTO measured (source_pk, spectrum_pk, v_astra, result_number, tag, attempt_pk, "
    "input_read, input_modified, value, number) SELECT source_pk, spectrum_pk, v_astra, {}, tag, "
    "{}, input_read, input_modified, value, number FROM measured WHERE spectrum_pk = 23"
)
_FURTHER = _RESULT + " AND result_number = 1"
_NOT_UNIQUE = "unique indexes of measured"  # dropped

_MADE = "UPDATE made_by SET {} WHERE plan_pk = 1"
_INDEX = "CREATE UNIQUE INDEX forged ON measured (spectrum_pk, v_astra_major_minor, {}"

#: What is forged: the check that names it, perhaps with a part of its message, and the statements.
_FORGERIES = {
    # results
    "result twice": ("result-twice", _NOT_UNIQUE, _COPIED.format(0, "attempt_pk")),
    "index dropped": ("guards", _NOT_UNIQUE),
    "further result of none": ("result-mixed", _COPIED.format(3, "attempt_pk")),
    "results of two attempts": ("result-mixed", _COPIED.format(1, "NULL")),
    "further result of no origin": ("attempt-unknown", _COPIED.format(1, "attempt_pk")),
    "further result read later": (
        "read-too-early", _COPIED.format(1, "attempt_pk"), _FURTHER.format(f"input_read = {_LATE}"),
    ),
    "further result of another input": (
        "result-mixed", _COPIED.format(1, "attempt_pk"),
        _FURTHER.format(f"made_by = (SELECT pk FROM made_by WHERE plan_pk = 1), "
                        f"input_modified = {_EARLY}"),
    ),
    "further result of the future": (
        "moments", _COPIED.format(1, "attempt_pk"), _FURTHER.format(f"modified = {_LATE}"),
    ),
    "further result of another version": (
        "orphans", _COPIED.format(1, "attempt_pk"), _FURTHER.format("v_astra = 7001"),
    ),
    "first of several gone": ("result-mixed", _RESULT.format("result_number = 1")),
    "an attempt that never was": ("attempt-unknown", _RESULT.format("attempt_pk = 999999")),
    "no attempt": ("attempt-unknown", _RESULT.format("attempt_pk = NULL")),
    "another plan's attempt": (
        "attempt-unknown",
        _RESULT.format(
            "attempt_pk = (SELECT min(a.pk) FROM attempt a JOIN page p ON p.pk = a.page_pk "
            "WHERE p.plan_pk = 2)"
        ),
    ),
    "another source": ("wrong-source", _RESULT.format("source_pk = 99")),
    "written in the future": ("moments", _RESULT.format(f"modified = {_LATE}")),
    "made after it was written": ("moments", _RESULT.format(f"created = {_LATE}")),
    # failures and rows without result
    "failure of another plan": ("given-away", _FAILED.format("plan_pk = 2")),
    "failure of no plan": ("given-away", _FAILED.format("plan_pk = NULL")),
    "failure of another attempt": ("given-away", _FAILED.format("attempt_pk = 999999")),
    "failure of another page": ("given-away", _FAILED.format("page = 2")),
    "failure that never was": ("given-away", _FAILED.format("times = 0")),
    "failure of no exception": ("given-away", _FAILED.format("exception = ''")),
    "failure of a further result": ("failure-missing", _FAILED.format("refused = true")),
    "failure of another row": ("orphans", _FAILED.format("key_text = '9999'")),
    "failure in the future": ("given-away", _FAILED.format(f"modified = {_LATE}")),
    "failure called one of another row": ("records", _FAILED.format("exception = 'ForeignRow'")),
    "no result of another plan": ("given-away", _NOTHING.format("plan_pk = 2")),
    "no result of no attempt": ("given-away", _NOTHING.format("attempt_pk = NULL")),
    "no result of another row": ("orphans", _NOTHING.format("key_text = '9999'")),
    # pages
    "submission that is not there": ("records", _FIRST.format("submission_pk = 999")),
    "another plan's submission": (
        "records", _FIRST.format("submission_pk = (SELECT pk FROM submission WHERE plan_pk = 2)"),
    ),
    "keys gone": ("shape", _FIRST.format("keys = NULL")),
    "texts for keys": ("shape", _FIRST.format("key_texts = NULL, keys = NULL")),
    "keys of page 2": (
        "key-twice",
        "UPDATE page SET keys = (SELECT o.keys FROM page o WHERE o.plan_pk = 1 AND o.number = 2) "
        "WHERE plan_pk = 1 AND number = 1",
    ),
    "page in the future": ("records", _FIRST.format(f"modified = {_LATE}")),
    "retries": ("records", _FIRST.format("retries = '7'")),
    "page's number": (
        "pages: the plan has only 3 pages", "UPDATE page SET number = 9 WHERE plan_pk = 1 AND number = 3",
    ),
    "page that is free": (
        "records: elements of submission 1 take no pages",
        _SUBMITTED.format("pulls = false"), _FIRST.format("free = true"),
    ),
    "page of no element": (
        "records: submission 1 does not have its element 1",
        _SUBMITTED.format("pulls = false, kind = 'slurm', job_id = 7"), "elements",
    ),
    "page of another plan": ("pages", _FIRST.format("plan_pk = 2, number = 9")),
    "more rows than a page has": ("records", _PLAN.format('"limit" = 9')),
    # attempts
    "attempt gone": ("attempts", f"DELETE FROM attempt WHERE page_pk = {_PAGE}"),
    "attempt of another page": (
        "attempts",
        _ATTEMPT.format(
            "page_pk = (SELECT pk FROM page WHERE plan_pk = 1 AND number = 2), number = 2"
        ),
    ),
    "attempt's number": ("records", _ATTEMPT.format("number = 3")),
    "attempt's state": ("records", _ATTEMPT.format("state = 'gone'")),
    "attempt's submission": ("records", _ATTEMPT.format("submission_pk = 999")),
    "attempt's token": ("records", "UPDATE attempt SET token = 'same'"),
    "attempt without a checkpoint": ("records", _ATTEMPT.format("n_checkpoints = 0")),
    "attempt with fewer than none": ("records", _ATTEMPT.format("n_checkpoints = -1")),
    "attempt with more rows in progress": ("records", _ATTEMPT.format("n_handed = 99")),
    "attempt's job": (
        "records: has the job 8, but its submission has the job 7",
        _SUBMITTED.format("kind = 'slurm', job_id = 7"), _ATTEMPT.format("job_id = 8"),
    ),
    "attempt that goes on": ("records", _ATTEMPT.format("state = 'running'")),
    "attempt before its plan": ("records", _ATTEMPT.format(f"began = {_EARLY}")),
    "attempt's end": ("records", _ATTEMPT.format(f"ended = {_EARLY}")),
    "attempt in the future": ("records", _ATTEMPT.format(f"seen = {_LATE}")),
    # the plan and its submissions
    "submission gone": ("records", "DELETE FROM submission WHERE plan_pk = 1"),
    "submission refused": ("records", _SUBMITTED.format("state = 'refused'")),
    "submission refused, and without pages": (
        "records",
        _SUBMITTED.format("state = 'refused'"),
        "UPDATE page SET submission_pk = NULL WHERE plan_pk = 1",
    ),
    "submission's state": ("records", _SUBMITTED.format("state = 'sent'")),
    "submission's token": ("records", _SUBMITTED.format("token = 'forged'")),
    "submission in the future": (
        "records: was created in the future", _SUBMITTED.format(f"created = {_LATE}"),
    ),
    "submission without a job": (
        "records", _SUBMITTED.format("kind = 'slurm', state = 'submitted', job_id = NULL"),
    ),
    "submission's kind": ("records", _SUBMITTED.format("kind = 'other'")),
    "submission's elements": ("records", "elements"),
    "plan's token": ("records: the plan's token is ''", _PLAN.format("token = ''")),
    "plan's table": ("records", _PLAN.format("input_table = 'spectrum'")),
    "plan's arguments cut": ("records", _PLAN.format("arguments = '{}'")),
    "plan's arguments": ("records", _PLAN.format("arguments = 'none'")),
    "plan's version": ("result-missing", _PLAN.format("v_astra = 9000")),
    "plan cancelled before it was made": ("records", _PLAN.format(f"cancelled = {_EARLY}")),
    "plan in the future": ("records", _PLAN.format(f"created = {_LATE}")),
    "suspect": (
        "records",
        'INSERT INTO suspect (page_pk, place, "group", deaths, exception, cause) '
        f"SELECT pk, 10, 1, 0, 'x', 'x' FROM page WHERE pk = {_PAGE}",
    ),
    # what made it
    "made by nothing": ("attempt-unknown", _RESULT.format("made_by = 999")),
    "made by another plan": (
        "attempt-unknown", _RESULT.format("made_by = (SELECT made_by FROM plan WHERE pk = 2)"),
    ),
    "failure made by nothing": ("given-away", _FAILED.format("made_by = 999")),
    "no result made by nothing": ("given-away", _NOTHING.format("made_by = NULL")),
    "plan made by nothing": ("records", _PLAN.format("made_by = 999")),
    "plan of other arguments": ("records", _PLAN.format("""arguments = '{"raise_every": 3}'""")),
    "plan of another task": ("records", _PLAN.format("task = 'other'")),
    "plan of another patch": ("records", _PLAN.format("v_astra = v_astra + 1")),
    "arguments altered": ("records", _MADE.format("arguments = '{}'")),
    "files altered": ("records", _MADE.format("files = 'none'")),
    "digest altered": ("records", _MADE.format("digest = 'x'")),
    # numbers that contradict one another
    "read after its attempt ended": (
        "read-too-early",
        _RESULT.format("input_read = {0}, modified = {0}").format(
            f"(SELECT {{late}} FROM attempt WHERE page_pk = {_PAGE})"
        ),
    ),
    "result of negative time": ("moments", _RESULT.format("t_elapsed = -3")),
    "more rows at a time": ("records", _PLAN.format('"limit" = 20')),
    "a token twice": ("records", _PLAN.format("token = (SELECT token FROM plan WHERE pk = 2)")),
    "throttle": ("records", _PLAN.format("throttle = -1")),
    "done without an end": ("records", _ATTEMPT.format("ended = NULL")),
    "more ends than rows": ("records", _ATTEMPT.format("n_failed = 9")),
    "an element of no submission": ("records", _ATTEMPT.format("element = 77")),
    "another array index": ("records", _ATTEMPT.format("array_index = 77")),
    "less than no restart": ("records", _ATTEMPT.format("restarts = -1")),
    "times of rows": ("records", _ATTEMPT.format("row_times = 'x'")),
    "submission's offset": ("records", _SUBMITTED.format('"offset" = -7')),
    "submission's profile": ("records", _SUBMITTED.format("profile = 'x'")),
    "retries without a state": ("records", _FIRST.format("retries = '[{}]'")),
    "a row vanishes": (
        "orphans",
        "UPDATE page SET keys = {nine}, outcomes = substr(outcomes, 1, 9), n_rows = 9, "
        "n_done = 9 WHERE plan_pk = 1 AND number = 3",
        _PLAN.format("n_rows = 29"),
        "UPDATE attempt SET n_done = 9 WHERE page_pk = "
        "(SELECT pk FROM page WHERE plan_pk = 1 AND number = 3)",
    ),
    "two archives": (
        "guards",
        "INSERT INTO astra_archive (identifier, made_in, made) "
        f"VALUES ('another', 'elsewhere', {_EARLY})",
    ),
    "no archive": ("guards", "DELETE FROM astra_archive"),
    # tables
    "index of some results": ("guards", _NOT_UNIQUE, _INDEX.format("result_number) WHERE result_number > 0")),
    "index of an expression": ("guards", _NOT_UNIQUE, _INDEX.format("(result_number + task_pk))")),
    "index of more columns": ("guards", _NOT_UNIQUE, _INDEX.format("result_number, task_pk)")),
    "results gone": ("values", "ALTER TABLE measured RENAME TO gone"),
    "inputs gone": ("values", "ALTER TABLE boss_visit_spectrum RENAME TO gone"),
    "trigger dropped": ("guards", "trigger dropped"),
    "unique index of failures": ("guards", "DROP INDEX {failure}"),
    "unique index of attempts": ("guards", "DROP INDEX {attempt}"),
    "pages of no plan": ("orphans", "orphan"),
}  # fmt: skip


def make_archive(url: str) -> None:
    bind(url)
    fill(30)
    arguments = {"raise_every": 27, "nothing_every": 22}
    for function, model in ((measure, BossVisitSpectrum), (on_sources, Source)):
        given = arguments if function is measure else {}
        (planned,) = create_plan(function, model, limit=10, arguments=given)
        run_here(planned.plan)
    assert all(verify(plan.pk).sound for plan in Plan.select())
    reset()


@pytest.fixture(scope="module")
def sqlite_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "astra.db"
    bind(f"sqlite:///{path}")
    init_database(("tests.sample_tasks",))
    make_archive(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="module")
def postgres_archive(postgres: Postgres) -> Iterator[str]:
    make_archive(postgres.create_database("forgeries", template="astra_template"))
    yield "forgeries"
    postgres.drop_database("forgeries")


@pytest.fixture(params=["sqlite", "postgresql"])
def archive(request: pytest.FixtureRequest) -> None:
    """The sound archive; what a test does to it is rolled back."""
    if request.param == "sqlite":
        bind(f"sqlite:///{request.getfixturevalue('sqlite_archive')}")
    else:
        server = request.getfixturevalue("postgres")
        bind(server.url(request.getfixturevalue("postgres_archive")))


def _drop_unique_indexes() -> None:
    for index in database.get_indexes("measured"):
        if index.unique and index.columns != ["task_pk"]:
            database.execute_sql(f'DROP INDEX "{index.name}"')


def forge(what: str) -> None:
    is_sqlite = dialect().name == "sqlite"
    if what == _NOT_UNIQUE:
        _drop_unique_indexes()
    elif what == "elements":
        Submission.update(elements=[2, 2, 3, 3]).where(Submission.plan == 1).execute()
    elif what == "trigger dropped":
        table = "boss_visit_spectrum"
        if not is_sqlite:
            database.execute_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            return
        names = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?"
        for (name,) in database.execute_sql(names, (table,)).fetchall():
            database.execute_sql(f'DROP TRIGGER "{name}"')
    elif what == "orphan":
        if is_sqlite:
            database.execute_sql("PRAGMA defer_foreign_keys = ON")
        else:
            database.execute_sql("ALTER TABLE page DROP CONSTRAINT page_plan_pk_fkey")
        Page.update(plan=99).where(Page.plan == 2).execute()
    elif what.startswith("DROP INDEX"):
        names = {
            table: next(
                i.name for i in database.get_indexes(table) if i.unique and len(i.columns) > 1
            )
            for table in ("failure", "attempt")
        }
        database.execute_sql(what.format(**names))
    else:
        nine = "'[10, 9, 8, 7, 6, 5, 4, 3, 2]'" if is_sqlite else "keys[1:9]"
        late = "max(ended) + interval '1 minute'"
        if is_sqlite:
            late = "strftime('%Y-%m-%d %H:%M:%f', max(ended), '+1 minute') || '000'"
        what = what.replace("{nine}", nine).replace("{late}", late)
        database.execute_sql(what if is_sqlite else what.replace("%", "%%"))


_TRIGGER = (
    "DROP TRIGGER astra_keep_modified ON boss_visit_spectrum; CREATE TRIGGER astra_keep_modified "
    "{} ON boss_visit_spectrum FOR EACH ROW {} EXECUTE FUNCTION astra_keep_modified()"
)
_KEEPER = (
    "CREATE OR REPLACE FUNCTION astra_keep_modified() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN {} RETURN NEW; END $$"
)
_DROPPED = "ALTER TABLE {0} ALTER {1} DROP NOT NULL"
_REFERS = "ALTER TABLE attempt DROP CONSTRAINT attempt_page_pk_fkey"
_AGAIN = f"{_REFERS}, ADD FOREIGN KEY (page_pk) REFERENCES page (pk)"

#: The same of what one kind of database alone can be brought to.
_OF_POSTGRESQL = {
    "index invalid": (
        "guards", "UPDATE pg_index SET indisvalid = false WHERE indrelid = 'measured'::regclass",
    ),
    "index not written": (
        "guards", "UPDATE pg_index SET indisready = false WHERE indrelid = 'measured'::regclass",
    ),
    "trigger that keeps the old outcomes": (
        "guards",
        "CREATE FUNCTION keep_old() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$",
        "CREATE TRIGGER keep_old BEFORE UPDATE ON page FOR EACH ROW EXECUTE FUNCTION keep_old()",
    ),
    "trigger that takes attempts back": (
        "guards",
        "CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "UPDATE public.attempt SET n_done = 0 WHERE pk = NEW.pk; RETURN NULL; END $$",
        "CREATE TRIGGER undo AFTER INSERT ON attempt FOR EACH ROW EXECUTE FUNCTION undo()",
    ),
    "rule that drops failures": ("guards", "CREATE RULE drop AS ON INSERT TO failure DO INSTEAD NOTHING"),
    "trigger does nothing": ("guards", _KEEPER.format("")),
    "trigger does it in a comment": ("guards", _KEEPER.format('-- NEW."modified" :=\n')),
    "trigger does it never": (
        "guards", _KEEPER.format('IF false THEN NEW."modified" := now(); END IF;'),
    ),
    "trigger for replicas": (
        "guards", "ALTER TABLE boss_visit_spectrum ENABLE REPLICA TRIGGER astra_keep_modified",
    ),
    "trigger of a column": ("guards", _TRIGGER.format("BEFORE INSERT OR UPDATE OF snr", "")),
    "trigger with a condition": ("guards", _TRIGGER.format("BEFORE UPDATE", "WHEN (false)")),
    "foreign key dropped": ("guards", _REFERS),
    "foreign key not valid": ("guards", f"{_AGAIN} ON DELETE CASCADE NOT VALID"),
    "foreign key that keeps": ("guards", _AGAIN),
    "primary key of attempts": ("guards", "ALTER TABLE attempt DROP CONSTRAINT attempt_pkey CASCADE"),
    "primary key of results": ("guards", "ALTER TABLE measured DROP CONSTRAINT measured_pkey"),
    "version not computed": (
        "guards", "ALTER TABLE measured ALTER v_astra_major_minor DROP EXPRESSION",
    ),
    "emptied by a crash": ("guards", "ALTER TABLE measured SET UNLOGGED"),
    "numbers given again": ("guards", "ALTER SEQUENCE measured_task_pk_seq RESTART WITH 1"),
    "numbers given no more": ("guards", "ALTER TABLE attempt ALTER pk DROP DEFAULT"),
    "NULL allowed": ("guards", _DROPPED.format("page", "n_done")),
    "NULL in a page": (
        "values", _DROPPED.format("page", "outcomes"), _FIRST.format("outcomes = NULL"),
    ),
    "NULL in an attempt": (
        "values", _DROPPED.format("attempt", "began"), _ATTEMPT.format("began = NULL"),
    ),
    "NULL in a result": (
        "values", _DROPPED.format("measured", "result_number"), _RESULT.format("result_number = NULL"),
    ),
}  # fmt: skip
_KEEP = "boss_visit_spectrum_modified_update"
_OF_SQLITE = {
    "trigger of a column": ("guards", "trigger", "AFTER UPDATE", "AFTER UPDATE OF snr"),
    "trigger with a condition": ("guards", "trigger", "WHEN ", "WHEN 0 AND "),
    "trigger of another form": ("guards", f"DROP TRIGGER {_KEEP.replace('update', 'form_insert')}"),
    "trigger that takes outcomes back": (
        "guards",
        "CREATE TRIGGER undo AFTER UPDATE OF n_done ON page BEGIN "
        "UPDATE OR IGNORE page SET n_done = OLD.n_done WHERE pk = NEW.pk; END",
    ),
    "trigger that drops failures": (
        "guards", "CREATE TRIGGER undo BEFORE INSERT ON failure BEGIN SELECT RAISE(IGNORE); END",
    ),
    "text in an attempt": ("values", _ATTEMPT.format("n_done = 'x'")),
    "text in a page": ("values", _FIRST.format("n_done = 'x'")),
    "no moment": ("values", _ATTEMPT.format("began = 'yesterday'")),
    "no keys": ("values", _FIRST.format("keys = 'nonsense'")),
    "keys of another kind": ("values", _FIRST.format("""keys = '["a"]'""")),
    "no elements": ("values", _SUBMITTED.format("elements = 'nonsense'")),
    "no version": ("values", _PLAN.format("v_astra = 'x'")),
    "text in a result": ("values", _RESULT.format("attempt_pk = 'x'")),
}  # fmt: skip


@pytest.mark.parametrize("name", _OF_POSTGRESQL)
@pytest.mark.parametrize("archive", ["postgresql"], indirect=True)
def test_a_forgery_in_postgresql_is_named(archive, name):
    assert_named(*_OF_POSTGRESQL[name])


@pytest.mark.parametrize("name", _OF_SQLITE)
@pytest.mark.parametrize("archive", ["sqlite"], indirect=True)
def test_a_forgery_in_sqlite_is_named(archive, name):
    check, *statements = _OF_SQLITE[name]
    if statements[0] == "trigger":
        _, old, new = statements
        with connection():
            (sql,) = database.execute_sql(
                "SELECT sql FROM sqlite_master WHERE name = ?", (_KEEP,)
            ).fetchone()
        statements = [f"DROP TRIGGER {_KEEP}", sql.replace(old, new)]
    assert_named(check, *statements)


@pytest.mark.parametrize("name", _FORGERIES)
def test_a_forgery_is_named(archive, name):
    assert_named(*_FORGERIES[name])


def assert_named(check: str, *statements: str) -> None:
    """A forgery is named by a check; it is rolled back."""
    with connection(), database.atomic() as transaction:
        for statement in statements:
            forge(statement)
        found = Verifier(
            Plan.get_by_id(1), max_listed=20, is_grouped=False
        ).verdict()  # as `verify` does in a snapshot
        transaction.rollback()
    assert not found.sound and found.exit_status == 4
    check, _, said = check.partition(": ")
    problems = [breach.problem for breach in found.breaches if breach.check == check]
    assert any(said in problem for problem in problems), found.breaches


def audit(table: str) -> None:
    """Write each change of a table down in another."""
    database.execute_sql("CREATE TABLE audit (pk BIGINT)")
    start = f"CREATE TRIGGER audit AFTER UPDATE ON {table}"
    note = "INSERT INTO audit VALUES (NEW.pk)"
    if dialect().name == "sqlite":
        database.execute_sql(f"{start} BEGIN {note}; END")
        return
    database.execute_sql(
        f"CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {note}; "
        "RETURN NULL; END $$"
    )
    database.execute_sql(f"{start} FOR EACH ROW EXECUTE FUNCTION audit()")


def test_what_may_be_is_sound(archive):
    """Direct calls, changes, repeated runs and an audit are no forgeries."""
    rows = BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk << [3, 23, 24])
    with connection(), database.atomic() as transaction:
        list(measure(rows.where(BossVisitSpectrum.spectrum_pk != 24)))
        database.execute_sql(
            "UPDATE boss_visit_spectrum SET source_pk = NULL WHERE spectrum_pk = 5"
        )
        audit("page")
        found = Verifier(
            Plan.get_by_id(1), max_listed=20, is_grouped=False
        ).verdict()  # as `verify` does in a snapshot
        transaction.rollback()
    assert found.sound, found.breaches
    assert (found.of_others, found.modified_since) == (2, 1)
