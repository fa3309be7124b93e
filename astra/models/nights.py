"""The tables of nights: their plans, and how these ended."""

from functools import partial
from secrets import token_hex

from peewee import (
    BigAutoField,
    BigIntegerField,
    BooleanField,
    FloatField,
    ForeignKeyField,
    IntegerField,
    TextField,
)

from astra.models.base import BaseModel, RoleField, TimeField
from astra.models.stored_json import stored


class Night(BaseModel):
    """One run of a configured night, from its first plan until none of its elements is alive.

    A job, the finalizer, resumes and closes it. The token of the finalizer is committed before
    sbatch is called, and a job with another token does nothing.
    """

    pk = BigAutoField()
    token = TextField(default=partial(token_hex, 4))  # unique, while numbers are assigned again
    name = TextField()
    date = TextField()  # on which it began, in local time: "2026-11-24"
    began = TimeField(now=True, null=False)
    ended = TimeField(null=True)  # NULL while the night is open
    state = TextField(default="running")  # then whole, failed rows, or not whole
    round = IntegerField(default=0)  # the number of rounds in which pages were submitted again
    start_until = BigIntegerField(null=True)  # in seconds since the epoch, as the next one
    drain_by = BigIntegerField(null=True)
    finalizer = TextField(null=True)  # the token of its finalizer
    finalizer_job = BigIntegerField(null=True)  # NULL until sbatch has answered
    finalizer_cluster = TextField(null=True)  # as given to sbatch's --clusters
    finalizer_home = TextField(null=True)  # the name of the cluster that took it
    finalizer_user = TextField(null=True)  # who submitted it
    message = TextField(null=True)  # what is not whole, and what to do
    notified = TextField(null=True)  # JSON: what was sent by each channel, and the result
    cwd = TextField()
    host = TextField()
    created_by = TextField()
    role = RoleField(null=True)  # the database role that created it

    class Meta:
        indexes = ((("name", "began"), False),)

    @property
    def notifications(self) -> dict[str, dict[str, str]]:
        """What was sent by each channel, when, and with which result."""
        results = stored(self.notified, dict, f"`notified` of night {self.pk}")
        return {
            channel: sent
            for channel, sent in results.items()
            if isinstance(sent, dict) and {"of", "at", "result"} <= sent.keys()
        }

    @property
    def folder(self) -> str:
        """The name of its folder in the run directory."""
        return f"night-{self.pk}-{self.token}"


#: The note that a task had no rows to plan.
NOTHING_PENDING = "nothing was pending"


class NightPlan(BaseModel):
    """A plan of a night, or a note: nothing was pending for a task, it could not be planned, or a
    plan of no night has rows of it.

    Its totals remain when ``astra clean`` removes the plan; those of a night are their sums.
    """

    pk = BigAutoField()
    night = ForeignKeyField(Night, column_name="night_pk", on_delete="CASCADE", backref="plans")
    night_pk: int
    task = TextField()
    input_model = TextField(null=True)
    plan_pk = BigIntegerField(null=True, index=True)  # NULL: a note
    leftover = BooleanField(default=False)  # planned by an earlier night
    retries_before = IntegerField(default=0)  # in earlier nights
    began = TimeField(now=True, null=False)
    n_rows = BigIntegerField(default=0)
    n_done = BigIntegerField(default=0)
    n_failed = BigIntegerField(default=0)
    n_no_result = BigIntegerField(default=0)
    n_retries = BigIntegerField(default=0)
    task_s = FloatField(default=0.0)  # the time of tasks, over all attempts
    cpu_s = FloatField(default=0.0)  # the same, times the number of allocated processors
    has_ended = BooleanField(default=False)  # every row of the plan has
    message = TextField(null=True)

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is the note that a plan of no night has rows of the task."""
        return self.plan_pk is None and self.has_ended and self.message != NOTHING_PENDING

    @property
    def is_whole(self) -> bool:
        """Whether every row of its plan has a result, or rightly none."""
        return self.has_ended and not self.n_failed and not self.is_elsewhere

    @property
    def key(self) -> tuple[str, str | None]:
        """Its task and input model, as ``NightTask.key``."""
        return self.task, self.input_model
