"""Train the models that ship with astra.

``python -m astra.pipelines.slam.shipped`` trains the model of synthetic spectra; with the file of
the templates as its argument, it trains that of real stars. docs/slam.md says where the templates
come from.
"""

import sys
from pathlib import Path

import numpy as np

from astra.pipelines.slam.model import Model
from astra.pipelines.slam.model_file import SHIPPED
from astra.pipelines.slam.resample import resample
from astra.pipelines.slam.synthetic import training_set
from astra.pipelines.slam.training import train

#: With this many spectra, the error of the model is below 0.1 percent of the flux.
N_SPECTRA = 560

#: Range of the model of real stars [Angstrom]; M dwarfs are faint at shorter wavelengths.
TEMPLATES_RANGE = (4200.0, 9300.0)
TEMPLATES_STEP = 2e-4  #: width of its pixels, in log10 of the wavelength


def make_synthetic(path: str | Path | None = None, n_spectra: int = N_SPECTRA) -> Model:
    """Train the model of synthetic spectra, and write it if `path` is given."""
    return train(
        *training_set(n_spectra),
        path=path,
        rejects=False,  # exact labels and no noise
        description=f"{n_spectra} synthetic cool dwarfs: it knows no real star",
    )


def make_templates(templates: str | Path, path: str | Path | None = None) -> Model:
    """Train the model of real stars, and write it if `path` is given.

    Parameters
    ----------
    templates
        An ``.npz`` with ``wavelength`` (P,), ``flux`` and ``ivar`` (N, P), labels ``teff`` and
        ``fe_h`` (N,), and ``in_domain`` (N,), which says which to train on. The others define the
        boundary beyond which a spectrum is flagged.
    """
    low, high = np.log10(TEMPLATES_RANGE)
    grid = 10 ** (low + TEMPLATES_STEP * np.arange(int((high - low) / TEMPLATES_STEP)))
    with np.load(templates, allow_pickle=False) as file:
        inside = file["in_domain"]
        labels = np.stack([file["teff"], file["fe_h"]], axis=1)[inside]
        pairs = [
            resample(file["wavelength"], flux.astype(float), ivar.astype(float), grid)
            for flux, ivar in zip(file["flux"], file["ivar"], strict=True)
        ]
    flux, ivar = (np.array(part) for part in zip(*pairs, strict=True))
    return train(
        labels,
        grid,
        flux[inside],
        ivar[inside],
        path,
        label_names=("teff", "fe_h"),
        outside=(flux[~inside], ivar[~inside]),
        description=(
            f"{len(labels)} co-added SDSS spectra of K5 to M8 dwarfs, templates of PyHammer "
            "(Kesseli et al. 2017, ApJS 230, 16): teff by spectral type, fe_h by bins of 0.5 dex"
        ),
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make_templates(sys.argv[1], SHIPPED["slam_templates"])
    else:
        make_synthetic(SHIPPED["slam_synthetic"])
