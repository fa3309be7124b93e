"""submitit: an element of a job array for each page; what failed is submitted once more."""

import submitit
import work


def _submit(pages: list[int]) -> None:
    executor = submitit.AutoExecutor(folder=work.FOLDER / "submitit")
    executor.update_parameters(timeout_min=10, slurm_array_parallelism=work.SLOTS)
    for job in executor.map_array(work.process_page, pages):
        job.wait()


def submit() -> None:
    _submit(work.pages())


def again() -> None:
    _submit(work.missing_pages())


if __name__ == "__main__":
    work.main(submit=submit, again=again)
