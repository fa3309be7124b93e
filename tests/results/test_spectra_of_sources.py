"""A task on sources that yields a result for each of their spectra, through Slurm."""

import pytest
from peewee import fn

from astra import generate_queries_for_task
from astra.database.connection import connection
from astra.models import BossVisitSpectrum
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.resume.resume import resume
from astra.status.status import status
from astra.submit.submit import submit
from tests.many_tasks import SpectrumOfSource, spectra_of
from tests.nights import run_out
from tests.pools import is_whole, kill_element, running
from tests.sample_tasks import fill
from tests.servers import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.postgres]


def test_a_killed_element_loses_and_repeats_no_spectrum(slurm):
    """Three spectra for each of 1,000 sources: 3,000 results, and nothing is pending."""
    fill(3000, sources=1000)
    with connection():
        key = fn.MOD(BossVisitSpectrum.spectrum_pk - 1, 1000) + 1
        BossVisitSpectrum.update(source=key).execute()
    # Checkpoints within the page, so that the element dies between two of them.
    arguments = {"pause_s": 0.01, "batch_size": 30}
    (planned,) = create_plan(spectra_of, limit=100, arguments=arguments)
    assert planned.plan is not None and planned.rows == 1000
    submit(planned.plan, options={"throttle": 2})
    kill_element(running(1)[0])
    run_out(slurm)
    plan = planned.plan
    # Until Slurm says that the element has ended, its page may live.
    wait_for(lambda: (resume(plan), status(plan).state == "whole")[1], "the whole plan", 60)
    with connection():
        assert SpectrumOfSource.select().count() == 3000
        assert SpectrumOfSource.select(SpectrumOfSource.spectrum_pk).distinct().count() == 3000
        ((_, query),) = generate_queries_for_task(spectra_of)
        assert query.count() == 0
    assert is_whole(get_plan(planned.plan))
