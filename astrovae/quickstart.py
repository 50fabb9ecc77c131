# Licensed under a 3-clause BSD style license - see LICENSE
"""
The whole workflow on one real image: ``astrovae quickstart``.

Read `run_quickstart` from top to bottom to see what the package does.
"""

import json
import time
from pathlib import Path

import numpy as np

from astrovae._files import atomic_folder
from astrovae.baselines.metrics import win_rates
from astrovae.catalog import (
    add_baselines,
    add_latents,
    add_reconstruction,
    write_catalog,
)
from astrovae.datasets import hubble_deep_field
from astrovae.flags import Flag
from astrovae.images import clean_cutouts, detect_sources, make_cutouts

__all__ = ["run_quickstart"]

_SHAPE = (32, 32)
# a galaxy to learn from covers this many pixels; fainter ones are mostly noise
_MIN_AREA = 30
_HELD_OUT = 0.2
_EPOCHS = 150
_BATCH_SIZE = 64


def run_quickstart(output, *, epochs=None, seed=0, overwrite=False, echo=print):
    """
    Go from the Hubble Deep Field to a catalogue with latents and a report.

    Parameters
    ----------
    output : path-like
        Folder for the results. Made if absent.
    epochs : int, optional
        Passes over the training galaxies.
    seed : int, optional
        Seed of the held-out choice, the weights and the batches.
    overwrite : bool, optional
        Replace the results of an earlier run.
    echo : callable, optional
        Takes each line of the log.

    Returns
    -------
    summary : dict
        What ``summary.json`` holds, and ``report``, the path of the report.

    Raises
    ------
    FileExistsError
        If ``output`` holds results and ``overwrite`` is false.
    """
    start = time.monotonic()
    with atomic_folder(output, overwrite=overwrite, marker="summary.json") as folder:
        bands, rates, summary = _run(folder, epochs or _EPOCHS, seed, echo)
        summary["seconds"] = round(time.monotonic() - start, 1)
        _write_report(folder, summary, rates, bands)
        text = json.dumps(summary, indent=1) + "\n"
        (folder / "summary.json").write_text(text, encoding="utf-8")
    return summary | {"report": str(Path(output) / "report.html")}


def _run(folder, epochs, seed, echo):
    """Do the work: everything but the report."""
    image = hubble_deep_field()
    table, segmentation = detect_sources(image, show_progress=True)
    stack = make_cutouts(image, table, _SHAPE, segmentation=segmentation)
    clean = clean_cutouts(
        stack,
        noise="estimate",
        quantization_step=image.meta["quantization_step"],
        show_progress=True,
    )
    _select(table, clean, seed)
    echo(_counts(table))

    model, history = _train(clean, table, epochs, seed)
    model.save_preset(folder / "model", metadata={"seed": seed, "epochs": epochs})
    table = add_latents(table, model, clean, show_progress=True)
    table = add_reconstruction(table, model, clean, show_progress=True)
    table = add_baselines(table, clean, show_progress=True)
    for extension in ("ecsv", "fits", "parquet"):
        write_catalog(table, folder / f"catalog.{extension}")

    rates = win_rates(table, rows=table["held_out"])
    echo(_rates_text(rates, clean.bands))
    _draw(folder / "figures", stack, clean, model, table, history)
    return clean.bands, rates, _summarize(table, rates, clean.bands, seed)


def _select(table, clean, seed):
    """Mark the galaxies to learn from, and those of them to keep apart."""
    table["flags"] |= clean.flags
    unfit = (
        Flag.NOT_LARGER_THAN_PSF
        | Flag.SOURCE_TRUNCATED
        | Flag.PARTIAL
        | Flag.MOSTLY_MASKED
        | Flag.NO_VALID_PIXEL
        | Flag.NO_SOURCE
    )
    large = table["area"].value >= _MIN_AREA
    table["selected"] = ((table["flags"] & unfit) == 0) & large
    table["selected"].info.description = "a galaxy larger than the blur, to learn from"
    table["held_out"] = table["selected"] & clean.held_out(_HELD_OUT, seed=seed)
    table["held_out"].info.description = "selected, but kept out of training"


