"""Draw pictures of a model with matplotlib: labels of left-out spectra, residuals, and fits."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from astra.errors import MissingExtra
from astra.pipelines.slam.continuum import normalise
from astra.pipelines.slam.model import Model, Validation
from astra.pipelines.slam.sample import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: How many spectra are shown with the model, from the lowest first label to the highest.
N_FITS = 3


def draw(model: Model, folder: Path, sample: Sample | None = None) -> list[Path]:
    """Draw a model into PNG files in `folder`.

    Parameters
    ----------
    model
        The model; without a cross-validation there is no picture of its labels.
    folder
        It is created if it does not exist.
    sample
        The training set, to show some of its spectra with the model.

    Returns
    -------
    list of Path
        The files that were written.

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("plots", "matplotlib", "to draw pictures") from error
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"model": _model(Figure, model)}
    if model.validation is not None:
        figures["labels"] = labels_figure(Figure, model, model.validation)
    if sample is not None:
        figures["fits"] = _fits(Figure, model, sample)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def labels_figure(figure_class: type["Figure"], model: Model, validation: Validation) -> "Figure":
    """Draw fitted against true labels of spectra that were left out, and their errors."""
    n = len(model.label_names)
    figure = figure_class(figsize=(4.5 * n, 6), layout="constrained")
    axes = figure.subplots(2, n, squeeze=False, height_ratios=(2, 1), sharex="col")
    rejected, flagged = validation.rejected.astype(bool), validation.flagged.astype(bool)
    groups = (
        ("left out in turn", ~rejected & ~flagged, "tab:blue"),
        ("flagged", ~rejected & flagged, "tab:orange"),
        ("rejected in training", rejected, "tab:red"),
    )
    for i, name in enumerate(model.label_names):
        for title, rows, colour in groups:
            if rows.any():
                _points(axes[:, i], validation, i, rows, title, colour)
        ends = [validation.labels[:, i].min(), validation.labels[:, i].max()]
        axes[0, i].plot(ends, ends, color="black", linewidth=0.8)
        axes[1, i].axhline(0, color="black", linewidth=0.8)
        axes[0, i].set(title=name, ylabel="fitted")
        axes[1, i].set(xlabel="in the training set", ylabel="difference")
    axes[0, 0].legend(fontsize="small")
    return figure


def _points(
    axes: NDArray[np.object_],
    validation: Validation,
    i: int,
    rows: NDArray[np.bool_],
    title: str,
    colour: str,
) -> None:
    """Draw label `i` of some spectra; those without a fit are crosses at the lower end."""
    true, fitted = validation.labels[rows, i], validation.fitted[rows, i]
    style = {"fmt": ".", "color": colour, "elinewidth": 0.7}
    axes[0].errorbar(true, fitted, validation.errors[rows, i], label=title, **style)
    axes[1].errorbar(true, fitted - true, validation.errors[rows, i], **style)
    lost = true[~np.isfinite(fitted)]
    place = {"transform": axes[1].get_xaxis_transform(), "in_layout": False, "clip_on": False}
    axes[1].plot(lost, np.zeros(lost.size), "x", color=colour, **place)


def _model(figure_class: type["Figure"], model: Model) -> "Figure":
    """Draw the model along its first label, and its scatter."""
    figure = figure_class(figsize=(11, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    order = np.argsort(model.nodes[:, 0])
    middle = model.centre + model.scale * np.median(model.nodes, axis=0)
    for share in (0.05, 0.5, 0.95):
        labels = middle.copy()
        labels[0] = model.node_labels[order[int(share * (len(order) - 1))], 0]
        title = f"{model.label_names[0]} {labels[0]:g}"
        above.plot(model.wavelength, model.flux(labels), linewidth=0.7, label=title)
    below.plot(model.wavelength, model.scatter, linewidth=0.7, color="black")
    for axis in (above, below):
        for first, last in (*model.rest_masks, *model.observed_masks):
            axis.axvspan(first, last, color="0.9")
    above.set(ylabel="normalised flux", xlim=model.wavelength[[0, -1]])
    below.set(ylabel="scatter", xlabel="vacuum wavelength [Angstrom]", yscale="log")
    above.legend(fontsize="small")
    return figure


def _fits(figure_class: type["Figure"], model: Model, sample: Sample) -> "Figure":
    """Draw some spectra, the model at their labels, and the differences."""
    order = np.argsort(sample.labels[:, 0])
    if model.validation is not None:
        order = order[~model.validation.rejected.astype(bool)[order]]
    rows = order[np.linspace(0, len(order) - 1, min(N_FITS, len(order))).astype(int)]
    figure = figure_class(figsize=(11, 3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for axis, row in zip(axes, rows, strict=True):
        flux, ivar = normalise(sample.flux[row], sample.ivar[row], model.continuum_basis)
        flux = np.where(ivar > 0, flux, np.nan)
        made = model.flux(sample.labels[row])
        axis.plot(model.wavelength, flux, color="0.6", linewidth=0.6, label="observed")
        axis.plot(model.wavelength, made, color="tab:red", linewidth=0.6, label="model")
        axis.plot(model.wavelength, flux - made, color="black", linewidth=0.5, label="difference")
        values = zip(model.label_names, sample.labels[row], strict=True)
        title = ", ".join(f"{name} {value:g}" for name, value in values)
        axis.set_title(f"{sample.names[row]}: {title}", fontsize="small")
        axis.set_ylim(-0.3, max(1.5, 1.1 * float(np.max(made))))
    axes[0].legend(fontsize="small", ncols=3)
    axes[-1].set(xlabel="vacuum wavelength [Angstrom]")
    return figure
