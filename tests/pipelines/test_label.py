"""From the pixels of one spectrum to the columns of its result."""

import json

import numpy as np
import pytest

from astra.models import BossVisitSpectrum
from astra.pipelines.slam import BATCH, slam, synthetic
from astra.pipelines.slam.label import label, label_many, prepare
from astra.pipelines.slam.model_file import load
from astra.pipelines.slam.synthetic import LABELS, WAVELENGTH
from astra.pipelines.slam.training import train
from tests.pipelines.spectra import DWARF, flags, near, small_set


def test_a_spectrum_with_holes_masks_and_rubbish(model):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1), WAVELENGTH)
    bits = np.zeros(flux.size, int)
    flux[:100], ivar[300:350], flux[400:403] = np.nan, 0, np.inf
    flux[1000:1200], bits[1000:1200] = 1e6, 4
    keep = np.r_[0:1500, 1700:2400]
    columns = label(model, wavelength[keep], flux[keep], ivar[keep], bits[keep])
    assert near(columns, DWARF) and not flags(columns)
    assert columns["n_pixels"] < WAVELENGTH.size - 200
    assert columns["snr"] == pytest.approx(60, rel=0.1)


@pytest.mark.parametrize("unit", [1e-300, 1e-17, 1e150])
def test_the_unit_of_flux_does_not_matter(model, unit):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    plain = label(model, wavelength, flux, ivar)
    with np.errstate(over="ignore"):
        scaled = flux * unit, ivar / unit / unit
    with np.errstate(all="raise", under="ignore"):
        found = label(model, wavelength, *scaled)
    if unit == 1e-300:  # its inverse variance is no number
        assert found["flag_no_valid_pixels"] and found["teff"] is None
    else:
        assert (found["teff"], found["snr"]) == pytest.approx((plain["teff"], plain["snr"]))


@pytest.mark.parametrize("v_rad", [-299_792.458, 1e300])
def test_no_star_is_as_fast_as_light(model, v_rad):
    pixels = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    with np.errstate(all="raise", under="ignore"):
        found = label(model, *pixels, v_rad=v_rad)
    assert found["flag_no_valid_pixels"] and found["teff"] is None


@pytest.mark.parametrize("v_rad", [-120.0, 300.0])
def test_a_visit_is_shifted_to_rest(model, v_rad):
    pixels = synthetic.spectrum(DWARF, 60, np.random.default_rng(1), WAVELENGTH, v_rad)
    known = label(model, *pixels, v_rad=v_rad)
    assert near(known, DWARF) and not flags(known)
    searched = label(model, *pixels, is_at_rest=False)
    assert near(searched, DWARF) and flags(searched) == {"flag_no_velocity"}
    for found in (known, searched):
        assert abs(found["v_fit"] - v_rad) < 5 * found["e_v_fit"] < 20


def test_labels_do_not_depend_on_the_unit_of_the_flux(model):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    one = label(model, wavelength, flux, ivar)
    other = label(model, wavelength, flux * 1e-17, ivar * 1e34)
    assert [one[n] for n in LABELS] == pytest.approx([other[n] for n in LABELS])


@pytest.mark.parametrize("case", ["nan", "flagged", "elsewhere", "none"])
def test_nothing_to_fit_is_flagged(model, case):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    bits = np.full(flux.size, int(case == "flagged"))
    columns = {
        "nan": lambda: label(model, wavelength, flux * np.nan, ivar),
        "flagged": lambda: label(model, wavelength, flux, ivar, bits),
        "elsewhere": lambda: label(model, wavelength + 9000, flux, ivar),
        "none": lambda: label(model, None, None, None),
    }[case]()
    assert flags(columns) == {"flag_no_valid_pixels", "flag_few_pixels", "flag_fit_failed"}
    assert columns["teff"] is None and columns["chi2"] is None and columns["n_pixels"] == 0
    assert not any(isinstance(value, float) and np.isnan(value) for value in columns.values())


