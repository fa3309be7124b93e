"""Evaluate a model on the pixels of observed spectra, as its mean over each pixel.

The model is given as means over its own pixels. Their cumulative sum is known at the edges of the
pixels. A cubic spline through these values is the integral of the model up to any wavelength; its
difference over an observed pixel, divided by the pixel's width, is the mean in that pixel. Observed
pixels may be wider or narrower than the model's, shifted by the star's velocity, or missing.

The observed pixels whose centres lie in one pixel of the model are averaged, weighted by their
inverse variances, and the model is averaged over the same pixels with the same weights. A masked
pixel therefore removes its own information and causes no bias. Both operations are linear in the
model: a few filter coefficients (*taps*) that are applied to the differences of the spline's
coefficients, in single precision, which halves the time of a fit.
"""

from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from astra.records import dataclass

Array = NDArray[np.float64]
Singles = NDArray[np.float32]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

Real = TypeVar("Real", np.float32, np.float64)

SPEED_OF_LIGHT_KM_S = 299_792.458

#: Largest width of a pixel next to a gap, in units of the median width (in log wavelength).
MAX_WIDTH_AT_GAP = 3.0

#: Number of edges after which the response of the spline to one edge falls below 1e-16.
REACH = 28

#: Pixels of the model to either side of its own that an observed pixel may cover. Wider ones, as of
#: a spectrum of a few scattered pixels, are omitted: the spline reaches no further at its ends.
MAX_HALF_WIDTH = REACH - 4

_POLE = np.sqrt(3) - 2


def at_rest(wavelength: Array, v_rad: float) -> Array:
    """Return wavelengths in the frame of a star that recedes with `v_rad` [km/s].

    They are NaN if `v_rad` is not below the speed of light.
    """
    if abs(v_rad) >= SPEED_OF_LIGHT_KM_S:
        return np.full_like(wavelength, np.nan)
    return wavelength / (1 + v_rad / SPEED_OF_LIGHT_KM_S)


def good_pixels(
    wavelength: Array, flux: Array, ivar: Array, pixel_flags: Integers | None = None
) -> Flags:
    """Return which pixels are good: finite, with a positive inverse variance, and not flagged."""
    good = np.isfinite(wavelength) & (wavelength > 0) & np.isfinite(flux)
    good &= np.isfinite(ivar) & (ivar > 0)
    return good if pixel_flags is None else good & (np.asarray(pixel_flags) == 0)


def edges(log_wavelength: Array) -> tuple[Array, Array]:
    """Return the left and right edges of pixels, half way to the nearer neighbour.

    Wavelengths must ascend. Pixels of equal wavelength get the same edges; if all wavelengths are
    equal, the pixels have no width.
    """
    spacing = np.diff(log_wavelength)
    if not spacing.all():
        distinct, place = np.unique(log_wavelength, return_inverse=True)
        left, right = edges(distinct)
        return left[place], right[place]
    if not spacing.size:
        return log_wavelength, log_wavelength
    width = np.minimum(np.append(spacing[0], spacing), np.append(spacing, spacing[-1]))
    if width.max() > MAX_WIDTH_AT_GAP * spacing.min():  # otherwise no pixel is wider than the limit
        width = np.minimum(width, MAX_WIDTH_AT_GAP * np.median(spacing))
    return log_wavelength - width / 2, log_wavelength + width / 2


