"""Describe columns by their names, for models that give no ``help_text``."""

_DESCRIPTIONS = {
    # sources
    "sdss_id": "SDSS-V unified identifier",
    "sdss4_apogee_id": "SDSS-4 APOGEE name",
    "gaia_dr2_source_id": "Gaia DR2 source identifier",
    "gaia_dr3_source_id": "Gaia DR3 source identifier",
    "tic_v8_id": "TESS Input Catalog (v8) identifier",
    "healpix": "HEALPix (128 side)",
    "catalogid": "SDSS-V catalog identifier",
    "catalogid21": "SDSS-V catalog identifier (v21; v0.0)",
    "catalogid25": "SDSS-V catalog identifier (v25; v0.5)",
    "catalogid31": "SDSS-V catalog identifier (v31; v1.0)",
    "ra": "right ascension [deg]",
    "dec": "declination [deg]",
    "l": "galactic longitude [deg]",
    "b": "galactic latitude [deg]",
    "plx": "parallax [mas]",
    "pmra": "proper motion in right ascension [mas/yr]",
    "pmde": "proper motion in declination [mas/yr]",
    "gaia_v_rad": "Gaia radial velocity [km/s]",
    "gaia_e_v_rad": "uncertainty of Gaia radial velocity [km/s]",
    "g_mag": "Gaia DR3 G [mag]",
    "bp_mag": "Gaia DR3 BP [mag]",
    "rp_mag": "Gaia DR3 RP [mag]",
    "j_mag": "2MASS J [mag]",
    "h_mag": "2MASS H [mag]",
    "k_mag": "2MASS Ks [mag]",
    "w1_mag": "AllWISE W1 [mag]",
    "w2_mag": "AllWISE W2 [mag]",
    "ebv": "E(B-V) [mag]",
    # spectra
    "source_pk": "key of the source",
    "spectrum_pk": "key of the spectrum, unique over all tables of spectra",
    "release": "data release",
    "path": "file of the spectrum",
    "snr": "signal-to-noise ratio per pixel",
    "wavelength": "wavelength in vacuum [Angstrom]",
    "flux": "flux [1e-17 erg/s/cm^2/A, or normalised]",
    "ivar": "inverse variance of the flux",
    "pixel_flags": "bits of what is wrong with each pixel, 0 is good",
    "spectrum_flags": "bits of what is wrong with the spectrum, 0 is good",
    "apred": "reduction of the APOGEE pipeline",
    "apogee_id": "APOGEE name of the star",
    "run2d": "reduction of the BOSS pipeline",
    "telescope": "telescope, such as apo25m",
    "field": "field identifier",
    "fieldid": "field identifier",
    "plate": "plate identifier",
    "fiber": "fiber number",
    "fiberid": "fiber number",
    "mjd": "modified Julian date of the observation [d]",
    "min_mjd": "modified Julian date of the first visit [d]",
    "max_mjd": "modified Julian date of the last visit [d]",
    "date_obs": "time of the observation",
    "exptime": "exposure time [s]",
    "n_visits": "number of visits",
    "n_good_visits": "number of visits that are good",
    "bc": "barycentric correction [km/s]",
    "v_rad": "barycentric radial velocity [km/s]",
    "xcsao_v_rad": "barycentric radial velocity by XCSAO [km/s]",
    # results
    "task_pk": "key of the result",
    "v_astra": "version of astra, as one number",
    "v_astra_major_minor": "major and minor version of astra, as one number",
    "created": "time at which the row was made",
    "modified": "time at which the row was modified last",
    "t_elapsed": "time that the task spent on this row [s]",
    "t_overhead": "share of the time before the first row [s]",
    "tag": "label of the user's own",
    "teff": "effective temperature [K]",
    "logg": "surface gravity [log10 cm/s^2]",
    "fe_h": "[Fe/H] [dex]",
    "m_h": "[M/H] [dex]",
    "alpha_fe": "[alpha/Fe] [dex]",
    "alpha_m": "[alpha/M] [dex]",
    "c_m": "[C/M] [dex]",
    "n_m": "[N/M] [dex]",
    "v_micro": "microturbulence [km/s]",
    "v_macro": "macroturbulence [km/s]",
    "v_sini": "projected rotational velocity [km/s]",
    "chi2": "chi-squared",
    "rchi2": "chi-squared per degree of freedom",
    "reduced_chi2": "chi-squared per degree of freedom",
    "result_flags": "bits of what is wrong or doubtful, 0 is good",
    "model_flux": "flux of the best model",
    "continuum": "continuum of the best model",
}

_PREFIXES = {
    "e_": "uncertainty of",
    "raw_": "raw",
    "initial_": "initial",
    "calibrated_": "calibrated",
}


def describe(name: str) -> str | None:
    """Look up what a column of this name holds; None where that is not known.

    >>> describe("raw_e_teff")
    'raw uncertainty of effective temperature [K]'
    """
    if name in _DESCRIPTIONS:
        return _DESCRIPTIONS[name]
    for prefix, description in _PREFIXES.items():
        if name.startswith(prefix) and (rest := describe(name.removeprefix(prefix))):
            return f"{description} {rest}"
    return None


class _ByName(type):
    def __getattr__(cls, name: str) -> str | None:
        if name.startswith("__"):
            raise AttributeError(name)
        return describe(name)


class Glossary(metaclass=_ByName):
    """Descriptions as attributes, for ``help_text=Glossary.teff``; None where a name is unknown."""
