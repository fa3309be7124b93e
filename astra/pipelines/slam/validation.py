"""Cross-validate a model: label each training spectrum by a model that was trained without it.

This gives the error floors of labels, and the limits beyond which a spectrum is flagged.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from astra.pipelines.slam.domain import learn_domain
from astra.pipelines.slam.measure import measure
from astra.pipelines.slam.model import Model, Validation
from astra.pipelines.slam.outliers import Cleaned
from astra.pipelines.slam.pixels import Observed
from astra.pipelines.slam.regression import Factors, compress

Array = NDArray[np.float64]

#: Up to this many spectra, each is left out by itself; otherwise a tenth of them at a time.
MAX_LEFT_OUT_SINGLY = 80
N_FOLDS = 10

#: In large training sets, spectra closer to an edge than this share of a label's range are not used
#: to determine errors.
EDGE_SHARE = 0.1


def add_validation(
    model: Model,
    cleaned: Cleaned,
    labels: Array,
    spectra: tuple[Array, Array, Array],
    outside: tuple[Array, Array] | None = None,
) -> Model:
    """Return the model with its cross-validation, error floors and domain.

    Parameters
    ----------
    model
        The model that was trained on all spectra that were kept.
    cleaned
        The training set without outliers.
    labels
        Labels of all spectra, (N, L).
    spectra
        Wavelengths (P,), fluxes and inverse variances (N, P).
    outside
        Fluxes and inverse variances of spectra of other kinds, (O, P).
    """
    kept = np.flatnonzero(cleaned.kept)
    fitted, errors, mismatch, at_edge, coarse = _left_out(model, cleaned, labels.shape, spectra)
    outside_coarse = np.zeros((0, coarse.shape[1]))
    if outside is not None and len(outside[0]):
        every = np.arange(len(outside[0]))
        outside_coarse = measure(model, _observed(every, spectra[0], *outside)).coarse
    domain, wrong, outside_flagged = learn_domain(
        coarse[kept],
        outside_coarse,
        mismatch[kept],
        model.nodes,
        (fitted[kept] - model.centre) / model.scale,
    )
    flagged = np.ones(len(labels), bool)
    flagged[kept] = wrong | at_edge[kept]
    beside = near_edges(model.nodes)
    counts = ~flagged
    counts[kept[beside]] = False
    error = np.where(counts[:, None], fitted - labels, np.nan)
    floor = np.array([label_floor(e, s) for e, s in zip(error.T, errors.T, strict=True)])
    if np.isfinite(error).all(1).sum() <= kept.size / 4:  # too few: use the labels' own scatter
        floor = np.maximum(floor, model.scale)
    validation = Validation(
        labels=labels,
        fitted=fitted,
        errors=np.sqrt(errors**2 + floor**2),
        mismatch=np.sqrt(np.maximum(mismatch, 0.0)),
        flagged=flagged,
        rejected=~cleaned.kept,
        outside_flagged=outside_flagged,
    )
    return replace(model, label_floor=floor, validation=validation, domain=domain)


def _left_out(
    model: Model, cleaned: Cleaned, shape: tuple[int, ...], spectra: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array, NDArray[np.bool_], Array]:
    """Label each spectrum by a model without it; a rejected one, by the model itself."""
    kept = np.flatnonzero(cleaned.kept)
    folds = np.arange(kept.size) % (kept.size if kept.size <= MAX_LEFT_OUT_SINGLY else N_FOLDS)
    fitted, errors = np.full(shape, np.nan), np.full(shape, np.nan)
    mismatch, at_edge = np.full(shape[0], np.nan), np.zeros(shape[0], bool)
    coarse = np.zeros((shape[0], 0))
    for fold in range(folds.max() + 1):
        out = kept[folds == fold]
        measured = measure(_without(model, cleaned, folds == fold), _observed(out, *spectra))
        if not coarse.size:
            coarse = np.zeros((shape[0], measured.coarse.shape[1]))
        fitted[out] = measured.fit.labels[:, :-1]
        errors[out] = measured.fit.errors[:, :-1]
        at_edge[out] = measured.fit.at_edge[:, :-1].any(1)
        mismatch[out], coarse[out] = measured.mismatch2, measured.coarse
    if kept.size < shape[0]:
        out = np.flatnonzero(~cleaned.kept)
        measured = measure(model, _observed(out, *spectra))
        fitted[out], errors[out] = measured.fit.labels[:, :-1], measured.fit.errors[:, :-1]
    return fitted, errors, mismatch, at_edge, coarse


def near_edges(nodes: Array) -> NDArray[np.bool_]:
    """Return which nodes are close to an edge, so that a model without them does not reach them.

    In a small training set none of them are, since every spectrum is needed.
    """
    if len(nodes) <= MAX_LEFT_OUT_SINGLY:
        return np.zeros(len(nodes), bool)
    low, high = nodes.min(0), nodes.max(0)
    margin = EDGE_SHARE * (high - low)
    return np.asarray(((nodes < low + margin) | (nodes > high - margin)).any(1))


def label_floor(error: Array, stated: Array) -> float:
    """Return the error that has to be added in quadrature so that the pulls have a width of 1.

    Parameters
    ----------
    error
        Fitted label less the true one, shape (N,).
    stated
        Error according to the fit alone, shape (N,).
    """
    finite = np.isfinite(error) & np.isfinite(stated)
    error2, stated2 = error[finite] ** 2, stated[finite] ** 2
    if not error2.size or (error2 / stated2).mean() <= 1:
        return 0.0
    low, high = 0.0, float(np.sqrt(error2.max()))
    for _ in range(60):
        middle = (low + high) / 2
        too_small = (error2 / (stated2 + middle**2)).mean() > 1
        low, high = (middle, high) if too_small else (low, middle)
    return high


def _without(model: Model, cleaned: Cleaned, out: NDArray[np.bool_]) -> Model:
    """Return a model with the same kernel and ridges, trained without some of the kept spectra."""
    factors = Factors.of(model.nodes[~out], model.gamma, cleaned.weight[~out])
    flux = cleaned.solved.flux[~out]
    node_weights, components, bias = compress(factors, flux, cleaned.ridge)
    return replace(
        model,
        nodes=model.nodes[~out],
        node_weights=node_weights,
        components=components * cleaned.spread,
        bias=cleaned.middle + bias * cleaned.spread,
    )


def _observed(which: NDArray[np.int64], wavelength: Array, flux: Array, ivar: Array) -> Observed:
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    return Observed.of([(wavelength, flux[i], ivar[i], good[i]) for i in which])
