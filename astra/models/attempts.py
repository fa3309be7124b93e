"""The tables of attempts at pages, of suspects (rows at which a process died), and of nodes."""

from functools import partial
from secrets import token_hex

from peewee import (
    BigAutoField,
    BigIntegerField,
    Expression,
    FloatField,
    ForeignKeyField,
    IntegerField,
    TextField,
)

from astra.database.connection import connection, dialect
from astra.models.base import BaseModel, TimeField
from astra.models.plans import Page, Submission


class Attempt(BaseModel):
    """One execution of one page: where, when, which job id, how it ended."""

    changes_often = True

    pk = BigAutoField()
    page = ForeignKeyField(
        Page, column_name="page_pk", on_delete="CASCADE", backref="attempts", index=False
    )
    page_pk: int
    token = TextField(default=partial(token_hex, 4))
    submission_pk = BigIntegerField(index=True)
    submission: Submission  # if a query joins it
    page_number: int  # if a query selects it
    number = IntegerField()  # counted from 1 for each page
    element = IntegerField()
    state = TextField()
    job_id = BigIntegerField(null=True)  # the array's
    array_index = IntegerField(null=True)
    restarts = IntegerField(default=0)  # SLURM_RESTART_COUNT
    host = TextField()
    pid = IntegerField()
    pid_began = TextField(null=True)  # where and when the process began, from /proc
    log = TextField(null=True)
    began = TimeField(now=True, null=False)
    seen = TimeField(now=True, null=False)  # the last claim, checkpoint, heartbeat or end
    ended = TimeField(null=True)
    slurm_state = TextField(null=True)  # how it ended according to Slurm, once that was queried
    n_handed = IntegerField(default=0)  # places of its page that the task may have received
    group = IntegerField(null=True)  # the group of suspects that the task may have received
    n_done = IntegerField(default=0)  # rows that this attempt ended, by how they ended
    n_failed = IntegerField(default=0)
    n_no_result = IntegerField(default=0)
    n_found = IntegerField(default=0)  # rows that had a result from another attempt
    n_checkpoints = IntegerField(default=0)
    t_task_s = FloatField(default=0.0)
    t_read_s = FloatField(default=0.0)
    t_write_s = FloatField(default=0.0)
    t_start_s = FloatField(null=True)  # from the start of the process to the first row
    t_rows_s = FloatField(null=True)  # since the first row
    row_times = TextField(null=True)  # a histogram of the times of rows
    max_rss_mb = FloatField(null=True)  # the peak of the process that ran the task
    message = TextField(null=True)

    class Meta:
        indexes = ((("page", "number"), True),)


def is_same_attempt(attempt: Attempt) -> Expression:
    """Return a clause: the attempt itself, and not one that got its number after data were lost."""
    return (Attempt.pk == attempt.pk) & (Attempt.token == attempt.token)


#: How many rows an attempt has ended, in a query.
N_ENDED = Attempt.n_done + Attempt.n_failed + Attempt.n_no_result + Attempt.n_found


class Suspect(BaseModel):
    """A row that the task was processing when its process died."""

    pk = BigAutoField()
    page = ForeignKeyField(
        Page, column_name="page_pk", on_delete="CASCADE", backref="suspects", index=False
    )
    place = IntegerField()  # in the page, from 0
    group = IntegerField()  # rows of one group are processed together, apart from all others
    deaths = IntegerField(default=0)  # of processes that processed only this row
    exception = TextField()  # the exception that is recorded if the row is given up
    cause = TextField()  # of the last death: "killed its process (signal 11, SIGSEGV)"

    class Meta:
        indexes = ((("page", "place"), True),)


class Exclusion(BaseModel):
    """A node of a cluster that elements avoid for a while because of failures there."""

    pk = BigAutoField()
    cluster = TextField(default="")
    node = TextField()
    reason = TextField()
    since = TimeField(now=True, null=False)
    until = TimeField(null=False)

    class Meta:
        indexes = ((("cluster", "node"), True),)


def excluded_nodes() -> list[Exclusion]:
    """Return the nodes that are excluded at present."""
    with connection():
        return list(Exclusion.select().where(Exclusion.until > dialect().now()))
