"""Moments that people read, in the time zone of the process."""

import time
from datetime import UTC, datetime

import pytest

from astra.config.units import written_moment
from astra.report.format import in_both_zones


@pytest.fixture(params=["Asia/Tokyo", "America/New_York"])
def zone(request, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


def test_a_moment_that_python_lacks_in_this_zone_is_written_in_utc(zone):
    """PostgreSQL's infinity is read as the last moment that Python has."""
    written = {written_moment(at) for at in (datetime.min, datetime.max)}
    assert written & {"1-01-01 00:00:00 UTC", "9999-12-31 23:59:59 UTC"}
    assert all(in_both_zones(at.replace(tzinfo=UTC)) for at in (datetime.min, datetime.max))
