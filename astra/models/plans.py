"""The tables of plans, of their pages, and of their submissions to Slurm."""

from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, cast

from peewee import (
    SQL,
    AutoField,
    BigAutoField,
    BigIntegerField,
    BlobField,
    BooleanField,
    ForeignKeyField,
    IntegerField,
    TextField,
    fn,
)

from astra.models.base import BaseModel, KeysField, KeyTextsField, RoleField, TimeField
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
    tables = TextField(null=True)  # both, where its role found them: "survey.star, period"
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
    throttle = IntegerField(null=True)  # how many elements may take further pages

    class Meta:
        indexes = ((("task", "input_table"), False),)

    @property
    def folder(self) -> str:
        """The name of its folder in the run directory."""
        return f"plan-{self.pk}-{self.token}"

    @property
    def is_of_dry_run(self) -> bool:
        """Return whether the plan was cancelled from the beginning, so that it takes no row."""
        return bool(self.cancelled == self.created)

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
    pid_began = TextField(null=True)  # for local ones: where and when the process began
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

    def element_of(self, page: int) -> int:
        """Return the element that a page was submitted for.

        A pool may have fewer elements than pages. Pages beyond belong to the last element.
        """
        element = (page - 1) // self.pages_per_element + 1
        return min(element, self.elements[-1]) if self.pulls else element

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

    changes_often = True

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

#: The clause that a plan is not cancelled, and has rows that have not ended.
IS_LIVE = Plan.cancelled.is_null() & fn.EXISTS(
    Page.select(SQL("1")).where((Page.plan == Plan.pk) & (N_PENDING > 0))
)
