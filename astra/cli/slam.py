"""The commands of the pipeline slam: train a model, and show its accuracy."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from astra.cli.group import main
from astra.cli.output import show
from astra.errors import UsageError, count

if TYPE_CHECKING:
    from astra.pipelines.slam.model import Model
    from astra.pipelines.slam.sample import Sample


_pictures_option = click.option(
    "--pictures", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Draw pictures of the model into this folder.",
)  # fmt: skip


@main.group()
def slam() -> None:
    """Train and check models of the pipeline slam.slam."""


@slam.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write, .npz."
)
@click.option("--labels", required=True, metavar="NAME,...", help="Columns of TABLE to learn.")
@click.option(
    "--range", "within", metavar="FIRST:LAST", help="Wavelengths to use [vacuum Angstrom]."
)
@click.option(
    "--others", type=click.Path(path_type=Path), metavar="TABLE",
    help="Spectra of other kinds, without labels, that the model is to flag; may be TABLE itself.",
)  # fmt: skip
@click.option("--keep-outliers", is_flag=True, help="Reject no spectra and no pixels.")
@click.option(
    "--description", default="", help="What the model was trained on; stored in its file."
)
@_pictures_option
def train(
    table: Path,
    output: Path,
    labels: str,
    within: str | None,
    others: Path | None,
    keep_outliers: bool,
    description: str,
    pictures: Path | None,
) -> None:
    """Train a model on the labels and spectra of TABLE.

    TABLE is an .npz or .fits file that contains the spectra, or a .csv or .fits file that names
    them: in a column `path` with their files, or `spectrum_pk` with their keys in the database.
    """
    from astra.pipelines.slam import model_file
    from astra.pipelines.slam import train as train_model
    from astra.pipelines.slam.sample import read_others, read_sample

    names = tuple(name.strip() for name in labels.split(",") if name.strip())
    if not names:
        raise click.UsageError("--labels: name at least one column, as in teff,logg,fe_h")
    _check_output(output, table, others)
    sample = read_sample(table, names, _range(within))
    if sample.n_without_labels:
        n_rows = count(sample.n_without_labels, "row")
        show.line(f"omitted {n_rows} in which a label is missing")
    outside = read_others(others, names, sample.wavelength) if others else None
    train_model(
        sample.labels, sample.wavelength, sample.flux, sample.ivar, output, label_names=names,
        outside=outside, rejects=not keep_outliers,
        description=description or f"{len(sample.labels)} spectra of {table.name}",
    )  # fmt: skip
    model = model_file.load(output)
    show.line(f"wrote {output}, {output.stat().st_size / 1e6:.1f} MB")
    _show(model)
    _show_rejected(model, sample)
    _draw(model, pictures, sample)
    show.line(f"to use it: astra plan slam.slam --set model={output.absolute()}")


def _check_output(output: Path, *inputs: Path | None) -> None:
    """Refuse, before a long training, a file that cannot be written or is one of the inputs."""
    if output.suffix != ".npz" or output.is_dir():
        raise UsageError(f"-o {output}: a model is a file whose name ends with .npz")
    if output.resolve() in [path.resolve() for path in inputs if path is not None]:
        raise UsageError(f"-o {output} would replace the spectra to train on: choose another name")
    if not os.access(output.parent, os.W_OK):
        missing = "" if output.parent.is_dir() else f"; make the folder: mkdir -p {output.parent}"
        raise UsageError(f"-o {output} cannot be written{missing}")


def _show_rejected(model: "Model", sample: "Sample") -> None:
    if model.validation is not None and model.validation.rejected.any():
        pairs = zip(sample.names, model.validation.rejected, strict=True)
        show.line(f"rejected as outliers: {', '.join(name for name, out in pairs if out)}")


@slam.command()
@click.argument("model")
@_pictures_option
def check(model: str, pictures: Path | None) -> None:
    """Show what MODEL was trained on, and its accuracy for spectra that were left out.

    MODEL is a file, or a model that ships with astra: slam_templates or slam_synthetic.
    """
    from astra.pipelines.slam import model_file

    loaded = model_file.load(model)
    _show(loaded)
    _draw(loaded, pictures)


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        ends = float(first), float(last)
    except ValueError:
        ends = (0.0, 0.0)
    if not colon or not ends[0] < ends[1]:
        raise click.UsageError(f"--range: {text!r} should be FIRST:LAST, as in 5000:9200")
    return ends


def _show(model: "Model") -> None:
    from astra.pipelines.slam.report import report

    summary = report(model)
    show.line(f"trained on {summary.description}")
    show.line(
        f"digest {summary.digest}; {summary.n_spectra:,} spectra, "
        f"{summary.n_rejected} rejected; {summary.n_pixels} pixels from "
        f"{summary.first_angstrom:.0f} to {summary.last_angstrom:.0f} Angstrom, "
        f"{summary.n_components} components, scatter {summary.median_scatter:.4f}"
    )
    if summary.n_flagged is None:
        show.line(
            "not cross-validated: errors have no floor, and no spectrum is flagged as unusual"
        )
    else:
        n = f"{summary.n_flagged} of {summary.n_spectra} are flagged as bad"
        show.line(f"training spectra, each labelled by a model without it: {n}")
    if summary.n_others:
        n = f"{summary.n_others_flagged} of {summary.n_others} are flagged as bad"
        show.line(f"spectra of other kinds: {n}")
    columns = ("minimum>", "maximum>", "error floor>", "rms error>", "bias>", "width of pulls>")
    table = show.Listing("label", *columns)
    for one in summary.labels:
        numbers = (one.minimum, one.maximum, one.floor, one.scatter, one.bias, one.pull_width)
        table.add(one.name, *("" if n is None else f"{n:.4g}" for n in numbers))
    table.print(show.console)


def _draw(model: "Model", folder: Path | None, sample: "Sample | None" = None) -> None:
    if folder is None:
        return
    from astra.pipelines.slam.pictures import draw

    for path in draw(model, folder, sample):
        show.line(f"picture {path}")
