"""The tables of astra's own state: plans, pages, submissions, attempts, rows without a result."""

from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, cast

from peewee import (
    AutoField,
    BigAutoField,
    BigIntegerField,
    BlobField,
    BooleanField,
    FloatField,
    ForeignKeyField,
    IntegerField,
    TextField,
)

from astra.database.connection import connection, dialect
from astra.models.base import BaseModel, KeysField, KeyTextsField, RoleField, TimeField
from astra.models.locks import Lock
from astra.models.nights import Night, NightPlan
from astra.models.stored_json import StoredProfile, options_of, stored
from astra.version import Version

if TYPE_CHECKING:
    from astra.slurm.parse import JobId


class Schema(BaseModel):
    """The version of the tables: one row."""

    version = IntegerField()

    class Meta:
        table_name = "astra_schema"


class Plan(BaseModel):
    """The pending rows of one task and input model, frozen, cut into pages."""

    pk = BigAutoField()
    token = TextField(default=partial(token_hex, 4))  # unique, while numbers are assigned again
    task = TextField()  # its name: "slam.slam"
    task_path = TextField()  # where it is imported from: "astra.pipelines.slam:slam"
    import_root = TextField(null=True)  # the folder that it was imported from, if not installed
    input_model = TextField()  # "astra.models.boss:BossVisitSpectrum"
    input_table = TextField()
    output_model = TextField()
    arguments = TextField()  # JSON: the task's arguments
    arguments_digest = TextField(null=True)  # SHA-256 of that text
    limit = IntegerField()  # rows per page
    n_pages = IntegerField()
    n_rows = BigIntegerField()
    v_astra = IntegerField()
    commit = TextField(null=True)  # of the task's code, with "+" if it was modified
    created = TimeField(now=True, null=False)
    created_by = TextField()
    created_on = TextField()  # the host
    role = RoleField(null=True)  # the database role that created it
    cwd = TextField()
    cancelled = TimeField(null=True)
    redo = TextField(null=True)  # which rows that had ended are processed again, as it was typed
    where = TextField(null=True)  # the condition on its rows, as it was typed
    made_by = IntegerField(null=True)  # the MadeBy of its results
    paused = TimeField(null=True)  # since when its elements take no further page
    pause_reason = TextField(null=True)
    throttle = IntegerField(null=True)  # at most so many elements take a further page

    class Meta:
        indexes = ((("task", "input_table"), False),)

    @property
    def folder(self) -> str:
        """The name of its folder in the run directory."""
        return f"plan-{self.pk}-{self.token}"

    @property
    def version(self) -> Version:
        """Return the version of astra that made the plan."""
        return Version(self.v_astra)


class MadeBy(BaseModel):
    """The origin of results, which point to it: a task, its arguments and files, and its code."""

    pk = AutoField()
    fingerprint = TextField(unique=True)  # of all following columns, and the plan
    task = TextField()
    output_table = TextField(null=True)  # the table of the results
    digest = TextField()  # of all that changes results: arguments, contents of files, revision
    plan_pk = BigIntegerField(null=True)  # None: the task was called directly
    arguments = TextField()  # JSON: all of them, including defaults
    arguments_digest = TextField(index=True)
    files = TextField()  # JSON: for each argument that names files, their digests by path
    revision = TextField(null=True)  # of @task
    commit = TextField(null=True)  # of the task's code, with "+" if it was modified
    v_astra = IntegerField()
    created = TimeField(now=True, null=False)

    class Meta:
        indexes = ((("task", "digest"), False),)


class Submission(BaseModel):
    """One Slurm array, or one batch of local processes, and the pages that it is for.

    The intent is committed, with its token, before sbatch is called.
    """

    pk = BigAutoField()
    plan = ForeignKeyField(Plan, column_name="plan_pk", on_delete="CASCADE", backref="submissions")
    plan_pk: int
    token = TextField(unique=True)
    kind = TextField()  # "slurm" or "local"
    state = TextField()  # intent, submitted, refused, absent
    job_id = BigIntegerField(null=True, index=True)  # of the array; for local ones the pid
    cluster = TextField(null=True)  # as given to sbatch's --clusters
    cluster_name = TextField(null=True)  # of the cluster that took it
    pid_began = TextField(null=True)  # for local ones: the start time of the process
    job_name = TextField()
    host = TextField()  # from which it was submitted
    elements = KeysField()  # numbers of its elements, counted from 1 over the whole plan
    offset = IntegerField()  # element = array index + offset
    pages_per_element = IntegerField()
    pulls = BooleanField(default=False)  # its elements take any of its pages that are free
    watcher = IntegerField(null=True)  # the element that checks whether the others are alive
    watched = TimeField(null=True)  # when it last checked
    profile = TextField()  # JSON: the name, options and set-up that were used
    script = TextField(null=True)
    log_folder = TextField(null=True)
    message = TextField(null=True)  # Slurm's message, if it refused
    created = TimeField(now=True, null=False)
    created_by = TextField()
    role = RoleField(null=True)  # the database role that created it

    @property
    def options(self) -> dict[str, str | float]:
        """sbatch's options that its elements were submitted with."""
        return options_of(self.stored_profile)

    @property
    def stored_profile(self) -> StoredProfile:
        """The profile that it was submitted with: its name, options, throttle and set-up."""
        profile = stored(self.profile, dict, f"the profile of submission {self.pk}")
        return cast("StoredProfile", profile)

    @property
    def job(self) -> "JobId":
        """The array that was submitted: its number counts only with its name and cluster."""
        from astra.slurm.parse import JobId  # here, as elements seldom ask Slurm

        number = self.job_id or 0
        return JobId(number, self.cluster, self.job_name, self.cluster_name, self.created_by)


