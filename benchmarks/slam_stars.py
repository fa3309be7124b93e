"""slam_templates on real stars, one by one, and a picture of three fits.

    python -m benchmarks.slam_stars boss_templates.npz spec-*.npz --picture slam_fits.png

The first file holds the templates that the model was trained on, the others one spectrum each:
wavelength, flux, ivar and and_mask. Printed are the labels of each template by a model without it,
which of the spectra of other kinds are flagged, whether galaxies (templates of G and K dwarfs at
redshifts) and power laws are, and the labels of the single spectra. The picture needs matplotlib.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from astra.models.slam import Slam
from astra.pipelines.slam.label import label_many, prepare
from astra.pipelines.slam.model import Model
from astra.pipelines.slam.model_file import load

REDSHIFTS = (0.02, 0.05, 0.1, 0.2, 0.3)
GALAXIES = ("G0_+0.0_Dwarf", "K0_+0.0_Dwarf", "K3_+0.0_Dwarf")
SLOPES = (-3.0, -1.5, 0.0, 1.5)
SHOWN = "M5_+0.0_Dwarf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("templates", type=Path)
    parser.add_argument("spectra", type=Path, nargs="*")
    parser.add_argument("--picture", type=Path, help="PNG file to draw three fits into")
    options = parser.parse_args()
    model = load("slam_templates")
    templates = dict(np.load(options.templates))
    show_templates(model, templates)
    show_other_kinds(model, templates)
    shown = [(SHOWN, pixels_of(templates, SHOWN))]
    for path in options.spectra:
        one = dict(np.load(path))
        flags = one["and_mask"].astype(np.int64)
        shown.append((path.stem, (one["wavelength"], one["flux"], one["ivar"], flags)))
    results = [label_one(model, pixels) for _, pixels in shown]
    for (name, _), row in list(zip(shown, results, strict=True))[1:]:
        print(f"{name}: {described(row)}")
    if options.picture:
        draw(options.picture, shown, results)


def show_templates(model: Model, templates: dict[str, Any]) -> None:
    """Print the labels of each training spectrum by a model without it."""
    validation = model.validation
    assert validation is not None
    names = templates["name"][templates["in_domain"]]
    for name, true, fitted, error, flagged in zip(
        names, validation.labels, validation.fitted, validation.errors, validation.flagged,
        strict=True,
    ):  # fmt: skip
        print(
            f"{name:<16} teff {true[0]:.0f} K: {fitted[0]:.0f} +- {error[0]:.0f}   "
            f"fe_h {true[1]:+.2f}: {fitted[1]:+.2f} +- {error[1]:.2f}{'  flagged' * bool(flagged)}"
        )
    others = templates["name"][~templates["in_domain"]]
    flagged = validation.outside_flagged.astype(bool)
    print(f"other kinds, left out: {flagged.sum()} of {flagged.size} outside, inside are", end=" ")
    print(*others[~flagged], sep=", ")


def show_other_kinds(model: Model, templates: dict[str, Any]) -> None:
    """Print how many galaxies and power laws are flagged as bad."""
    spectra = []
    for name in GALAXIES:
        wavelength, flux, ivar, _ = pixels_of(templates, name)
        spectra += [(wavelength * (1 + z), flux, ivar) for z in REDSHIFTS]
    wavelength = templates["wavelength"]
    ivar = np.full(wavelength.size, 2500.0)
    spectra += [(wavelength, (wavelength / 6000) ** slope, ivar) for slope in SLOPES]
    flagged = [Slam(**label_one(model, pixels)).flag_bad for pixels in spectra]
    print(f"galaxies and power laws: {sum(flagged)} of {len(flagged)} are flagged as bad")


def pixels_of(templates: dict[str, Any], name: str) -> tuple[Any, ...]:
    """Return the pixels of a template."""
    row = int(np.flatnonzero(templates["name"] == name)[0])
    return templates["wavelength"], templates["flux"][row], templates["ivar"][row], None


def label_one(model: Model, pixels: tuple[Any, ...]) -> dict[str, Any]:
    """Return the columns of the result of one spectrum, model and continuum among them."""
    return label_many(model, [prepare(model, *pixels)], store_model=True)[0]


def described(row: dict[str, Any]) -> str:
    """Return the labels and flags of a result."""
    if row["teff"] is None:
        return "no fit"
    return (
        f"teff {row['teff']:.0f} +- {row['e_teff']:.0f} K, [Fe/H] {row['fe_h']:+.2f} +- "
        f"{row['e_fe_h']:.2f}, v {row['v_fit']:.0f} km/s, reduced chi2 {row['reduced_chi2']:.2f}, "
        f"{'flagged as bad' if Slam(**row).flag_bad else 'not flagged'}"
    )


def draw(path: Path, shown: list[tuple[str, Any]], results: list[dict[str, Any]]) -> None:
    """Draw each spectrum, the model on its pixels, and the difference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, pixels), row in zip(axes, shown, results, strict=True):
        wavelength, flux = pixels[0], np.asarray(pixels[1], float)
        made = np.asarray(row["model_flux"], float)
        unit = float(np.nanmedian(made))
        inside = np.isfinite(made) & (np.asarray(pixels[2]) > 0)
        for values, colour, title in (
            (flux, "0.6", "observed"), (made, "tab:red", "model"), (flux - made, "k", "difference")
        ):  # fmt: skip
            shown_values = np.where(inside, values, np.nan) / unit
            axis.plot(wavelength, shown_values, color=colour, linewidth=0.6, label=title)
        axis.set(title=f"{name}: {described(row)}", ylabel="flux / median", xlim=(4150, 9350))
        axis.set_ylim(-0.4, 1.1 * float(np.nanmax(made)) / unit)
    axes[0].legend(fontsize="small", ncols=3, loc="upper left")
    axes[-1].set_xlabel("vacuum wavelength [Angstrom]")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