def test_doubtful_spectra_are_flagged(model):
    rng = np.random.default_rng(1)
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, rng)
    assert "flag_bad_chi2" in flags(label(model, wavelength, flux, 100 * ivar))
    assert "flag_few_pixels" in flags(label(model, wavelength[:200], flux[:200], ivar[:200]))
    assert flags(label(model, wavelength[:8], flux[:8], ivar[:8])) >= {"flag_fit_failed"}
    dark = flags(label(model, wavelength, -flux, ivar))
    assert dark >= {"flag_bad_continuum", "flag_fit_failed", "flag_low_snr"}
    assert "flag_low_snr" in flags(label(model, *synthetic.spectrum(DWARF, 4, rng)))
    cool = label(model, *synthetic.spectrum([2600, 4.8, 0, 0], 100, rng))
    assert "flag_teff_edge" in flags(cool) and cool["teff"] is not None


def test_wavelengths_that_occur_twice_count_twice(model):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    once = label(model, wavelength, flux, ivar)
    twice = label(model, *(np.tile(a, 2) for a in (wavelength, flux, ivar / 2)))
    assert twice["teff"] == pytest.approx(once["teff"], abs=0.1)
    assert twice["e_teff"] == pytest.approx(once["e_teff"], rel=0.01)
    assert flags(label(model, np.full(flux.size, 6000.0), flux, ivar)) >= {"flag_no_valid_pixels"}


def test_arrays_of_different_shapes_are_an_error(model):
    with pytest.raises(ValueError, match="must have the same shape"):
        label(model, WAVELENGTH, np.ones(5), np.ones(WAVELENGTH.size))


def test_masked_pixels_take_their_own_information_away_and_bias_nothing(model):
    wavelength, flux, _ = synthetic.spectrum(DWARF, 1e6, np.random.default_rng(1), WAVELENGTH)
    ivar = np.full(flux.size, (50 / np.median(flux)) ** 2)
    whole = label(model, wavelength, flux, ivar)
    masked = label(model, wavelength, np.where(np.arange(flux.size) % 4 == 3, np.nan, flux), ivar)
    assert abs(masked["fe_h"] - whole["fe_h"]) < 0.003
    assert near(masked, DWARF, sigmas=2.5)


def test_a_wrong_velocity_is_fitted_with_the_labels(model):
    pixels = synthetic.spectrum(DWARF, 60, np.random.default_rng(1), WAVELENGTH, 100.0)
    found = label(model, *pixels)
    assert near(found, DWARF) and found["v_fit"] == pytest.approx(100, abs=5 * found["e_v_fit"])
    assert found["e_v_fit"] < 4


def test_cosmic_rays_and_active_stars_keep_their_labels(model):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1), WAVELENGTH)
    plain = label(model, wavelength, flux, ivar)
    hit = flux.copy()
    hit[[300, 900, 1200, 1700, 2300]] *= (2, 4, 1.8, 3, 2.5)
    hit[np.abs(wavelength - 6564.6) < 6] *= 4
    found = label(model, wavelength, hit, ivar)
    assert near(found, DWARF) and not flags(found) and found["n_clipped"] >= 5
    for name in LABELS:
        assert abs(found[name] - plain[name]) < 0.5 * plain[f"e_{name}"]


def test_the_model_and_the_continuum_on_the_pixels_of_the_spectrum(model):
    wavelength, flux, ivar = synthetic.spectrum(
        DWARF, 60, np.random.default_rng(1), WAVELENGTH, 80.0
    )
    (columns,) = label_many(model, [prepare(model, wavelength, flux, ivar, None, 80.0)], True)
    inside = np.isfinite(columns["model_flux"])
    assert inside.mean() > 0.99
    deviation = (flux - columns["model_flux"])[inside] * np.sqrt(ivar[inside])
    # Lines are narrower than two pixels of BOSS, which are one of the model.
    assert 0.95 < deviation.std() < 1.25 and abs(deviation.mean()) < 0.1
    (failed,) = label_many(model, [prepare(model, wavelength, 0 * flux, ivar)], True)
    assert failed["model_flux"] is failed["model_continuum"] is None
    assert (columns["model_flux"][inside] <= 2 * columns["model_continuum"][inside]).all()


