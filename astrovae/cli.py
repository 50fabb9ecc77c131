# Licensed under a 3-clause BSD style license - see LICENSE
"""The command line. Everything heavy is imported when a command runs."""

import functools
import math
import os
import re
from pathlib import Path

import click

__all__ = ["main"]

_FILE = click.Path(path_type=Path)
_STACKS = (".h5", ".hdf5")


def _one_sentence(function):
    """Turn errors of the user's making into one sentence and exit code 2."""

    @functools.wraps(function)
    @click.pass_context
    def wrapper(context, *args, **kwargs):
        try:
            return function(*args, **kwargs)
        except click.ClickException:
            raise
        except Exception as error:
            if context.find_root().params.get("debug"):
                raise
            text = " ".join(str(error).split())
            expected = isinstance(error, (ValueError, TypeError, OSError, ImportError))
            if not (expected and text):
                text = (
                    f"unexpected {type(error).__name__}: {text} (see astrovae --debug)"
                )
            failure = click.ClickException(text)
            failure.exit_code = 2 if expected else 1
            raise failure from error

    return wrapper


def _options(*options):
    """Apply several click options; the first is shown first."""

    def decorate(function):
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_IMAGE_OPTIONS = _options(
    click.option(
        "--error",
        "errors",
        type=_FILE,
        multiple=True,
        help="FITS image of 1-sigma errors; one for all bands, or one per image. "
        "FILE[EXT] names an extension, as for every FITS file.",
    ),
    click.option(
        "--mask",
        "masks",
        type=_FILE,
        multiple=True,
        help="FITS image that is not zero where pixels are bad.",
    ),
    click.option(
        "--psf", "psfs", type=_FILE, multiple=True, help="FITS image of the PSF."
    ),
    click.option(
        "--xy",
        nargs=2,
        metavar="X Y",
        help="Columns of pixel positions; 0 is the centre of the first pixel.",
    ),
    click.option("--sky", nargs=2, metavar="RA DEC", help="Columns of sky positions."),
    click.option("--id", "id_column", help="Column of identifiers."),
)
_OVERWRITE = click.option(
    "--overwrite", is_flag=True, help="Replace the output if it exists."
)
_SEED = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of everything random.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="astrovae")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
def main(debug):
    """Append latent features of galaxies to their catalogue."""
    # TensorFlow's notes on its own set-up are not what people came for
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@main.command()
@click.option(
    "--output",
    type=_FILE,
    default=Path("astrovae-quickstart"),
    show_default=True,
    help="Folder for the results.",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the galaxies.")
@_SEED
@_OVERWRITE
@_one_sentence
def quickstart(output, epochs, seed, overwrite):
    """From the Hubble Deep Field to a catalogue with latents, and a report."""
    from astrovae.quickstart import run_quickstart

    summary = run_quickstart(
        output, epochs=epochs, seed=seed, overwrite=overwrite, echo=click.echo
    )
    click.echo(f"\nOpen {summary['report']} in a browser.")


@main.command()
@click.argument("catalog", type=_FILE)
@click.argument("images", nargs=-1, required=True)
@click.option("--output", type=_FILE, required=True, help="Preset folder to make.")
@click.option(
    "--preset",
    default="galaxy_small",
    show_default=True,
    help="Architecture, or a preset folder to train further.",
)
@click.option(
    "--shape",
    type=click.IntRange(1),
    help="Size of the cutouts in pixels.  [default: 64, or that of the preset]",
)
@click.option("--latent-dim", type=click.IntRange(1), help="Number of latents.")
@click.option("--epochs", default=100, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(1))
@click.option(
    "--learning-rate",
    default=1e-3,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
)
@click.option(
    "--sigma-floor",
    default=0.0,
    type=click.FloatRange(0),
    show_default=True,
    help="Smallest pixel sigma, e.g. step / sqrt(12) of quantised images.",
)
@click.option(
    "--clean/--no-clean",
    default=True,
    show_default=True,
    help="Subtract the local background and mask neighbours.",
)
@click.option(
    "--preprocess",
    type=click.Choice(["astrovader"]),
    help="Prepare pictures as this model was trained on, and do not clean them.",
)
@_IMAGE_OPTIONS
@_SEED
@_OVERWRITE
@_one_sentence
def fit(
    catalog,
    images,
    output,
    preset,
    shape,
    latent_dim,
    epochs,
    batch_size,
    learning_rate,
    sigma_floor,
    clean,
    preprocess,
    seed,
    overwrite,
    **inputs,
):
    """
    Train a model on the galaxies of CATALOG in IMAGES.

    IMAGES are FITS files, one per band, each FILE or NAME=FILE; or one stack
    of cutouts (.h5), whose rows are those of CATALOG; or, with --preprocess, a
    folder or .zip of pictures, each named by its id.
    """
    from astrovae._files import check_output
    from astrovae.catalog import read_catalog
    from astrovae.models import VAE, TrainingProgress

    check_output(output, overwrite=overwrite, marker="config.json")
    table = read_catalog(catalog)
    model = None
    if Path(preset).is_dir():
        model = VAE.from_preset(preset)
        if latent_dim or sigma_floor or shape:
            msg = (
                f"{preset} is a trained model: --latent-dim, --sigma-floor and "
                "--shape are its own, and cannot be given."
            )
            raise ValueError(msg)
        shape = model.image_shape[:2]
    preprocess = preprocess or _preprocess_of(model)
    stack = _read_stack(table, images, shape or 64, inputs, preprocess)
    if model is not None:
        stack = stack.prepare(model.preprocessing)
    elif clean and not stack.steps:
        from astrovae.images import clean_cutouts

        stack = clean_cutouts(stack, show_progress=True)
    import keras

    keras.utils.set_random_seed(seed)
    if model is None:
        model = _make_model(preset, stack, latent_dim, sigma_floor, seed)
    held_out = stack.held_out(0.1, seed=seed)
    train, validation = stack.usable & ~held_out, stack.usable & held_out
    model.compile(keras.optimizers.Adam(learning_rate))
    history = model.fit(
        stack[train],
        batch_size=batch_size,
        epochs=epochs,
        validation_data=stack[validation] if validation.any() else None,
        verbose=0,
        callbacks=[TrainingProgress()],
    )
    if not math.isfinite(history.history["loss"][-1]):
        msg = "the training diverged; give a smaller --learning-rate."
        raise ValueError(msg)
    model.save_preset(
        output,
        overwrite=overwrite,
        metadata={"n_train": int(train.sum()), "seed": seed, "epochs": epochs},
    )
    click.echo(f"Trained on {train.sum()} galaxies; the model is in {output}.")


def _make_model(preset, stack, latent_dim, sigma_floor, seed):
    """Make an untrained model from a named preset."""
    from astrovae.models import VAE

    options = {} if latent_dim is None else {"latent_dim": latent_dim}
    model = VAE.from_preset(preset, image_shape=stack.image_shape, seed=seed, **options)
    if not sigma_floor:
        return model
    config = model.likelihood.get_config() | {"sigma_floor": sigma_floor}
    options["likelihood"] = type(model.likelihood).from_config(config)
    return VAE.from_preset(preset, image_shape=stack.image_shape, seed=seed, **options)


@main.command()
@click.argument("preset", type=_FILE)
@click.argument("catalog", type=_FILE)
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--output",
    type=_FILE,
    required=True,
    help="Catalogue to write: .ecsv, .fits, .vot, .parquet, .h5 or .csv.",
)
@click.option("--prefix", default="", help="Put before the name of every column.")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Add the Gaussian fit and which galaxies the model describes better.",
)
@click.option(
    "--clusters/--no-clusters",
    default=None,
    help="Add the cluster of each galaxy.  [default: if the model has a mixture prior]",
)
@_IMAGE_OPTIONS
@_OVERWRITE
@_one_sentence
def append(
    preset, catalog, images, output, prefix, baselines, clusters, overwrite, **inputs
):
    """
    Append columns to CATALOG with the trained model in PRESET.

    IMAGES are FITS files, one per band, each FILE or NAME=FILE; or one stack
    of cutouts (.h5), whose rows are those of CATALOG.
    """
    from astrovae._files import check_output
    from astrovae.catalog import annotate, read_catalog, write_catalog
    from astrovae.catalog.clusters import cluster_order, has_clusters
    from astrovae.catalog.io import check_format
    from astrovae.models import VAE

    check_output(output, overwrite=overwrite)
    check_format(output)
    if not preset.is_dir():
        msg = f"There is no preset folder {preset}. Make one with astrovae fit."
        raise FileNotFoundError(msg)
    table = read_catalog(catalog)
    model = VAE.from_preset(preset)
    if clusters:
        cluster_order(model)  # it may have none: better said before images are read
    preprocess = _preprocess_of(model)
    stack = _read_stack(table, images, model.image_shape[:2], inputs, preprocess)
    what = ["latents", "reconstruction"] + ["baselines"] * baselines
    if clusters or (clusters is None and has_clusters(model)):
        what.append("clusters")
    table = annotate(
        table,
        model,
        stack,
        what=what,
        prefix=prefix,
        overwrite=overwrite,
        show_progress=True,
    )
    write_catalog(table, output, overwrite=overwrite)
    click.echo(f"{len(table)} rows, {len(table.colnames)} columns: {output}.")