def _train(clean, table, epochs, seed):
    """Train on the selected galaxies that are not held out."""
    import keras

    from astrovae.models import VAE, TrainingProgress

    keras.utils.set_random_seed(seed)
    train = clean[table["selected"] & ~table["held_out"]]
    model = VAE.from_preset("galaxy_small", image_shape=clean.image_shape, seed=seed)
    steps = epochs * -(-len(train) // _BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(keras.optimizers.Adam(rate))
    history = model.fit(
        train,
        batch_size=_BATCH_SIZE,
        epochs=epochs,
        augment="flips",
        verbose=0,
        callbacks=[TrainingProgress()],
    )
    return model, history


def _counts(table):
    flags = table["flags"]
    return (
        f"{len(table)} sources; {(flags & Flag.NOT_LARGER_THAN_PSF > 0).sum()} no "
        f"larger than the blur, {(flags & Flag.PARTIAL > 0).sum()} at the edge; "
        f"{table['selected'].sum()} galaxies selected, "
        f"{table['held_out'].sum()} of them held out."
    )


def _rate_rows(rates, bands):
    """Say in words what each row of the rates is."""
    names = dict(enumerate(bands)) | {-1: "all bands"}
    for row in rates:
        quantity = "squared error" if row["quantity"] == "mse" else "likelihood"
        model = "Gaussian + constant" if row["background"] else "Gaussian"
        yield quantity, model, names[row["band"]], row


def _rates_text(rates, bands):
    lines = ["Held-out galaxies that the VAE describes better, 95 % Wilson intervals:"]
    for quantity, model, _band, row in _rate_rows(rates, bands):
        if row["band"] == -1:
            lines.append(
                f"  {quantity:13} against {model:19} {100 * row['rate']:5.1f} % "
                f"({100 * row['low']:.1f} to {100 * row['high']:.1f}), n = {row['n']}"
            )
    return "\n".join(lines)


def _summarize(table, rates, bands, seed):
    """Numbers of the run, flat, for people and programs."""
    import keras

    summary = {
        "n_sources": len(table),
        "n_rows": len(table),
        "n_selected": int(table["selected"].sum()),
        "n_held_out": int(table["held_out"].sum()),
        "backend": keras.config.backend(),
        "seed": seed,
    }
    for row in rates:
        name = f"win_{row['quantity']}_gauss" + "_background" * bool(row["background"])
        name += "" if row["band"] == -1 else f"_{bands[row['band']]}"
        summary[name] = float(row["rate"])
        summary[f"{name}_low"] = float(row["low"])
        summary[f"{name}_high"] = float(row["high"])
    return summary


def _draw(folder, stack, clean, model, table, history):
    """Draw what is judged by eye, from held-out galaxies."""
    from astrovae import plotting

    folder.mkdir()
    held_out = np.flatnonzero(table["held_out"])
    brightest = held_out[np.argsort(-table["area"].value[held_out])]
    shown = brightest[:: max(1, len(brightest) // 24)]
    selected = np.flatnonzero(table["selected"])
    figures = {
        "cutouts": plotting.plot_cutouts(stack, clean, indices=shown[:8]),
        "reconstructions": plotting.plot_reconstructions(
            clean, model, indices=shown[:6]
        ),
        "latent_map": plotting.plot_latents(table[selected], clean[selected]),
        "traversals": plotting.plot_traversals(
            model, np.asarray(table["latent_mean"][selected])
        ),
        "errors": plotting.plot_error_histogram(table[selected]),
        "training": plotting.plot_history(history),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)


_SECTIONS = (
    (
        "From the image to cutouts",
        (
            "Sources are found on the noise-weighted sum of the three bands, and split"
            " where they touch. Each gets a cutout of 32 x 32 pixels. Cleaning "
            "subtracts the local sky and masks the neighbours: masked pixels count "
            "neither in training nor in any number below."
        ),
        "cutouts",
        "Cutouts before cleaning, what is masked, and after, for held-out galaxies.",
    ),
    (
        "Reconstructions",
        (
            "The model has 8 numbers per galaxy to paint three bands with. It also "
            "predicts how wrong it is: the residual is shown in units of the predicted"
            " sigma, which is known noise and learned variance together."
        ),
        "reconstructions",
        "Held-out galaxies, their reconstructions, residuals and predicted sigma.",
    ),
    (
        "The latent map",
        (
            "Galaxies that are alike lie close together. Each galaxy of the catalogue "
            "has its place (`latent_mean`) and the uncertainty of it (`latent_sigma`)."
        ),
        "latent_map",
        (
            "The selected galaxies at their place in the first two principal "
            "components of the latent means."
        ),
    ),
    (
        "What each latent does",
        (
            "One latent is changed at a time, from -3 to +3 sigma; the others stay at "
            "their mean."
        ),
        "traversals",
        "Decoded galaxies along each latent.",
    ),
    (
        "Against the Gaussian fit",
        (
            "Current practice describes a galaxy by a bivariate Gaussian. Here it is "
            "fitted by least squares to the very same pixels, with one shape for the "
            "three bands and an amplitude for each: 8 numbers, as many as the model "
            "has. Values left of zero are galaxies that the model describes better. "
            "The rates are those of the galaxies that were kept out of training."
        ),
        "errors",
        "Ratio of the mean squared errors of the model and of the Gaussian.",
    ),
    (
        "Training",
        "",
        "training",
        "The training objective by epoch.",
    ),
)

_CAVEAT = (
    "The picture has 8 bits and was stretched for the eye: its values are not "
    "proportional to flux, so no colour, size or flux here is a physical one. "
    "Each value is rounded to a whole step, which adds a variance of 1/12 of a step "
    "squared to every pixel; it is part of the noise here, so that likelihoods "
    "cannot grow without limit where neighbouring pixels are equal by rounding. "
    "The noise is that of the sky in each cutout, and it is correlated between "
    "pixels, because the picture was resized: likelihoods treat pixels as "
    "independent.\n\n"
    "Every source of the image is a row of `catalog.ecsv`, `catalog.fits` and "
    "`catalog.parquet`. Sources that are no larger than the blur, cut by the edge, or "
    "mostly masked are flagged; they were not trained on, and their latents are "
    "extrapolations."
)


def _write_report(folder, summary, rates, bands):
    from astropy.table import Table

    from astrovae.report import Section, write_report

    table = Table(
        rows=[
            (
                quantity,
                model,
                band,
                row["n"],
                *(row[k] for k in ("rate", "low", "high")),
            )
            for quantity, model, band, row in _rate_rows(rates, bands)
        ],
        names=("better in", "than", "band", "n", "rate", "low", "high"),
    )
    sections = [
        Section(
            heading,
            text,
            [(folder / "figures" / f"{name}.png", caption)],
            table if name == "errors" else None,
        )
        for heading, text, name, caption in _SECTIONS
    ]
    shown = [
        ("sources", summary["n_sources"]),
        ("galaxies to learn from", summary["n_selected"]),
        ("held out", summary["n_held_out"]),
        ("better in squared error", f"{100 * summary['win_mse_gauss']:.0f} %"),
        ("better in likelihood", f"{100 * summary['win_like_gauss']:.0f} %"),
        ("seconds", f"{summary['seconds']:.0f}"),
    ]
    write_report(
        folder / "report.html",
        title="Latent features of the Hubble Deep Field",
        summary=shown,
        sections=[Section("What this is", _CAVEAT), *sections],
    )
