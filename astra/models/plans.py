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
    token = TextField(default=partial(token_hex, 4))  # numbers are given again, tokens are not
    task = TextField()  # its name: "slam.slam"
    task_path = TextField()  # where it is imported from: "astra.pipelines.slam:slam"
    import_root = TextField(null=True)  # the folder that the import began at, if not installed
    input_model = TextField()  # "astra.models.boss:BossVisitSpectrum"
    input_table = TextField()
    output_model = TextField()
    arguments = TextField()  # JSON: what the task is called with
    arguments_digest = TextField(null=True)  # SHA-256 of that text
    limit = IntegerField()  # rows per page
    n_pages = IntegerField()
    n_rows = BigIntegerField()
    v_astra = IntegerField()
    commit = TextField(null=True)  # of the task's code, with "+" where it was modified
    created = TimeField(now=True, null=False)
    created_by = TextField()
    created_on = TextField()  # the host
    role = RoleField(null=True)  # of the database, that made it
    cwd = TextField()
    cancelled = TimeField(null=True)
    redo = TextField(null=True)  # rows that had ended are processed again: which, as it was typed
    where = TextField(null=True)  # the condition on its rows, as it was typed
    made_by = IntegerField(null=True)  # what its results say that they were made by
    paused = TimeField(null=True)  # since when its elements take no further page
    pause_reason = TextField(null=True)
    throttle = IntegerField(null=True)  # at most so many elements go on to a further page

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
    """What made results: a task, its arguments and files, and its code. Results point to it."""

    pk = AutoField()
    fingerprint = TextField(unique=True)  # of all that follows, and of the plan
    task = TextField()
    output_table = TextField(null=True)  # where the results are
    digest = TextField()  # of what makes results differ: arguments, contents of files, revision
    plan_pk = BigIntegerField(null=True)  # None: the task was called directly
    arguments = TextField()  # JSON: all of them, defaults too
    arguments_digest = TextField(index=True)
    files = TextField()  # JSON: for each argument that names files, their digests by path
    revision = TextField(null=True)  # of @task
    commit = TextField(null=True)  # of the task's code, with "+" where it was modified
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
    pid_began = TextField(null=True)  # of local ones: tells the process from a later namesake
    job_name = TextField()
    host = TextField()  # from where it was submitted
    elements = KeysField()  # numbers of its elements, from 1 over the whole plan
    offset = IntegerField()  # element = array index + offset
    pages_per_element = IntegerField()
    pulls = BooleanField(default=False)  # its elements take any of its pages that are free
    watcher = IntegerField(null=True)  # the element that watches over those that hold pages
    watched = TimeField(null=True)  # when it last looked
    profile = TextField()  # JSON: the name, options and set-up that were used
    script = TextField(null=True)
    log_folder = TextField(null=True)
    message = TextField(null=True)  # Slurm's own words, when it refused
    created = TimeField(now=True, null=False)
    created_by = TextField()
    role = RoleField(null=True)  # of the database, that made it

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
        """The array that it became: its number counts only with its name and its cluster."""
        from astra.slurm.parse import JobId  # here, as elements seldom ask Slurm

        number = self.job_id or 0
        return JobId(number, self.cluster, self.job_name, self.cluster_name, self.created_by)


class OutcomesField(BlobField):
    """A byte for each row, as bytes: of a driver's memoryview no item equals a number."""

    def python_value(self, value: bytes | memoryview | None) -> bytes | None:
        return None if value is None else bytes(value)


class Page(BaseModel):
    """Up to ``limit`` rows of a plan. One byte per row says how it ended (states.Outcome).

    A row is its place in its page; the keys of a page are numbers, or the texts of other keys.
    """

    pk = BigAutoField()
    plan = ForeignKeyField(  # its index is the one below
        Plan, column_name="plan_pk", on_delete="CASCADE", backref="pages", index=False
    )
    plan_pk: int
    number = IntegerField()
    n_rows = IntegerField()
    keys = KeysField(null=True)
    key_texts = KeyTextsField(null=True)  # where the keys are no whole numbers
    outcomes = OutcomesField()
    n_done = IntegerField(default=0)
    n_failed = IntegerField(default=0)
    n_no_result = IntegerField(default=0)
    submission_pk = BigIntegerField(null=True)  # whose elements may claim it
    attempt_pk = BigIntegerField(null=True)  # who alone may write
    # Of a submission that pulls: whether any of its elements may take the page. It changes as a
    # page is claimed and given back; NULL where pages are assigned to elements.
    free = BooleanField(null=True)
    retries = TextField(null=True)  # JSON: how often it was retried after which Slurm state
    modified = TimeField(now=True, null=False)

    class Meta:
        indexes = ((("plan", "number"), True),)

    @classmethod
    def complete_table(cls) -> None:
        """Its rows change at each checkpoint, and none of its indexes with them."""
        super().complete_table()
        dialect().leave_room(cls)

    @property
    def row_keys(self) -> list[int | str]:
        """The keys of its rows, in the order of their places."""
        keys: list[int | str] = self.key_texts if self.keys is None else self.keys
        return keys

    @property
    def n_pending(self) -> int:
        return self.n_rows - self.n_done - self.n_failed - self.n_no_result


