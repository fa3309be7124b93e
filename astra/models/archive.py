"""Identify the archive of a database, and notice when it was copied or moved.

An identifier in a database is copied with it. So the archive also stores where it was created. If
that differs, somebody has copied, restored or moved the database, and has to say which before
anything is written: the plans in a copy belong to the original, which continues with them.
"""

from secrets import token_hex

import peewee
from peewee import SQL, TextField

from astra.config.secrets import hide_password
from astra.database.connection import connection, database, dialect, schema, url, writing
from astra.database.inspection import lacking, server
from astra.errors import DatabaseError, UsageError
from astra.models.attempts import Attempt
from astra.models.base import BaseModel, TimeField
from astra.models.plans import IS_LIVE, N_PENDING, Page, Plan, Submission
from astra.states import AttemptState


class Archive(BaseModel):
    """The identity of this database: one row."""

    identifier = TextField(primary_key=True)
    made_in = TextField()  # the server and database, or the file
    made = TimeField(now=True, null=False)

    class Meta:
        table_name = "astra_archive"


def check_archive() -> None:
    """Refuse to write to a database that is not where its archive was created.

    A standby that has become the primary, or a file that was renamed, is recorded as the new place:
    copies of it are noticed from then on.
    """
    if getattr(database.obj, "is_known", False):
        return
    if (place := new_place()) is not None:
        with connection():
            if not lacking([(Archive, "UPDATE")]):
                with writing(waits=True):
                    Archive.update(made_in=place).execute()
    database.obj.is_known = True


def new_place() -> str | None:
    """Return where the database is, if its archive has another place on record.

    Raises
    ------
    DatabaseError
        If it is a copy of that place, or a standby of the server there, or has no tables of astra.
    """
    with connection():
        try:
            known = Archive.select().first()
        except peewee.DatabaseError:
            from astra.models.table_checks import check_version  # here, as elements do without it

            check_version()  # raises if there are no tables of astra
            raise
        place = dialect().location(schema())
    if known is None:
        raise DatabaseError(
            f"the table astra_archive of {hide_password(url())} is empty, so that the database "
            "cannot be distinguished from a copy of it: astra initdb"
        )
    if not dialect().is_same_location(known.made_in, place):
        with connection():
            is_standby = server().is_standby
        if is_standby:
            raise DatabaseError(
                f"the database {hide_password(url())} is a standby, on which nothing can be "
                "written: name the primary in ASTRA_DATABASE_URL"
            )
        raise DatabaseError(
            f"the archive {known.identifier} was made in {known.made_in}, and the database "
            f"{hide_password(url())} is {place}. If the other one is still in use, this is a copy, "
            "whose active plans have to be cancelled here: astra initdb --copied. If this one has "
            "taken its place: astra initdb --moved. Until then nothing is written"
        )
    return place if place != known.made_in else None


def identify_archive(copied: bool, moved: bool) -> str | None:
    """Store the identity of this database, in the caller's transaction; return what was done.

    Raises
    ------
    UsageError
        If it is declared copied or moved, but is where it was created.
    DatabaseError
        If it was copied or moved, but not declared to be.
    """
    archive, place = Archive.select().first(), dialect().location(schema())
    if archive is None:
        Archive.create(identifier=token_hex(8), made_in=place)
        return None
    # A backup that was recovered beside its original looks like a standby that has taken over.
    is_copy = copied and place != archive.made_in
    if dialect().is_same_location(archive.made_in, place) and not is_copy:
        if copied or moved:
            raise UsageError(
                f"the archive {archive.identifier} is where it was made ({place}): it was neither "
                "copied nor moved, and nothing is changed"
            )
        if place != archive.made_in:  # a file was renamed, or a server has failed over
            Archive.update(made_in=place).execute()
        return None
    if not copied and not moved:
        new_place()
    identifier = archive.identifier if moved else token_hex(8)
    Archive.update(identifier=identifier, made_in=place).execute()
    dialect().log_sequences(schema())
    if moved:
        return f"the archive {identifier} is in {place} now"
    n = _give_up_plans()
    return (
        f"a copy of the archive {archive.identifier}, now {identifier}; plans that were active and "
        f"are cancelled here: {n}; their rows are pending"
    )


def _give_up_plans() -> int:
    """Cancel plans, elements and nights, which belong to the original and never run here."""
    from astra.models.nights import Night  # here, as elements check the archive too

    now = SQL(dialect().now_sql)
    living = Plan.pk.in_(Plan.select(Plan.pk).where(IS_LIVE))
    Submission.update(state="absent", message="of the archive that this one was copied from").where(
        Submission.state.in_(["intent", "submitted"])
    ).execute()
    Attempt.update(state=AttemptState.SUPERSEDED.value, ended=now).where(
        Attempt.state == AttemptState.RUNNING.value
    ).execute()
    Page.update(submission_pk=None).where(N_PENDING > 0).execute()
    n_living: int = Plan.update(cancelled=now).where(living).execute()
    for model in (Plan, Night):  # so that they do not use folders of the original
        for row in model.select(model.pk):
            model.update(token=token_hex(4)).where(model.pk == row.pk).execute()
    Night.update(
        ended=now, finalizer=None, finalizer_job=None, message="of the archive that was copied"
    ).where(Night.ended.is_null()).execute()
    return n_living
