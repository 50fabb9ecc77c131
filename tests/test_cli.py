"""Tests of the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from click.testing import CliRunner

from astrovae.catalog import read_catalog, write_catalog
from astrovae.cli import main
from astrovae.datasets import make_galaxies, make_survey
from astrovae.images import CutoutStack, make_cutouts, read_image
from astrovae.models import VAE, Condition, LatentFlow


def run(*arguments, code=0):
    """Call the command line and check its exit code."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exit_code != code:
        raise AssertionError(result.output) from result.exception
    return result.output


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A simulated survey as files: image, errors, PSF, and a catalogue."""
    folder = tmp_path_factory.mktemp("survey")
    truth, image = make_survey(60, n_stars=0, shape=(300, 320), seed=1)
    header = image.wcs.to_header()
    planes = {"image": image.data, "error": image.uncertainty.array}
    for name, plane in planes.items():
        fits.writeto(folder / f"{name}.fits", plane[..., 0], header)
    fits.writeto(folder / "psf.fits", np.asarray(image.psf))
    catalog = truth["id", "ra", "dec"]
    catalog["id"] = 1237648720693755918 + np.arange(len(catalog))
    write_catalog(catalog, folder / "catalog.ecsv")
    Table(catalog).write(folder / "catalog.csv")
    # the same image with other pixels
    header["CDELT1"], header["CDELT2"] = header["CDELT1"] * 2, header["CDELT2"] * 2
    fits.writeto(folder / "coarse.fits", planes["image"][..., 0], header)
    fits.writeto(folder / "no_wcs.fits", planes["image"][..., 0])
    return folder


@pytest.fixture(scope="module")
def preset(survey):
    """A preset folder made by ``astrovae fit``."""
    output = run(
        "fit",
        survey / "catalog.ecsv",
        f"r={survey / 'image.fits'}",
        "--error",
        survey / "error.fits",
        "--output",
        survey / "preset",
        "--shape",
        24,
        "--latent-dim",
        2,
        "--epochs",
        2,
    )
    assert "Trained on" in output
    return survey / "preset"


def append(survey, preset, *options, image="image.fits", catalog="catalog.ecsv", **kw):
    """Call ``astrovae append`` on the survey."""
    return run(
        "append",
        preset,
        survey / catalog,
        f"r={survey / image}",
        "--error",
        survey / "error.fits",
        *options,
        **kw,
    )


def test_help_is_fast_and_loads_nothing():
    """Help must not wait for Keras."""
    code = (
        "import sys; from click.testing import CliRunner; "
        "from astrovae.cli import main; "
        "assert CliRunner().invoke(main, ['fit', '--help']).exit_code == 0; "
        "assert not {'keras', 'matplotlib', 'astropy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("extension", ["ecsv", "fits", "parquet"])
def test_fit_and_append_on_files(survey, preset, tmp_path, extension):
    """An image and a catalogue in, the catalogue with columns out."""
    path = tmp_path / f"out.{extension}"
    output = append(survey, preset, "--output", path, "--prefix", "a_")
    assert "60 rows" in output
    table = read_catalog(path)
    assert table["id"].tolist() == [1237648720693755918 + i for i in range(60)]
    assert table["a_latent_mean"].shape == (60, 2)
    assert {"a_vae_elbo", "a_gauss_mse", "a_vae_beats_gauss_mse"} <= set(table.colnames)
    assert table.meta["astrovae"]["a_"]["latents"]["sha256"]
    assert "a_latent_mean" in run("info", path)


def test_append_to_csv_without_baselines(survey, preset, tmp_path):
    """Ids of 64 bits survive a CSV file, and baselines can be left out."""
    path = tmp_path / "out.fits"
    append(survey, preset, "--output", path, "--no-baselines", catalog="catalog.csv")
    table = read_catalog(path)
    assert table["id"][-1] == 1237648720693755918 + 59
    assert "gauss_mse" not in table.colnames


def test_append_clusters_if_the_model_has_any(survey, preset, tmp_path):
    """Unless they are left out; on demand, a model without them says so."""
    from astrovae.layers import MixturePrior

    table = read_catalog(survey / "catalog.ecsv")[:9]
    image = read_image(survey / "image.fits")
    make_cutouts({"r": image}, table, 24).write(tmp_path / "stack.h5")
    write_catalog(table, tmp_path / "catalog.ecsv")
    prior = MixturePrior(num_components=3, latent_dim=2)
    vae = VAE((24, 24, 1), 2, prior=prior, scale=[1.0], noise=[1.0])
    vae.save_preset(tmp_path / "mixture")
    rest = [tmp_path / "catalog.ecsv", tmp_path / "stack.h5", "--no-baselines"]
    for options, found in (([], True), (["--no-clusters"], False)):
        path = tmp_path / f"{found}.ecsv"
        run("append", tmp_path / "mixture", *rest, *options, "--output", path)
        assert ("cluster_label" in read_catalog(path).colnames) == found
    path = tmp_path / "out.ecsv"
    output = append(survey, preset, "--clusters", "--output", path, code=2)
    assert "clusters need a model whose prior is a mixture" in output


def test_a_stack_does_as_well_as_images(survey, preset, tmp_path):
    """The same columns from an HDF5 stack of cutouts."""
    table = read_catalog(survey / "catalog.ecsv")
    stack = make_cutouts(
        {"r": read_image(survey / "image.fits")},
        table,
        24,
        error=read_image(survey / "error.fits").data,
    )
    stack.write(tmp_path / "stack.h5")
    assert "60 cutouts" in run("info", tmp_path / "stack.h5")
    for name in ("a", "b"):
        images = [tmp_path / "stack.h5"] if name == "a" else []
        path = tmp_path / f"{name}.ecsv"
        if images:
            catalog = survey / "catalog.ecsv"
            run("append", preset, catalog, *images, "--output", path, "--no-baselines")
        else:
            append(survey, preset, "--output", path, "--no-baselines")
    one, two = (read_catalog(tmp_path / f"{name}.ecsv") for name in "ab")
    assert np.array_equal(one["latent_mean"], two["latent_mean"])


def test_info_on_a_preset(preset):
    """What the model is, how its images were prepared, who made it."""
    output = run("info", preset)
    for text in ("galaxy_small", "latent_dim: 2", "pixel_scale = 0.2", "sha256"):
        assert text in output


def test_fine_tuning_a_preset(survey, preset, tmp_path):
    """A preset folder can be trained further."""
    run(
        "fit",
        survey / "catalog.ecsv",
        f"r={survey / 'image.fits'}",
        "--error",
        survey / "error.fits",
        "--preset",
        preset,
        "--epochs",
        1,
        "--output",
        tmp_path / "tuned",
    )
    assert (tmp_path / "tuned" / "model.weights.h5").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "none.fits"}, "There is no file"),
        ({"image": "no_wcs.fits"}, "WCS"),
        ({"image": "coarse.fits"}, "pixel scale"),
        ({"catalog": "none.ecsv"}, "There is no file"),
        ({"catalog": "image.txt"}, "does not name a catalogue format"),
    ],
)
def test_bad_input_is_one_sentence(survey, preset, tmp_path, options, message):
    """Exit code 2, one line that says it, and nothing written."""
    path = tmp_path / "out.ecsv"
    output = append(survey, preset, "--output", path, code=2, **options)
    line = output.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_wrong_number_of_bands(survey, preset, tmp_path):
    """Two images for a model of one."""
    image = survey / "image.fits"
    output = run(
        "append",
        preset,
        survey / "catalog.ecsv",
        f"g={image}",
        f"r={image}",
        "--output",
        tmp_path / "out.ecsv",
        code=2,
    )
    assert "bands" in output


def test_unreadable_presets(survey, tmp_path):
    """No folder, an empty one, and one with rubbish."""
    output = tmp_path / "out.ecsv"
    folder = tmp_path / "preset"
    assert "no preset folder" in append(survey, folder, "--output", output, code=2)
    folder.mkdir()
    assert "is missing" in append(survey, folder, "--output", output, code=2)
    (folder / "metadata.json").write_text("{")
    assert "cannot be read" in append(survey, folder, "--output", output, code=2)


def test_existing_output_stays(survey, preset, tmp_path):
    """Unless --overwrite is given."""
    path = tmp_path / "out.ecsv"
    path.write_text("precious")
    assert "--overwrite" in append(survey, preset, "--output", path, code=2)
    assert path.read_text() == "precious"
    append(survey, preset, "--output", path, "--no-baselines", "--overwrite")
    assert len(read_catalog(path)) == 60


def test_no_usable_galaxy(survey, tmp_path):
    """A catalogue of another field gives nothing to train on."""
    away = Table({"ra": [10.0, 11.0], "dec": [-70.0, -71.0]})
    away.write(tmp_path / "away.ecsv")
    output = run(
        "fit",
        tmp_path / "away.ecsv",
        survey / "image.fits",
        "--output",
        tmp_path / "preset",
        code=2,
    )
    assert "nothing to train on" in output
    assert not (tmp_path / "preset").exists()


def test_debug_shows_the_traceback(tmp_path):
    """For those who look for a bug."""
    arguments = ["--debug", "info", str(tmp_path / "none.ecsv")]
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, FileNotFoundError)


# sources whose cutouts are masked to the last pixel are expected here
@pytest.mark.filterwarnings("ignore::astrovae.exceptions.FlaggedRowsWarning")
@pytest.mark.slow
def test_quickstart(tmp_path):
    """Every promised file is there, and the same seed gives the same columns."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        output = run("quickstart", "--output", folder, "--epochs", 2, "--seed", 3)
        assert str(folder / "report.html") in output
    summary = json.loads((folders[0] / "summary.json").read_text())
    assert summary["n_rows"] == summary["n_sources"] > 2000
    assert summary["n_selected"] >= 400
    assert 0 <= summary["win_mse_gauss_low"] <= summary["win_mse_gauss"] <= 1
    assert {"win_like_gauss", "seconds", "backend", "seed"} <= set(summary)
    tables = [read_catalog(folder / "catalog.ecsv") for folder in folders]
    for name in ("latent_mean", "latent_sigma", "gauss_flux", "vae_elbo"):
        one, two = (np.ma.filled(np.ma.array(t[name]), 0) for t in tables)
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)
    for extension in ("fits", "parquet"):
        table = read_catalog(folders[0] / f"catalog.{extension}")
        assert len(table) == summary["n_rows"]
        assert table.colnames == tables[0].colnames
    figures = {path.stem for path in (folders[0] / "figures").glob("*.png")}
    assert {"cutouts", "reconstructions", "latent_map", "traversals", "errors"} <= (
        figures
    )
    assert "data:image/png;base64," in (folders[0] / "report.html").read_text()
    model = VAE.from_preset(folders[0] / "model")
    assert model.preprocessing["steps"][0]["name"] == "clean_cutouts"
    assert "--overwrite" in run("quickstart", "--output", folders[0], code=2)


