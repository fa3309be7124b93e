"""Spectra and helpers that the tests of the pipeline share."""

import numpy as np

from astra.pipelines.slam import synthetic
from astra.pipelines.slam.continuum import normalise
from astra.pipelines.slam.resample import resample
from astra.pipelines.slam.synthetic import LABELS, WAVELENGTH

DWARF = np.array([3500.0, 4.8, -0.2, 0.1])


def observe(model, labels, snr, rng, wavelength=WAVELENGTH):
    """Normalised spectra of all `labels`, and their inverse variances."""
    pairs = []
    for one in labels:
        pixels = synthetic.spectrum(one, snr, rng, wavelength)
        pairs.append(normalise(*resample(*pixels, model.wavelength), model.continuum_basis))
    return tuple(np.array(part) for part in zip(*pairs, strict=True))


def small_set(n=40):
    """Labels, wavelengths and fluxes of synthetic stars without noise, on few pixels."""
    labels = synthetic.grid(n)
    flux = synthetic.normalised(labels)[:, ::8] * synthetic.continuum(labels[:, 0], WAVELENGTH[::8])
    return labels, WAVELENGTH[::8], flux


def near(columns, truth, sigmas=5):
    return all(
        abs(columns[n] - t) < sigmas * columns[f"e_{n}"] for n, t in zip(LABELS, truth, strict=True)
    )


def flags(columns):
    return {name for name, value in columns.items() if name.startswith("flag_") and value}
