"""slam.slam beside astroslam, its authors' own implementation, and on spectra as telescopes give.

    python -m benchmarks.slam             # beside astroslam, then the spectra
    python -m benchmarks.slam --no-peer   # the spectra alone

Both train on the same noisy normalised spectra, choose their hyperparameters by cross-validation,
and label the same test spectra from the same pixels and inverse variances, on one core: once with a
clean training set, once with some of its labels wrong, once with some of its pixels bad, once with
spectra of very unequal noise. Printed are the scatters of the labels about the truth, side by side,
and the times. What slam.slam does with spectra of missing pixels, cosmic rays and so on is in
slam_spectra.py. The exit status is 1 if any goal is missed, else 0.

astroslam needs Python 3.11 or older and a virtual environment of its own, which is made by this
program below the system's folder for temporary files, and used again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # one core each: before numpy is loaded

import numpy as np  # noqa: E402

from astra.pipelines.slam.continuum import basis, normalise  # noqa: E402
from astra.pipelines.slam.fit import fit  # noqa: E402
from astra.pipelines.slam.synthetic import LABELS, WAVELENGTH, random_labels, spectrum  # noqa: E402
from astra.pipelines.slam.training import CONTINUUM_DEGREE, train  # noqa: E402
from benchmarks import slam_spectra  # noqa: E402

PACKAGES = (
    "astroslam==1.2022.1228.1",
    "numpy==1.23.5",
    "scipy==1.11.4",
    "scikit-learn==1.2.0",
    "astropy<6",
)
TRAINING_SNR = 150.0
#: Training sets, and how large the scatter may be at most, in units of astroslam's.
TRAINING_SETS = {
    "clean": 1.1,
    "5 % wrong labels": 1.0,
    "1 % bad pixels": 1.0,
    "S/N 10 to 300": 1.0,
}
TEST_SNRS = (100.0, 30.0)
#: Labels keep this share of their range from the edges of the grid.
MARGIN = 0.1

#: Run by the other interpreter: arguments are the folder of the data and of the answer.
CHILD = """
import collections
import collections.abc
import json
import sys
import time
import warnings
from pathlib import Path

# astroslam imports these from where Python 3.10 removed them.
for name in collections.abc.__all__:
    if not hasattr(collections, name):
        setattr(collections, name, getattr(collections.abc, name))
warnings.simplefilter("ignore")

import numpy as np
from slam import Slam

folder = Path(sys.argv[1])
data = np.load(folder / "data.npz")
options = json.loads((folder / "options.json").read_text())
answer, seconds = {}, {}

start = time.perf_counter()
machine = Slam(data["wavelength"], data["flux"], data["ivar"], data["labels"], scale=True)
machine.train_pixels(
    method="grid",
    param_grid=options["param_grid"],
    cv=options["cv"],
    sample_weight_scheme="alleven",
    n_jobs=1,
    verbose=0,
)
seconds["train"] = time.perf_counter() - start
for key in options["tests"]:
    flux, ivar = data["flux_" + key], data["ivar_" + key]
    start = time.perf_counter()
    initial = machine.predict_labels_quick(flux, ivar, n_jobs=1)
    found = machine.predict_labels_multi(initial, flux, ivar, n_jobs=1)
    seconds[key] = time.perf_counter() - start
    answer[key] = np.array([one["x"] if isinstance(one, dict) else one for one in found])
np.savez(folder / "answer.npz", **answer)
(folder / "seconds.json").write_text(json.dumps(seconds))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--training", type=int, default=300, help="spectra to train on")
    parser.add_argument("--stars", type=int, default=100, help="test spectra at each S/N")
    parser.add_argument("--every", type=int, default=16, help="use every n-th pixel of the model")
    parser.add_argument("--seed", type=int, default=2020, help="of the spectra beside astroslam")
    parser.add_argument("--no-peer", action="store_true", help="leave astroslam out")
    parser.add_argument(
        "--environment",
        type=Path,
        default=Path(tempfile.gettempdir()) / "astra-benchmark-astroslam",
        help="virtual environment of astroslam: made if missing",
    )
    options = parser.parse_args()
    missed = 0 if options.no_peer else beside_astroslam(options)
    return int(bool(missed + slam_spectra.run()))


def beside_astroslam(options: argparse.Namespace) -> int:
    """Train both on each training set; how many goals were missed."""
    python = make_environment(options.environment)
    missed = 0
    for name, most in TRAINING_SETS.items():
        data = make_data(name, options.training, options.stars, options.every, options.seed)
        print(
            f"{name}: {options.training} training spectra, {options.stars} test spectra at each "
            f"S/N, {data['wavelength'].size} pixels, one core, seed {options.seed}\n"
        )
        missed += show(data["truth"], run_astra(data), run_astroslam(python, data), most)
    return missed


