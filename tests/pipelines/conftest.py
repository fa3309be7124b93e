"""The model that the tests of the pipeline share."""

import pytest

from astra.pipelines.slam.model_file import load


@pytest.fixture(scope="session")
def model():
    return load()
