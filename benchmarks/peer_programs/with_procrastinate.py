"""procrastinate: a queue in PostgreSQL, a job for each page, workers that are Slurm jobs."""

import asyncio

import procrastinate
import work

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=work.DSN))


@app.task(name="page")
def process_page(page: int) -> None:
    work.process_page(page)


def prepare() -> None:
    with app.open():
        app.schema_manager.apply_schema()


def submit() -> None:
    with app.open():
        process_page.batch_defer(*({"page": page} for page in work.pages()))
    work.sbatch_workers(__file__)


def worker() -> None:
    app.run_worker(wait=False, concurrency=1, listen_notify=False)


def again() -> None:
    """Nobody works any more: what is marked as being done belongs to workers that died."""

    async def retry() -> None:
        async with app.open_async():
            for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=0):
                await app.job_manager.retry_job(job)

    asyncio.run(retry())
    work.sbatch_workers(__file__)


if __name__ == "__main__":
    work.main(prepare=prepare, submit=submit, worker=worker, again=again)