def test_pixels_with_gaps_between_them_have_labels(model):
    wavelength, flux, ivar = synthetic.spectrum(DWARF, 60, np.random.default_rng(1))
    keep = np.ones(wavelength.size, bool)
    keep[500:560:2] = keep[1000:1100] = keep[1101:1200] = False  # one stands alone
    assert near(label(model, wavelength[keep], flux[keep], ivar[keep]), DWARF)


def test_spectra_are_labelled_in_batches_in_their_order():
    rng = np.random.default_rng(1)
    columns = dict(
        zip(("wavelength", "flux", "ivar"), synthetic.spectrum(DWARF, 60, rng), strict=True)
    )
    spectra = [BossVisitSpectrum(spectrum_pk=n, **columns) for n in range(BATCH + 1)]
    found = list(slam.__astra__.function(iter(spectra)))
    assert [result.spectrum_pk for result in found] == list(range(BATCH + 1))


def test_any_set_of_labels_labels():
    labels, wavelength, flux = small_set(60)
    names = ("teff", "fe_h", "c_fe")
    trained = train(labels[:, [0, 2, 3]], wavelength, flux, label_names=names, validates=False)
    (columns,) = label_many(
        trained, [prepare(trained, wavelength, flux[7], np.full(flux[7].size, 1e4))]
    )
    assert columns["teff"] is not None and "logg" not in columns
    assert json.loads(columns["other_labels"]).keys() == {"c_fe", "e_c_fe"}


def test_columns_are_those_of_the_table(model):
    from astra.models.pipeline import PipelineOutputModel
    from astra.models.slam import Slam

    pixels = prepare(model, *synthetic.spectrum(DWARF, 60, np.random.default_rng(1)))
    (columns,) = label_many(model, [pixels], store_model=True)
    fields = set(Slam._meta.fields) - set(PipelineOutputModel._meta.fields)
    bits = {name for name in vars(Slam) if name.startswith("flag_")}
    own = fields | bits - {"flag_edge", "flag_bad", "flag_warn"}
    assert own - {"result_flags"} == set(columns)
    row = Slam(**columns | {"flag_bad_chi2": True})
    assert row.flag_bad and row.flag_warn and not row.flag_edge


@pytest.mark.parametrize("n", [2, 8, 20, 60])
def test_a_spectrum_of_scattered_pixels_is_flagged(model, n):
    """Half way to their neighbours, they are wider than the model's spline reaches."""
    pixels = synthetic.spectrum(DWARF, 60, np.random.default_rng(1), WAVELENGTH)
    which = np.sort(np.random.default_rng(n).choice(WAVELENGTH.size, n, replace=False))
    found = label(model, *(array[which] for array in pixels))
    assert "flag_few_pixels" in flags(found)
    assert near(found, DWARF) if found["teff"] else "flag_fit_failed" in flags(found)


@pytest.mark.parametrize("part", [slice(400, 1400), slice(300, 900), slice(700, None)])
@pytest.mark.parametrize("teff", [3840.0, 4060.0])
def test_a_spectrum_of_which_a_part_is_missing_begins_at_the_right_node(part, teff):
    """Its continuum differs from that of a whole one, for which another node would fit better."""
    model = load("slam_templates")
    flux = model.flux(np.array([[teff, 0.0]]))[0] * (model.wavelength / 6000) ** 3
    noise = np.full(flux.size, 50.0 / flux.mean())
    flux = flux + np.random.default_rng(1).normal(size=flux.size) / noise
    found = label(model, model.wavelength[part], flux[part], noise[part] ** 2)
    assert abs(found["teff"] - teff) < 2 * found["e_teff"] < 400, found["teff"]
    assert "flag_bad_chi2" not in flags(found)
