"""The rows that wait for their checkpoint."""

from astra.results.buffer import Buffer
from astra.results.histogram import RowTimes
from astra.results.rows import HandedRow, YieldedResult


def test_fresh_results_keep_their_place_before_later_ones():
    buffer, finished = Buffer(), []
    buffer.finish_fresh = lambda result, handed: finished.append((result, handed.key))
    first, second = HandedRow(1, None), HandedRow(2, None)
    buffer.fresh.append(("a", first))
    assert buffer.note_fresh() and not buffer.note_fresh()
    assert buffer.n_waiting == 1 and not finished
    assert not buffer.add([YieldedResult("b", second)]), "the clock runs since the fresh result"
    assert finished == [("a", 1)]
    assert [y.result for y in buffer.unwritten().results] == ["a", "b"]
    assert [y.handed for y in buffer.take().results] == [first, second]
    assert buffer.n_waiting == 0 and buffer.since is None


def test_a_result_that_comes_while_a_checkpoint_is_taken_starts_the_clock_again():
    """Otherwise the result would wait for the next one, however long that takes."""
    buffer = Buffer()

    def another_comes(result, handed):
        if result == "a":
            buffer.fresh.append(("b", HandedRow(2, None)))
            assert buffer.since is None, "the task's thread sees that the clock has to start"

    buffer.finish_fresh = another_comes
    buffer.fresh.append(("a", HandedRow(1, None)))
    assert [y.result for y in buffer.take().results] == ["a", "b"]
    buffer.fresh.append(("c", HandedRow(3, None)))
    assert buffer.note_fresh() and buffer.since is not None


def test_rows_are_counted_when_the_histogram_is_read():
    times = RowTimes()
    for _ in range(3):
        times.add(1.0)
    assert times.n_rows == 3
    times.add(0.0)
    assert str(times + RowTimes([1.0])) == "-240:1 0:4"