@main.command()
@click.option(
    "--preset", type=_FILE, required=True, help="Preset folder of a fitted LatentFlow."
)
@click.option(
    "--catalog", type=_FILE, required=True, help="Catalogue of what is asked for."
)
@click.option("--output", type=_FILE, required=True, help="Stack to write, *.h5.")
@click.option(
    "--unit",
    "units",
    multiple=True,
    metavar="COLUMN=UNIT",
    help="Unit of a column that the catalogue does not tell.",
)
@click.option(
    "--psf", type=_FILE, help="FITS image of the PSF to see the galaxies through."
)
@click.option(
    "--noise",
    type=click.FloatRange(0, min_open=True),
    help="1-sigma noise to add, in the unit of the images.",
)
@click.option("--id", "id_column", help="Column of identifiers.")
@_SEED
@_OVERWRITE
@_one_sentence
def generate(preset, catalog, output, units, psf, noise, id_column, seed, overwrite):
    """
    Paint a galaxy for each row of a catalogue of properties.

    Without --psf and --noise, galaxies are as the model paints them, for
    simulators to convolve.
    """
    from astrovae._files import check_output
    from astrovae.catalog import read_catalog
    from astrovae.models import LatentFlow

    check_output(output, overwrite=overwrite)
    if output.suffix not in _STACKS:
        msg = f"{output} must end in {' or '.join(_STACKS)}: it is a stack of cutouts."
        raise ValueError(msg)
    if not preset.is_dir():
        msg = (
            f"There is no preset folder {preset}. Make one with LatentFlow.save_preset."
        )
        raise FileNotFoundError(msg)
    table = read_catalog(catalog)
    for text in units:
        column, _, unit = text.partition("=")
        if column not in table.colnames or not unit:
            msg = f"--unit must be COLUMN=UNIT, of {table.colnames}; got {text!r}."
            raise ValueError(msg)
        table[column].unit = unit
    flow = LatentFlow.from_preset(preset)
    stack = flow.sample(
        table,
        psf=None if psf is None else _read_plane(psf).data,
        noise=noise,
        seed=seed,
        id_column=id_column,
        show_progress=True,
    )
    stack.write(output, overwrite=overwrite)
    ny, nx, n_bands = stack.image_shape
    click.echo(f"{len(stack)} galaxies of {ny} x {nx} x {n_bands} pixels: {output}.")


