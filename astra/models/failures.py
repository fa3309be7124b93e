"""The tables of rows that ended without a result: failures, and rows rightly without one."""

from collections.abc import Iterable

from peewee import (
    BigAutoField,
    BigIntegerField,
    BooleanField,
    ColumnBase,
    IntegerField,
    TextField,
)

from astra.database.connection import dialect
from astra.models.base import BaseModel, TimeField
from astra.version import CURRENT


class RowWithoutResult(BaseModel):
    """The columns for a row that ended without a result at a version."""

    pk = BigAutoField()
    task = TextField()
    input_table = TextField()
    key = TextField(column_name="key_text")
    v_astra_major_minor = IntegerField()
    input_modified = TimeField(null=True)
    attempt_pk = BigIntegerField(null=True)
    plan_pk = BigIntegerField(null=True, index=True)
    page = IntegerField(null=True)
    made_by = IntegerField(null=True)
    modified = TimeField(now=True, null=False)

    class Meta:
        indexes = ((("task", "input_table", "key", "v_astra_major_minor"), True),)

    @classmethod
    def is_of(cls, task: str, table: str, keys: Iterable[int | str]) -> ColumnBase:
        """Return the clause that a record is of one of these rows of a table, at this version."""
        return (
            (cls.task == task)
            & (cls.input_table == table)
            & dialect().among(cls.key, keys, "text")
            & (cls.v_astra_major_minor == CURRENT.major_minor)
        )


class Failure(RowWithoutResult):
    """One input row whose processing raised: its key, attempt and traceback."""

    exception = TextField()  # the name of its class
    message = TextField()
    place = TextField(null=True)  # file:line in the task's own code
    traceback = TextField(null=True)
    times = IntegerField(default=1)
    refused = BooleanField(default=False)  # another result of a row that has one


class NoResult(RowWithoutResult):
    """One input row for which the task yielded nothing."""
