"""dask-jobqueue: workers that are Slurm jobs, pages mapped over them by a client that stays."""

import work
from dask_jobqueue import SLURMCluster
from distributed import Client, wait


def _submit(pages: list[int]) -> None:
    with SLURMCluster(
        cores=1,
        processes=1,
        memory="1GB",
        interface="lo",
        log_directory=str(work.FOLDER),
        scheduler_options={"dashboard": False},
        job_script_prologue=[f"export PYTHONPATH={work.HERE}"],
    ) as cluster:
        cluster.scale(jobs=work.SLOTS)
        with Client(cluster) as client:
            wait(client.map(work.process_page, pages, pure=False))


def submit() -> None:
    _submit(work.pages())


def again() -> None:
    _submit(work.missing_pages())


if __name__ == "__main__":
    work.main(submit=submit, again=again)