@main.command()
@click.argument("path", type=_FILE)
@_one_sentence
def info(path):
    """Say what is in PATH: a preset folder, a stack, or a catalogue."""
    if not path.exists():
        msg = f"There is no file or folder {path}."
        raise FileNotFoundError(msg)
    if path.is_dir():
        from astrovae.models.presets import describe_preset

        lines = describe_preset(path)
    elif path.suffix in _STACKS and not _is_catalog(path):
        from astrovae.images import CutoutStack

        stack = CutoutStack.read(path)
        lines = [repr(stack), *(f"{k}: {v}" for k, v in stack.preprocessing.items())]
    else:
        lines = _describe_catalog(path)
    click.echo("\n".join(lines))


def _is_catalog(path):
    from astrovae.catalog.io import is_catalog

    return is_catalog(path)


def _describe_catalog(path):
    from astrovae.catalog import read_catalog

    table = read_catalog(path)
    lines = [f"{path}: {len(table)} rows, {len(table.colnames)} columns"]
    for name in table.colnames:
        column = table[name]
        unit = f" [{column.unit}]" if getattr(column, "unit", None) else ""
        text = column.info.description or ""
        lines.append(f"  {name}{unit}  {text}")
    for prefix, steps in table.meta.get("astrovae", {}).items():
        for step, record in steps.items():
            made = [f"astrovae {record['astrovae']}"] if "astrovae" in record else []
            made += [record["date"]] if "date" in record else []
            lines.append(f"  {prefix}: {', '.join([step, *made])}")
    return lines