@dataclass(frozen=True, eq=False)
class Grid:
    """The pixels of a model."""

    wavelength: Array  #: vacuum Angstrom, ascending, (P,)

    @cached_property
    def position(self) -> Array:
        """Edges of the pixels in log wavelength, (P + 1,)."""
        log = np.log(self.wavelength)
        inner = (log[1:] + log[:-1]) / 2
        return np.concatenate([[2 * log[0] - inner[0]], inner, [2 * log[-1] - inner[-1]]])

    def splines(self, spectra: Array) -> Array:
        """Return the spline coefficients of the integrals of spectra (C, P): shape (C, S)."""
        total = np.cumsum(spectra * np.diff(self.position), axis=1)
        total = np.concatenate([np.zeros((len(spectra), 1)), total], axis=1)
        ahead = np.arange(1, 2 * REACH + 1)
        first, last = total[:, 1:2] - total[:, :1], total[:, -1:] - total[:, -2:-1]
        extended = np.concatenate(
            [total[:, :1] - first * ahead[::-1], total, total[:, -1:] + last * ahead], axis=1
        )
        # Coefficients of B-splines through given values: Unser et al. 1993, IEEE TSP 41, 821.
        response = np.sqrt(3) * _POLE ** np.abs(np.arange(-REACH, REACH + 1))
        return np.array([np.convolve(one, response, "valid") for one in extended])

    @cached_property
    def velocity_taps(self) -> Singles:
        """Taps of the derivatives of the pixels' means by the velocity [1 / (km/s)], (3, P).

        The first tap of pixel p applies to the spline difference ``p + REACH - 1``.
        """
        step, width = 2 * np.gradient(self.position), np.diff(self.position)
        before, behind = 1 / (step[:-1] * width), 1 / (step[1:] * width)
        slopes = np.stack([-before, behind - before, behind])
        return (-slopes / SPEED_OF_LIGHT_KM_S).astype(np.float32)

    def place(self, log_wavelength: Array) -> tuple[Integers, Array]:
        """Return the pixels in which wavelengths lie, and the positions in them, 0 to 1."""
        place = np.interp(
            log_wavelength, self.position, np.arange(self.position.size), -1.0, self.position.size
        )
        whole = np.floor(place).astype(np.int64)
        return whole, place - whole

    def means(self, spline: Array, left: Array, right: Array) -> Array:
        """Return the means from `left` to `right` (log wavelengths), (T,); NaN outside."""
        total = np.zeros(left.size)
        (first, t_first), (last, t_last) = self.place(left), self.place(right)
        inside = (first >= 0) & (last < self.wavelength.size)
        for place, t, sign in ((last, t_last, 1.0), (first, t_first, -1.0)):
            start = np.where(inside, place, 0) + REACH - 1
            for k, tap in enumerate(_taps(t)):
                total += sign * tap * spline[start + k]
        return np.where(inside, total / (right - left), np.nan)


def _taps(t: NDArray[np.floating]) -> tuple[Array, ...]:
    """Return the weights of four spline coefficients at a place `t` from 0 to 1 between knots."""
    u, t2 = 1 - t, t * t
    t3 = t2 * t
    return u * u * u / 6, (4 - 6 * t2 + 3 * t3) / 6, (1 + 3 * t + 3 * t2 - 3 * t3) / 6, t3 / 6


def _totals(values: NDArray[Real], starts: Integers) -> NDArray[Real]:
    """Return the totals of runs of values that begin at `starts`."""
    return values if starts.size == values.size else np.add.reduceat(values, starts)


@dataclass(frozen=True, eq=False)
class _Steps:
    """The taps on differences of spline coefficients that give the spline at T places.

    Taps on coefficients add up to 1; those on the differences are 1 before them, and 0 behind.
    """

    offset: NDArray[np.int32]  #: the first coefficient of each place, (T,)
    tails: list[Singles]  #: of the taps behind the first, the second and the third, (T,) each

    @classmethod
    def of(cls, offset: Integers, t: Array) -> "_Steps":
        _, second, third, fourth = _taps(t.astype(np.float32))
        tails = (second + third + fourth, third + fourth, fourth)
        return cls(offset.astype(np.int32), [tail.astype(np.float32, copy=False) for tail in tails])

    def at(self, row: int) -> Singles:
        """Return the tap on the difference behind coefficient `row` of each place, (T,)."""
        values = (self.offset > row).astype(np.float32)
        for k, tail in enumerate(self.tails):
            np.copyto(values, tail, where=self.offset == row - k)
        return values


@dataclass(frozen=True, eq=False)
class Observed:
    """The good pixels of M spectra, one after the other."""

    n_spectra: int
    spectrum: Integers  #: which spectrum a pixel belongs to, (T,)
    left: Array  #: edges in log wavelength, (T,)
    right: Array
    flux: Array
    ivar: Array

    @classmethod
    def of(cls, spectra: list[tuple[Array, Array, Array, Flags]]) -> "Observed":
        """Create it from wavelengths in any order, fluxes, inverse variances, and good pixels."""
        parts = [_edges_and_data(*one) for one in spectra]
        counts = [part[0].size for part in parts]
        columns = [np.concatenate([np.zeros(0), *(part[k] for part in parts)]) for k in range(4)]
        return cls(len(spectra), np.repeat(np.arange(len(spectra)), counts), *columns)

    def subset(self, which: Integers) -> "Observed":
        """Return the spectra `which`, whose numbers must ascend."""
        number = np.full(self.n_spectra, -1)
        number[which] = np.arange(which.size)
        keep = number[self.spectrum] >= 0
        if keep.all():
            return self
        columns = (a[keep] for a in (self.left, self.right, self.flux, self.ivar))
        return Observed(which.size, number[self.spectrum[keep]], *columns)

    def shifted(self, v_rad: Array) -> "Observed":
        """Return the spectra in the frames of stars that recede with `v_rad` [km/s], (M,)."""
        shift = -np.log1p(v_rad / SPEED_OF_LIGHT_KM_S)[self.spectrum]
        return Observed(
            self.n_spectra, self.spectrum, self.left + shift, self.right + shift, self.flux,
            self.ivar,
        )  # fmt: skip


