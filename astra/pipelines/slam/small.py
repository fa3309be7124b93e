"""How the model that ships is made: ``python -m astra.pipelines.slam.small``."""

from pathlib import Path

from astra.pipelines.slam.model import SHIPPED, Model
from astra.pipelines.slam.synthetic import training_set
from astra.pipelines.slam.training import train

#: With so many the model is off by less than 0.1 percent of the flux, in 1.3 MB.
N_SPECTRA = 560


def make(path: str | Path | None = None) -> Model:
    """Train the small model on the synthetic grid, and write it if `path` is given."""
    return train(
        *training_set(N_SPECTRA),
        path=path,
        description=f"{N_SPECTRA} synthetic cool dwarfs, see astra/pipelines/slam/synthetic.py",
    )


if __name__ == "__main__":
    make(SHIPPED)
