"""Results of ``slam.slam``: stellar labels from BOSS spectra."""

from peewee import BitField, FloatField, IntegerField, TextField

from astra.fields import ArrayField
from astra.models.pipeline import PipelineOutputModel


class Slam(PipelineOutputModel):
    """Labels of one spectrum from the Stellar LAbel Machine (Zhang et al. 2020, ApJS 246, 9).

    A label is NULL if the fit failed or there were no data; ``result_flags`` says why. It is also
    NULL if the model does not have this label. Labels without a column of their own are in
    ``other_labels``. Errors are those of the fit and, added in quadrature, the model's error floor.
    Each ``flag_...`` of a single bit can be used as a condition in a query.

    Examples
    --------
    >>> from astra.models import Slam
    >>> Slam.select().where(Slam.teff > 2000).count()
    4
    >>> Slam.select().where(Slam.flag_low_snr).count()
    0
    """

    teff = FloatField(null=True)
    e_teff = FloatField(null=True)
    logg = FloatField(null=True)
    e_logg = FloatField(null=True)
    fe_h = FloatField(null=True)
    e_fe_h = FloatField(null=True)
    alpha_fe = FloatField(null=True)
    e_alpha_fe = FloatField(null=True)

    rho_teff_logg = FloatField(null=True, help_text="correlation of the two errors, -1 to 1")
    rho_teff_fe_h = FloatField(null=True)
    rho_teff_alpha_fe = FloatField(null=True)
    rho_logg_fe_h = FloatField(null=True)
    rho_logg_alpha_fe = FloatField(null=True)
    rho_fe_h_alpha_fe = FloatField(null=True)

    initial_teff = FloatField(null=True, help_text="start of the fit: the best training star [K]")
    initial_logg = FloatField(null=True)
    initial_fe_h = FloatField(null=True)
    initial_alpha_fe = FloatField(null=True)

    other_labels = TextField(null=True, help_text="JSON: further labels, and their errors as e_...")
    model_digest = TextField(null=True, help_text="first 16 digits of the model file's SHA-256")

    v_fit = FloatField(null=True, help_text="radial velocity, fitted with the labels [km/s]")
    e_v_fit = FloatField(null=True, help_text="uncertainty of v_fit [km/s]")
    chi2 = FloatField(null=True, help_text="chi2 of the fit, errors of the model included")
    reduced_chi2 = FloatField(null=True, help_text="chi2 per degree of freedom")
    mismatch = FloatField(null=True, help_text="rms residual less the noise, per continuum")
    n_clipped = IntegerField(null=True, help_text="pixels excluded by residual, as cosmic rays are")
    n_pixels = IntegerField(null=True, help_text="pixels of the model that had data")
    n_iterations = IntegerField(null=True, help_text="steps of the fit that were tried")
    snr = FloatField(null=True, help_text="median signal-to-noise ratio of the spectrum's pixels")
    model_flux = ArrayField(null=True, help_text="the model times the continuum; store_model=True")
    model_continuum = ArrayField(
        null=True, help_text="on the pixels of the spectrum, as model_flux"
    )

    result_flags = BitField(default=0, help_text="one bit for each problem; 0 if there is none")

    #: No pixel has a finite flux and a positive inverse variance where the model has pixels.
    flag_no_valid_pixels = result_flags.flag(2**0)
    #: Fewer than half of the model's pixels had data.
    flag_few_pixels = result_flags.flag(2**1)
    #: No labels: the fit did not converge, or too few pixels were left to determine them.
    flag_fit_failed = result_flags.flag(2**2)
    #: The mean flux is not positive: there is no continuum to divide by, and no labels.
    flag_bad_continuum = result_flags.flag(2**3)
    #: Effective temperature at an edge of the training grid.
    flag_teff_edge = result_flags.flag(2**4)
    #: Surface gravity at an edge of the training grid.
    flag_logg_edge = result_flags.flag(2**5)
    #: [Fe/H] at an edge of the training grid.
    flag_fe_h_edge = result_flags.flag(2**6)
    #: [alpha/Fe] at an edge of the training grid.
    flag_alpha_fe_edge = result_flags.flag(2**7)
    #: Reduced chi2 above 3: the model does not describe the star, or the noise is underestimated.
    flag_bad_chi2 = result_flags.flag(2**8)
    #: Median signal-to-noise ratio below 10.
    flag_low_snr = result_flags.flag(2**9)
    #: Labels or spectrum unlike the whole training set: another kind of star, or not a star.
    flag_outside_domain = result_flags.flag(2**10)
    #: The residuals are much larger than those of the training spectra with the nearest labels.
    flag_mismatch = result_flags.flag(2**11)
    #: The visit has no velocity; it was searched for.
    flag_no_velocity = result_flags.flag(2**12)
    #: The fitted velocity is more than 300 km/s (600 where none was known) from the given one.
    flag_bad_velocity = result_flags.flag(2**13)
    #: A label in ``other_labels`` is at an edge of the training grid.
    flag_other_edge = result_flags.flag(2**14)

    @property
    def flag_edge(self) -> bool:
        """Whether any label is at an edge of the grid; all labels and errors are then doubtful."""
        return bool(
            self.flag_teff_edge
            or self.flag_logg_edge
            or self.flag_fe_h_edge
            or self.flag_alpha_fe_edge
            or self.flag_other_edge
        )

    @property
    def flag_bad(self) -> bool:
        """Whether the labels should not be used."""
        return bool(
            self.flag_no_valid_pixels
            or self.flag_fit_failed
            or self.flag_bad_chi2
            or self.flag_outside_domain
            or self.flag_mismatch
            or self.flag_bad_velocity
            or self.flag_edge
        )

    @property
    def flag_warn(self) -> bool:
        """Whether any flag of the result is set."""
        return bool(self.result_flags)
