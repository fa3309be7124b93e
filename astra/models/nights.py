"""The tables of nights: which plans they made, and how these ended."""

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

from astra.models.base import BaseModel, TimeField
from astra.models.stored_json import stored


class Night(BaseModel):
    """One run of a configured night, from its first plan until nothing of it lives any more.

    The finalizer is the job that looks after it. Its token is committed before sbatch is called,
    and a job with another token does nothing.
    """

    pk = BigAutoField()
    token = TextField(default=partial(token_hex, 4))  # numbers are given again, tokens are not
    name = TextField()
    date = TextField()  # on which it began, where it was begun: "2026-11-24"
    began = TimeField(now=True, null=False)
    ended = TimeField(null=True)  # without it, the night is open
    whole = BooleanField(default=False)
    failed_rows = BooleanField(default=False)  # more rows failed than it accepts; all have ended
    round = IntegerField(default=0)  # in which pages were submitted again
    n_rows = BigIntegerField(default=0)  # the sums of its plans, from its last look
    n_done = BigIntegerField(default=0)
    n_failed = BigIntegerField(default=0)
    n_no_result = BigIntegerField(default=0)
    n_retries = BigIntegerField(default=0)
    task_s = FloatField(default=0.0)  # spent in tasks, over all attempts
    cpu_s = FloatField(default=0.0)  # that these held processors for, times how many
    start_until = BigIntegerField(null=True)  # its hours, in seconds since the epoch
    drain_by = BigIntegerField(null=True)
    finalizer = TextField(null=True)  # the token of its finalizer
    finalizer_job = BigIntegerField(null=True)  # None: sbatch has not answered
    finalizer_cluster = TextField(null=True)  # as given to sbatch's --clusters
    finalizer_home = TextField(null=True)  # the name of the cluster that took it
    finalizer_user = TextField(null=True)  # who submitted it
    message = TextField(null=True)  # what is not whole, and what to do
    notified = TextField(null=True)  # JSON: by way, what was sent, and how that went
    cwd = TextField()
    host = TextField()
    created_by = TextField()

    class Meta:
        indexes = ((("name", "began"), False),)

    @property
    def verdict(self) -> str:
        """How it ended: whole, failed rows, or not whole."""
        if self.whole:
            return "whole"
        return "failed rows" if self.failed_rows else "not whole"

    @property
    def notifications(self) -> dict[str, dict[str, str]]:
        """Of what people were notified by each way, when, and how that went."""
        ways = stored(self.notified, dict, f"`notified` of night {self.pk}")
        return {
            way: sent
            for way, sent in ways.items()
            if isinstance(sent, dict) and {"of", "at", "result"} <= sent.keys()
        }

    @property
    def folder(self) -> str:
        """The name of its folder in the run directory."""
        return f"night-{self.pk}-{self.token}"


class NightPlan(BaseModel):
    """A plan of a night, or the note that nothing was pending for a task.

    Its totals outlast the plan, which may be removed by ``astra clean``.
    """

    pk = BigAutoField()
    night = ForeignKeyField(Night, column_name="night_pk", on_delete="CASCADE", backref="plans")
    task = TextField()
    input_model = TextField(null=True)
    plan_pk = BigIntegerField(null=True, index=True)  # None: nothing was pending, or an error
    leftover = BooleanField(default=False)  # planned by an earlier night
    retries_before = IntegerField(default=0)  # those of earlier nights
    began = TimeField(now=True, null=False)
    n_rows = BigIntegerField(default=0)
    n_done = BigIntegerField(default=0)
    n_failed = BigIntegerField(default=0)
    n_no_result = BigIntegerField(default=0)
    n_retries = BigIntegerField(default=0)
    task_s = FloatField(default=0.0)
    cpu_s = FloatField(default=0.0)
    has_ended = BooleanField(default=False)  # every row of the plan
    message = TextField(null=True)

    @property
    def key(self) -> tuple[str, str | None]:
        """The task that it is of, as ``NightTask.key``."""
        return self.task, self.input_model
