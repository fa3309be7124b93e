"""Summarise a model and its accuracy: how well it labels training spectra that were left out."""

import numpy as np

from astra.pipelines.slam.model import Model
from astra.pipelines.slam.validation import near_edges
from astra.records import dataclass


@dataclass(frozen=True)
class LabelReport:
    """One label of a model."""

    name: str
    minimum: float  #: in the training set
    maximum: float
    floor: float  #: error that is added in quadrature to that of each fit
    #: Rms error of spectra that were left out; None without a cross-validation. In a large training
    #: set, spectra near the edges are omitted, since a model without them does not reach that far.
    scatter: float | None
    bias: float | None  #: mean error of these spectra
    pull_width: float | None  #: rms of their errors, divided by the stated errors


@dataclass(frozen=True)
class ModelReport:
    """A model and its cross-validation."""

    description: str
    digest: str
    n_spectra: int  #: spectra that it was trained on
    n_rejected: int  #: spectra that training rejected as outliers
    n_flagged: int | None  #: training spectra that a model without them flags as bad
    n_others: int  #: spectra of other kinds that training was given
    n_others_flagged: int  #: those of them that are flagged as bad
    first_angstrom: float
    last_angstrom: float
    n_pixels: int
    n_components: int
    median_scatter: float  #: error of the model's flux, in units of the continuum
    labels: tuple[LabelReport, ...]


def report(model: Model) -> ModelReport:
    """Return a summary of a model."""
    validation = model.validation
    kept = None if validation is None else ~validation.rejected.astype(bool)
    flagged = None if validation is None else int((validation.flagged.astype(bool) & kept).sum())
    return ModelReport(
        description=model.description,
        digest=model.digest,
        n_spectra=len(model.nodes),
        n_rejected=0 if kept is None else int((~kept).sum()),
        n_flagged=flagged,
        n_others=0 if validation is None else validation.outside_flagged.size,
        n_others_flagged=0 if validation is None else int(validation.outside_flagged.sum()),
        first_angstrom=float(model.wavelength[0]),
        last_angstrom=float(model.wavelength[-1]),
        n_pixels=model.wavelength.size,
        n_components=len(model.components),
        median_scatter=float(np.median(model.scatter)),
        labels=tuple(_label(model, i) for i in range(len(model.label_names))),
    )


def _label(model: Model, i: int) -> LabelReport:
    nodes = model.centre[i] + model.scale[i] * model.nodes[:, i]
    scatter = bias = pull = None
    if model.validation is not None:
        validation = model.validation
        error = validation.fitted[:, i] - validation.labels[:, i]
        kept = ~validation.rejected.astype(bool)
        use = kept & np.isfinite(error)
        use[kept] &= ~near_edges(validation.labels[kept])
        if use.any():
            error, stated = error[use], validation.errors[use, i]
            scatter, bias = float(np.sqrt((error**2).mean())), float(error.mean())
            pull = float(np.sqrt(((error / stated) ** 2).mean()))
    return LabelReport(
        name=model.label_names[i],
        minimum=float(nodes.min()),
        maximum=float(nodes.max()),
        floor=float(model.label_floor[i]),
        scatter=scatter,
        bias=bias,
        pull_width=pull,
    )