def _preprocess_of(model):
    """How the pictures of a trained model were prepared, or None."""
    record = None if model is None else model.preprocessing
    for step in (record or {}).get("steps", ()):
        if step["name"] == "preprocess_cutouts":
            return step["parameters"]["preprocess"]
    return None


def _read_pictures(table, path, id_column, preprocess):
    """Read the pictures of a catalogue."""
    from astrovae.images import CutoutStack

    name = id_column or "id"
    if name not in table.colnames:
        msg = (
            f"the catalogue has no column {name!r}, by which pictures are named; give "
            "another one as --id."
        )
        raise ValueError(msg)
    return CutoutStack.from_images(
        path, ids=table[name].tolist(), preprocess=preprocess, show_progress=True
    )


def _read_stack(table, images, shape, inputs, preprocess=None):
    """Make cutouts of images, or open a stack."""
    from astrovae.images import CutoutStack, make_cutouts, preprocess_cutouts

    if preprocess is not None:
        path = Path(images[0])
        if len(images) == 1 and (path.is_dir() or path.suffix == ".zip"):
            return _read_pictures(table, path, inputs["id_column"], preprocess)
        stack = _read_stack(table, images, shape, inputs)
        return stack if stack.steps else preprocess_cutouts(stack, preprocess)
    if len(images) == 1 and Path(images[0]).suffix in _STACKS:
        given = [name for name, value in inputs.items() if value]
        if given:
            msg = f"{images[0]} is a stack of cutouts: it brings its own {given}."
            raise ValueError(msg)
        stack = CutoutStack.read(images[0])
        if len(stack) != len(table):
            msg = (
                f"the catalogue has {len(table)} rows and {images[0]} "
                f"{len(stack)} cutouts; they must correspond one to one."
            )
            raise ValueError(msg)
        return stack
    planes = {}
    for number, text in enumerate(images):
        name, path = _split_name(text)
        name = name or f"band_{number}"
        if name in planes:
            msg = f"two images have the band name {name!r}."
            raise ValueError(msg)
        planes[name] = _read_plane(path)
    wcs = _common_wcs(planes)
    sides = {key: _read_sides(key, inputs[f"{key}s"], planes) for key in _SIDES}
    return make_cutouts(
        planes,
        table,
        shape,
        wcs=wcs,
        xy_columns=inputs["xy"],
        sky_columns=inputs["sky"],
        id_column=inputs["id_column"],
        show_progress=True,
        **sides,
    )


_SIDES = ("error", "mask", "psf")


def _split_name(text):
    """Split ``NAME=FILE``; a file may have = in its path."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name or Path(text).exists():
        return "", text
    return name, path


def _read_plane(text):
    """Read ``FILE`` or ``FILE[EXT]``."""
    from astrovae.images import read_image

    match = re.fullmatch(r"(.+)\[(\w+)\]", str(text))
    if match is None or Path(text).exists():
        return read_image(text)
    hdu = match[2]
    return read_image(match[1], hdu=int(hdu) if hdu.isdigit() else hdu)


def _read_sides(option, files, planes):
    """Read the planes that go with the images."""
    if not files:
        return None
    if len(files) not in (1, len(planes)):
        msg = (
            f"--{option} was given {len(files)} times, for {len(planes)} bands: "
            f"{', '.join(map(str, files))}."
        )
        raise ValueError(msg)
    images = [_read_plane(file) for file in files]
    if len(images) == 1:
        return images[0]
    return dict(zip(planes, images, strict=True))


def _common_wcs(planes):
    """The world coordinates of the bands, which must agree."""
    import numpy as np

    known = {name: image.wcs for name, image in planes.items() if image.wcs is not None}
    if not known:
        return None
    first, *others = known
    ny, nx = planes[first].data.shape[-2:]
    corners = np.array(
        [[0, 0], [nx - 1, 0], [0, ny - 1], [nx - 1, ny - 1]], dtype=float
    )
    sky = known[first].pixel_to_world(*corners.T)
    for name in others:
        there = np.transpose(known[name].world_to_pixel(sky))
        if not np.allclose(there, corners, atol=0.1):
            msg = (
                f"the images of the bands {first!r} and {name!r} are not on one pixel "
                "grid: their WCS differ. Resample one to the other first."
            )
            raise ValueError(msg)
    return known[first]
