"""astra: a task over a table of rows, submitted as it is by default."""

from collections.abc import Iterable

import work
from peewee import FloatField, IntegerField, Model

from astra import task
from astra.models import OutputModel, result_of


class PeerRow(Model):
    key = IntegerField(primary_key=True)


class PeerResult(OutputModel):
    peer_row = result_of(PeerRow)
    value = FloatField()


@task
def halves(rows: Iterable[PeerRow]) -> Iterable[PeerResult]:
    for row in rows:
        yield PeerResult.from_row(row, value=work.compute(row.key))