Page.add_index(Page.index(Page.submission_pk, name="page_free", where=Page.free))

#: The same of a page in a query.
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
    submission: Submission  # where a query joins it
    number = IntegerField()  # from 1, for each page
    element = IntegerField()
    state = TextField()
    job_id = BigIntegerField(null=True)  # the array's
    array_index = IntegerField(null=True)
    restarts = IntegerField(default=0)  # SLURM_RESTART_COUNT
    host = TextField()
    pid = IntegerField()
    pid_began = TextField(null=True)  # from /proc, to know the process from a later namesake
    log = TextField(null=True)
    began = TimeField(now=True, null=False)
    seen = TimeField(now=True, null=False)  # last word: claim, checkpoint, heartbeat or end
    ended = TimeField(null=True)
    slurm_state = TextField(null=True)  # Slurm's word on its end, once somebody asked
    n_handed = IntegerField(default=0)  # places of its page that the task may have been given
    group = IntegerField(null=True)  # of suspects, that the task may have been given
    n_done = IntegerField(default=0)  # rows that this attempt ended, by how they ended
    n_failed = IntegerField(default=0)
    n_no_result = IntegerField(default=0)
    n_found = IntegerField(default=0)  # rows whose result others had written
    n_checkpoints = IntegerField(default=0)
    t_task_s = FloatField(default=0.0)
    t_read_s = FloatField(default=0.0)
    t_write_s = FloatField(default=0.0)
    t_start_s = FloatField(null=True)  # from the start of the process to the first row
    t_rows_s = FloatField(null=True)  # from the first row on
    row_times = TextField(null=True)  # measures.RowTimes: how many rows took how long
    max_rss_mb = FloatField(null=True)  # of the process that ran the task, up to then
    message = TextField(null=True)

    class Meta:
        indexes = ((("page", "number"), True),)

    @classmethod
    def complete_table(cls) -> None:
        """As that of a page."""
        super().complete_table()
        dialect().leave_room(cls)


class Suspect(BaseModel):
    """A row that was in the task's hands when its process died."""

    pk = BigAutoField()
    page = ForeignKeyField(
        Page, column_name="page_pk", on_delete="CASCADE", backref="suspects", index=False
    )
    place = IntegerField()  # in the page, from 0
    group = IntegerField()  # rows of one group are handed over together, apart from all others
    deaths = IntegerField(default=0)  # of processes in which it was the only row in hand
    exception = TextField()  # what it is recorded as, if it has to be given up
    cause = TextField()  # of the last death: "killed its process (signal 11, SIGSEGV)"

    class Meta:
        indexes = ((("page", "place"), True),)


class Exclusion(BaseModel):
    """A node that elements keep away from for a while, since failures gathered there."""

    pk = BigAutoField()
    node = TextField(unique=True)
    reason = TextField()
    since = TimeField(now=True, null=False)
    until = TimeField(null=False)


class RowKeyField(TextField):
    """The key of a row of any table, as a text."""

    def db_value(self, value: object) -> str | None:
        return None if value is None else str(value)


class RowWithoutResult(BaseModel):
    """The columns of a row that ended, at a version, without a result."""

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

    exception = TextField()  # its class
    message = TextField()
    place = TextField(null=True)  # file:line in the task's own code
    traceback = TextField(null=True)
    times = IntegerField(default=1)
    refused = BooleanField(default=False)  # a further result of a row that has one

    class Meta:
        indexes = ((("task", "input_table", "key", "v_astra_major_minor"), True),)


class NoResult(RowWithoutResult):
    """One input row for which the task yielded nothing."""

    class Meta:
        indexes = ((("task", "input_table", "key", "v_astra_major_minor"), True),)


#: Tables in the order in which they are made.
ORCHESTRATION = (
    Schema, Plan, MadeBy, Submission, Page, Attempt, Suspect, Exclusion, Failure, NoResult,
    Night, NightPlan, Lock,
)  # fmt: skip


def excluded_nodes() -> dict[str, Exclusion]:
    """Nodes that are left out at present."""
    with connection():
        return {e.node: e for e in Exclusion.select().where(Exclusion.until > dialect().now())}