def make_data(
    name: str, n_training: int, n_stars: int, every: int, seed: int
) -> dict[str, np.ndarray]:
    """Normalised spectra for both: ``labels`` to train on, ``truth`` of the test stars."""
    rng = np.random.default_rng(seed)
    curves = basis(WAVELENGTH, CONTINUUM_DEGREE)

    def observe(labels: np.ndarray, snr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = [
            normalise(*spectrum(one, s, rng)[1:], curves)
            for one, s in zip(labels, snr, strict=True)
        ]
        flux, ivar = (np.array(part)[:, ::every] for part in zip(*pairs, strict=True))
        return flux, ivar

    labels = random_labels(rng, n_training)
    snr = np.full(n_training, TRAINING_SNR)
    if name == "S/N 10 to 300":
        snr = 10 ** rng.uniform(1.0, 2.5, n_training)
    flux, ivar = observe(labels, snr)
    truth = random_labels(rng, n_stars, MARGIN)
    data = {"wavelength": WAVELENGTH[::every], "truth": truth}
    for test_snr in TEST_SNRS:
        pair = observe(truth, np.full(n_stars, test_snr))
        data[f"flux_{test_snr:g}"], data[f"ivar_{test_snr:g}"] = pair
    if name == "5 % wrong labels":
        wrong = rng.permutation(n_training)[: n_training // 20]
        labels[wrong] = random_labels(rng, wrong.size)
    if name == "1 % bad pixels":
        bad = rng.random(flux.shape) < 0.01
        flux[bad] += rng.choice([-1.0, 1.0], bad.sum()) * rng.uniform(0.5, 2.0, bad.sum())
    return data | {"labels": labels, "flux": flux, "ivar": ivar}


def make_environment(folder: Path) -> Path:
    """The interpreter of a virtual environment that has astroslam."""
    python = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        if sys.version_info >= (3, 12):
            sys.exit("astroslam needs numpy 1.23.5, which is not built for Python 3.12: use 3.11")
        print(f"installing astroslam in {folder}, once", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
        done_pip = subprocess.run(pip, capture_output=True, text=True)
        if done_pip.returncode:
            sys.exit(f"astroslam could not be installed:\n{done_pip.stderr}")
        done.touch()
    return python


def run_astra(data: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Labels and seconds by test."""
    answer, seconds = {}, {}
    start = time.perf_counter()
    model = train(
        data["labels"],
        data["wavelength"],
        data["flux"],
        data["ivar"],
        is_normalised=True,
        rest_masks=(),  # astroslam uses all pixels
        observed_masks=(),
    )
    seconds["train"] = time.perf_counter() - start
    for key in (f"{snr:g}" for snr in TEST_SNRS):
        start = time.perf_counter()
        found = fit(model, data[f"flux_{key}"], data[f"ivar_{key}"])
        answer[key] = found.labels[:, : len(LABELS)]
        seconds[key] = time.perf_counter() - start
    return answer, seconds


def run_astroslam(
    python: Path, data: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Labels and seconds by test, from the other interpreter."""
    options = {
        "param_grid": {"C": [1.0, 10.0, 100.0], "gamma": [0.03, 0.1, 0.3], "epsilon": [0.05]},
        "cv": 5,
        "tests": [f"{snr:g}" for snr in TEST_SNRS],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", **data)
        (folder / "options.json").write_text(json.dumps(options))
        child = subprocess.run(
            [python, "-c", CHILD, folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,  # where no other module is named slam
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )
        if child.returncode:
            sys.exit(f"astroslam failed:\n{child.stderr}")
        with np.load(folder / "answer.npz") as answer:
            return dict(answer), json.loads((folder / "seconds.json").read_text())


def show(truth: np.ndarray, ours: tuple[dict, dict], theirs: tuple[dict, dict], most: float) -> int:
    """Print both sides and their ratios; 1 if a scatter of ours is too large, else 0."""
    line = "{:<28}{:>12}{:>12}{:>10}".format
    print(line("", "astra", "astroslam", "ratio"))
    worst = 0.0
    for key in ours[0]:
        for name, one, other in zip(
            LABELS, scatter(ours[0][key] - truth), scatter(theirs[0][key] - truth), strict=True
        ):
            worst = max(worst, one / other)
            title = f"S/N {key}: scatter of {name}"
            print(line(title, f"{one:.4g}", f"{other:.4g}", f"{one / other:.3f}"))
    for key, mine in ours[1].items():
        title = "training [s]" if key == "train" else f"labelling, S/N {key} [s]"
        yours = theirs[1][key]
        print(line(title, f"{mine:.2f}", f"{yours:.2f}", f"{mine / yours:.5f}"))
    verdict = "at most" if worst <= most else "MORE THAN"
    print(f"\nlargest ratio of scatters {worst:.3f}: {verdict} {most}\n", flush=True)
    return int(not worst <= most)


def scatter(error: np.ndarray) -> np.ndarray:
    """Root mean square of each label's error; a failed fit, NaN, makes it NaN."""
    return np.sqrt((error**2).mean(0))


if __name__ == "__main__":
    sys.exit(main())
