"""DataJoint: a computed table that workers, which are Slurm jobs, populate by reserved keys."""

import datajoint as dj
import work

schema = dj.Schema("peers")


@schema
class Page(dj.Manual):
    definition = """
    page : int32
    """


@schema
class Done(dj.Computed):
    definition = """
    -> Page
    """

    class Row(dj.Part):
        definition = """
        -> master
        row : int32
        ---
        value : float64
        """

    def make(self, key: dict[str, int]) -> None:
        results = [
            {**key, "row": row, "value": work.compute(row)} for row in work.rows_of(key["page"])
        ]
        self.insert1(key)
        self.Row.insert(results)


def prepare() -> None:
    Page.insert([{"page": page} for page in work.pages()])


def submit() -> None:
    Done.jobs.refresh()
    work.sbatch_workers(__file__)


def worker() -> None:
    Done.populate(reserve_jobs=True, refresh=False, suppress_errors=True)


def again() -> None:
    """Nobody works any more: what is reserved belongs to workers that died."""
    Done.jobs.refresh(orphan_timeout=1)
    work.sbatch_workers(__file__)


if __name__ == "__main__":
    work.main(prepare=prepare, submit=submit, worker=worker, again=again)