def test_generate(tmp_path):
    """From a preset of a flow and a catalogue to a stack, the same as in Python."""
    table, stack = make_galaxies(60, shape=(16, 16), seed=1)
    table = Table({"id": table["id"], "flux": table["flux"]})
    table["flux"].unit = "nJy"
    vae = VAE(stack.image_shape, latent_dim=2, seed=1)
    vae.adapt(stack)
    flow = LatentFlow(num_blocks=1, hidden_units=(8,), seed=1)
    conditions = [Condition("flux", transform="log")]
    flow.fit(table, vae, stack, conditions=conditions, epochs=1, verbose=0)
    flow.save_preset(tmp_path / "flow")
    rows = table[np.argsort(table["flux"])[20:25]]
    write_catalog(rows, tmp_path / "wanted.ecsv")
    rows.write(tmp_path / "wanted.csv")
    fits.writeto(tmp_path / "psf.fits", np.full((3, 3), 1 / 9))
    where = ["generate", "--preset", tmp_path / "flow", "--seed", 3, "--catalog"]
    output = tmp_path / "stack.h5"
    text = run(*where, tmp_path / "wanted.ecsv", "--output", output)
    assert "5 galaxies of 16 x 16 x 1 pixels" in text
    made = CutoutStack.read(output)
    np.testing.assert_array_equal(made.ids, rows["id"])
    expected = flow.sample(rows, seed=3).data
    np.testing.assert_allclose(made.data[:], expected, rtol=1e-4, atol=1e-4)
    text = run(*where, tmp_path / "wanted.csv", "--output", tmp_path / "b.h5", code=2)
    assert "'flux' has no unit" in text
    options = ["--unit", "flux=nJy", "--psf", tmp_path / "psf.fits", "--noise", 2]
    output = tmp_path / "b.h5"
    run(*where, tmp_path / "wanted.csv", "--output", output, *options)
    made = CutoutStack.read(output)
    assert made.psf.shape == (5, 3, 3, 1)
    assert (made.error[:] == 2).all()
    text = run(*where, tmp_path / "wanted.csv", "--output", output, code=2)
    assert "exists" in text
    text = run(*where, tmp_path / "wanted.csv", "--output", "stack.fits", code=2)
    assert "must end in .h5 or .hdf5" in text
    text = run(
        "generate", "--preset", "none", *where[3:], "x.csv", "--output", "s.h5", code=2
    )
    assert "no preset folder none" in text
    assert "condition:" in run("info", tmp_path / "flow")