class OutcomesField(BlobField):
    """A byte for each row, read as bytes also where the driver returns a memoryview."""

    def python_value(self, value: bytes | memoryview | None) -> bytes | None:
        return None if value is None else bytes(value)


class Page(BaseModel):
    """Up to ``limit`` rows of a plan, with one byte per row for how it ended (states.Outcome).

    A row is identified by its place in the page; keys are numbers, or the texts of other keys.
    """

    pk = BigAutoField()
    plan = ForeignKeyField(  # the index below serves it
        Plan, column_name="plan_pk", on_delete="CASCADE", backref="pages", index=False
    )
    plan_pk: int
    number = IntegerField()
    n_rows = IntegerField()
    keys = KeysField(null=True)
    key_texts = KeyTextsField(null=True)  # if the keys are not whole numbers
    outcomes = OutcomesField()
    n_done = IntegerField(default=0)
    n_failed = IntegerField(default=0)
    n_no_result = IntegerField(default=0)
    submission_pk = BigIntegerField(null=True)  # the submission whose elements may claim it
    attempt_pk = BigIntegerField(null=True)  # the only attempt that may write
    # Whether any element of a submission that pulls may take the page, which changes when a page is
    # claimed or released; NULL where pages are assigned to elements.
    free = BooleanField(null=True)
    retries = TextField(null=True)  # JSON: the number of retries after each Slurm state
    modified = TimeField(now=True, null=False)

    class Meta:
        indexes = ((("plan", "number"), True),)

    @classmethod
    def complete_table(cls) -> None:
        """Leave room for updates: rows change at each checkpoint, and indexes should not."""
        super().complete_table()
        dialect().leave_room(cls)

    @property
    def row_keys(self) -> list[int | str]:
        """The keys of its rows, by place."""
        keys: list[int | str] = self.key_texts if self.keys is None else self.keys
        return keys

    @property
    def n_pending(self) -> int:
        return self.n_rows - self.n_done - self.n_failed - self.n_no_result


Page.add_index(Page.index(Page.submission_pk, name="page_free", where=Page.free))

#: :attr:`Page.n_pending` in a query.
N_PENDING = Page.n_rows - Page.n_done - Page.n_failed - Page.n_no_result


class Attempt(BaseModel):
    """One execution of one page: where, when, which job id, how it ended."""

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
    pid_began = TextField(null=True)  # the start time of the process, from /proc
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

    @classmethod
    def complete_table(cls) -> None:
        """Leave room for updates, as in the table of pages."""
        super().complete_table()
        dialect().leave_room(cls)


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
    """A node that elements avoid for a while because of failures there."""

    pk = BigAutoField()
    node = TextField(unique=True)
    reason = TextField()
    since = TimeField(now=True, null=False)
    until = TimeField(null=False)


class RowKeyField(TextField):
    """The key of a row of any table, stored as text."""

    def db_value(self, value: object) -> str | None:
        return None if value is None else str(value)


class RowWithoutResult(BaseModel):
    """The columns for a row that ended without a result at a version."""

    pk = BigAutoField()
    task = TextField()
    input_table = TextField()
    key = RowKeyField(column_name="key_text")
    v_astra_major_minor = IntegerField()
    input_modified = TimeField(null=True)
    attempt_pk = BigIntegerField(null=True)
    plan_pk = BigIntegerField(null=True, index=True)
    page = IntegerField(null=True)
    made_by = IntegerField(null=True)
    modified = TimeField(now=True, null=False)


class Failure(RowWithoutResult):
    """One input row whose processing raised: its key, attempt and traceback."""

    exception = TextField()  # the name of its class
    message = TextField()
    place = TextField(null=True)  # file:line in the task's own code
    traceback = TextField(null=True)
    times = IntegerField(default=1)
    refused = BooleanField(default=False)  # another result of a row that has one

    class Meta:
        indexes = ((("task", "input_table", "key", "v_astra_major_minor"), True),)


class NoResult(RowWithoutResult):
    """One input row for which the task yielded nothing."""

    class Meta:
        indexes = ((("task", "input_table", "key", "v_astra_major_minor"), True),)


#: Tables in the order in which they are created.
ORCHESTRATION = (
    Schema, Plan, MadeBy, Submission, Page, Attempt, Suspect, Exclusion, Failure, NoResult,
    Night, NightPlan, Lock,
)  # fmt: skip


def excluded_nodes() -> dict[str, Exclusion]:
    """Return the nodes that are excluded at present."""
    with connection():
        return {e.node: e for e in Exclusion.select().where(Exclusion.until > dialect().now())}