def _edges_and_data(
    wavelength: Array, flux: Array, ivar: Array, good: Flags
) -> tuple[Array, Array, Array, Array]:
    finite = np.isfinite(wavelength) & (wavelength > 0)
    if not finite.all() or not (np.diff(wavelength) > 0).all():
        order = np.flatnonzero(finite)
        order = order[np.argsort(wavelength[order], kind="stable")]
        wavelength, flux, ivar = (a[order] for a in (wavelength, flux, ivar))
        good = good[order]
    if wavelength.size < 2:
        return (np.zeros(0),) * 4
    left, right = edges(np.log(wavelength))
    good = good & (right > left)
    return left[good], right[good], flux[good], ivar[good]


@dataclass(frozen=True, eq=False)
class Binned:
    """M spectra, averaged over the pixels of a model, and how the model is averaged likewise."""

    flux: Array  #: (M, P), 0 where there are no data
    ivar: Array  #: (M, P), 0 where there are no data
    offset: int = 0  #: the first tap of pixel p applies to the spline difference ``p + offset``
    taps: Singles | None = None  #: (W, M, P); None for spectra on the pixels of the model itself

    @classmethod
    def of(cls, grid: Grid, observed: Observed) -> "Binned":
        """Average the observed pixels whose centres lie in the same pixel of the model."""
        n_pixels = grid.wavelength.size
        pixel, _ = grid.place((observed.left + observed.right) / 2)
        (first, t_first), (last, t_last) = grid.place(observed.left), grid.place(observed.right)
        fits = np.maximum(pixel - first, last - pixel) <= MAX_HALF_WIDTH
        inside = np.flatnonzero((first >= 0) & (last < n_pixels) & fits)
        pixel, first, last = pixel[inside], first[inside], last[inside]
        t_first, t_last = t_first[inside], t_last[inside]
        weight = observed.ivar[inside]
        bin_ = observed.spectrum[inside] * n_pixels + pixel
        n_bins = observed.n_spectra * n_pixels

        # Pixels ascend, so the pixels of a bin are adjacent.
        starts = np.flatnonzero(np.diff(bin_, prepend=-1))
        bins = bin_[starts]
        total = _totals(weight, starts)
        flux, ivar = np.zeros(n_bins), np.zeros(n_bins)
        flux[bins], ivar[bins] = _totals(weight * observed.flux[inside], starts) / total, total
        low = int((first - pixel).min(initial=0))
        width = int((last - pixel).max(initial=0)) + 4 - low
        taps = np.zeros((width - 1, n_bins), np.float32)
        share = (weight / (observed.right - observed.left)[inside]).astype(np.float32)
        per_weight = (1 / total).astype(np.float32)
        ends = _Steps.of(last - pixel - low, t_last), _Steps.of(first - pixel - low, t_first)
        for row in range(width - 1):
            taps[row, bins] = (
                _totals((ends[0].at(row) - ends[1].at(row)) * share, starts) * per_weight
            )
        shape = (observed.n_spectra, n_pixels)
        return cls(
            flux.reshape(shape), ivar.reshape(shape), low + REACH - 1, taps.reshape(-1, *shape)
        )

    def average(
        self, densities: Singles, which: Integers, shift: Singles, velocity_taps: Singles
    ) -> tuple[Singles, Singles]:
        """Return the means of models, and the derivative of each last one by the velocity.

        Parameters
        ----------
        densities
            Differences of splines of C models for each spectrum, (m, C, S).
        which
            The spectra, (m,).
        shift
            Velocities by which to move the models [km/s], (m,).
        velocity_taps
            Those of the grid.

        Returns
        -------
        means, slopes
            Shapes (m, C, P) and (m, P).
        """
        if self.taps is None:
            raise ValueError("spectra on the pixels of the model need no splines")
        n_pixels, centre = self.flux.shape[1], REACH - 1 - self.offset
        mean = np.zeros((*densities.shape[:-1], n_pixels), np.float32)
        slope = np.zeros((which.size, n_pixels), np.float32)
        for i, spectrum in enumerate(which):  # one at a time: they stay in the processor's cache
            shifted = shift[i] * velocity_taps
            for k, taps in enumerate(self.taps[:, spectrum]):
                density = densities[i, :, k + self.offset : k + self.offset + n_pixels]
                if 0 <= k - centre < len(shifted):
                    taps = taps + shifted[k - centre]
                    slope[i] += velocity_taps[k - centre] * density[-1]
                mean[i] += taps * density
        return mean, slope
