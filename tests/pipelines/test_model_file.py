"""Files of models: what is written is read, and what is no model is refused."""

import numpy as np
import pytest

from astra.errors import UsageError
from astra.pipelines.slam.model_file import DEFAULT, SHIPPED, load
from astra.pipelines.slam.synthetic import LABELS
from astra.pipelines.slam.training import train
from tests.pipelines.spectra import DWARF, small_set


def test_training_writes_what_loading_reads(tmp_path):
    trained = train(*small_set(), path=tmp_path / "model.npz", description="forty")
    loaded = load(tmp_path / "model.npz")
    assert loaded.description == "forty" and loaded.label_names == LABELS
    assert loaded.gamma == trained.gamma and loaded.digest == trained.digest
    assert np.allclose(loaded.flux(DWARF), trained.flux(DWARF), atol=1e-5)


def rewritten(path, **changes):
    with np.load(SHIPPED[DEFAULT]) as arrays:
        kept = {name: arrays[name] for name in arrays.files} | changes
    np.savez(path, **{name: array for name, array in kept.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not a model of slam.slam"),
        ({"format": None}, "not a model of slam.slam"),
        ({"format_version": 99}, "format version 99, but this version of astra reads 2"),
        ({"nodes": None}, "lacks the array 'nodes'"),
    ],
)
def test_files_that_are_no_model(tmp_path, changes, message):
    rewritten(tmp_path / "other.npz", **changes)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "other.npz")


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.npz does not exist.*ships with astra"):
        load(tmp_path / "gone.npz")
    for content in (b"", b"some text", SHIPPED[DEFAULT].read_bytes()[:5000]):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(UsageError, match=r"broken\.npz is not a model file"):
            load(tmp_path / "broken.npz")
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(UsageError, match="is not a model file"):
        load(tmp_path / "array.npy")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "pickle.npz", format=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="is not a model file"):
        load(tmp_path / "pickle.npz")