def test_pictures_prepared_as_others_do(tmp_path, rng):
    """A folder of pictures becomes a model that knows how they were prepared."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in range(5, 13):
        np.save(folder / f"{name}.npy", rng.uniform(0, 255, (192, 192)))
    Table({"galaxy": np.arange(5, 13)}).write(tmp_path / "catalog.ecsv")
    arguments = (tmp_path / "catalog.ecsv", folder)
    output = run("fit", *arguments, "--output", tmp_path / "preset", code=2)
    assert "pictures" in output
    options = ("--preprocess", "astrovader", "--preset", "galaxy_small")
    options += ("--epochs", 1, "--output", tmp_path / "preset")
    output = run("fit", *arguments, *options, code=2)
    assert "no column 'id', by which pictures are named" in output
    run("fit", *arguments, *options, "--id", "galaxy")
    model = VAE.from_preset(tmp_path / "preset")
    assert model.image_shape == (128, 128, 1)
    assert model.preprocessing["steps"][0]["name"] == "preprocess_cutouts"
    options = ("--id", "galaxy", "--no-baselines")
    output = run(
        "append",
        tmp_path / "preset",
        *arguments,
        *options,
        "--output",
        tmp_path / "more.ecsv",
    )
    assert "8 rows" in output
    assert "latent_mean" in read_catalog(tmp_path / "more.ecsv").colnames
