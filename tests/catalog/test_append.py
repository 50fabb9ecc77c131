"""Tests of the columns that are appended to catalogues."""

import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.io.votable.ucd import check_ucd
from astropy.table import QTable, Table
from numpy.testing import assert_allclose

from astrovae.catalog import (
    COLUMNS,
    add_baselines,
    add_latents,
    add_pose,
    add_reconstruction,
    annotate,
)
from astrovae.catalog.columns import PREDICTIONS
from astrovae.exceptions import FlaggedRowsWarning, PreprocessingError
from astrovae.flags import Flag, decode_flags

# rows of the catalogue that cannot be measured, and why
BAD = {2: "no_position", 3: "no_overlap", 4: "non_finite"}


class Gauss:
    """A baseline by hand."""

    def measure(self, stack, show_progress=False):
        n = len(stack)
        return {
            "gauss_mse": np.full(n, 1.0),
            "gauss_log_like": np.full(n, 0.0),
            "gauss_flux": np.full(n, 3.0),
            "gauss_flags": np.zeros(n, np.int32),
        }


def add(table, encoder, stack, **kwargs):
    """Append latents, expecting the warning."""
    with pytest.warns(FlaggedRowsWarning, match=r"3 of 7 rows .* \(latents\)"):
        return add_latents(table, encoder, stack, **kwargs)


def test_rows_are_safe(table, encoder, stack):
    """Order, ids, columns and metadata stay; bad rows are masked and flagged."""
    before = table.copy()
    result = add(table, encoder, stack)
    assert table.colnames == before.colnames
    assert table.meta == before.meta
    for name in before.colnames:
        assert np.array_equal(np.ma.getdata(result[name]), np.ma.getdata(before[name]))
        for other in (table, result):
            mask = np.ma.getmaskarray(other[name])
            assert np.array_equal(mask, np.ma.getmaskarray(before[name]))
    assert result["objid"].dtype == np.int64
    masked = result["latent_mean"].mask
    assert np.flatnonzero(masked.all(axis=1)).tolist() == sorted(BAD)
    assert np.array_equal(masked, result["latent_sigma"].mask)
    for row, reason in BAD.items():
        assert reason in decode_flags(int(result["latent_flags"][row]))
        assert result["latent_flags"][row] & Flag.NO_VALID_PIXEL
    assert_allclose(result["latent_sigma"][0], 2)


def test_bad_rows_do_not_touch_the_others(image, table, encoder, stack):
    """The same values, bit for bit, as in a catalogue without them."""
    from astrovae.images import make_cutouts

    good = [0, 1, 5, 6]
    alone = add_latents(
        table[good], encoder, make_cutouts(image, table[good], 11, id_column="objid")
    )
    together = add(table, encoder, stack)
    assert np.array_equal(alone["latent_mean"], together["latent_mean"][good])
    assert alone["latent_mean"].dtype == np.float32
    assert np.array_equal(together["latent_mean"][0], together["latent_mean"][5])


def test_columns_are_documented(table, encoder, stack):
    """Description, UCD and provenance come with them."""
    result = add(table, encoder, stack, prefix="a_")
    for name in ("latent_mean", "latent_sigma", "latent_flags"):
        info = result["a_" + name].info
        assert info.description == COLUMNS[name].description
        assert info.meta["ucd"] == COLUMNS[name].ucd
    record = result.meta["astrovae"]["a_"]["latents"]
    assert record["class"] == "Encoder"
    assert record["n_rows"] == 7
    assert record["n_masked"] == 3
    assert record["columns"] == ["a_latent_mean", "a_latent_sigma", "a_latent_flags"]


def test_models_live_side_by_side(table, encoder, stack):
    """By prefix; and nothing is overwritten unless asked."""
    once = add(table, encoder, stack)
    twice = add(once, encoder, stack, prefix="b_")
    assert {"latent_mean", "b_latent_mean"} <= set(twice.colnames)
    assert set(twice.meta["astrovae"]) == {"default", "b_"}
    with pytest.raises(ValueError, match=r"already has latent_mean.*overwrite=True"):
        add_latents(once, encoder, stack)
    again = add(once, encoder, stack, overwrite=True)
    assert again.colnames == once.colnames


def test_sigma_is_masked_without_variances(table, stack):
    """A model that gives no variance gives no sigma."""

    class Embedding:
        def encode(self, stack):
            return np.ones((len(stack), 4)), None

    with pytest.warns(FlaggedRowsWarning):
        result = add_latents(table, Embedding(), stack)
    assert result["latent_sigma"].mask.all()
    assert not result["latent_mean"].mask[0].any()


def test_wins_are_those_of_numpy(table, meter, stack):
    """Smaller error and larger likelihood win; unmeasured rows are masked."""
    with pytest.warns(FlaggedRowsWarning):
        result = add_baselines(table, stack, [Gauss()], model=meter)
    expected = result["vae_mse"] < 1
    wins = result["vae_beats_gauss_mse"]
    assert np.flatnonzero(wins.mask).tolist() == sorted(BAD)
    assert np.array_equal(np.ma.compressed(wins), np.ma.compressed(expected))
    likes = result["vae_log_like"] > 0
    assert np.array_equal(
        np.ma.compressed(result["vae_beats_gauss_like"]), np.ma.compressed(likes)
    )
    assert "baselines:Gauss" in result.meta["astrovae"]["default"]


def test_wins_over_every_baseline(table, meter, stack):
    """Each baseline has its own, also if it is added later; replaced together."""

    class Eigen(Gauss):
        def measure(self, stack, show_progress=False):
            columns = super().measure(stack)
            return {
                name.replace("gauss", "pca"): columns[name]
                for name in ("gauss_mse", "gauss_log_like")
            }

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlaggedRowsWarning)
        result = add_baselines(table, stack, [Gauss()], model=meter)
        result = add_baselines(result, stack, [Eigen()])
    for name in ("mse", "like"):
        wins = result[f"vae_beats_pca_{name}"]
        assert np.ma.allequal(wins, result[f"vae_beats_gauss_{name}"])
    assert "vae_beats_pca_mse_background" not in result.colnames

    class Worse:
        def measure(self, stack, show_progress=False):
            return {key: value * 0 + 1e9 for key, value in meter.measure(stack).items()}

    with pytest.warns(FlaggedRowsWarning):
        result = add_reconstruction(result, Worse(), stack, overwrite=True)
    for baseline in ("gauss", "pca"):
        assert not result[f"vae_beats_{baseline}_mse"].any()


def test_units_follow_the_pixels(image, table, meter, stack):
    """Fluxes have the unit of the pixels, squared errors its square."""
    stack = stack.replace(unit="nJy")
    with pytest.warns(FlaggedRowsWarning):
        result = add_baselines(QTable(table), stack, [Gauss()], model=meter)
    assert result["gauss_flux"].unit == u.nJy
    assert result["vae_mse"].unit == u.nJy**2
    assert result["gauss_flux"].mask[3]
    assert not result["gauss_flux"].mask[0]
    assert result["vae_beats_gauss_mse"].mask[3]


def test_empty_catalogue(image, table, encoder, meter):
    """No rows, but all columns."""
    from astrovae.images import make_cutouts

    nothing = table[:0]
    stack = make_cutouts(image, nothing, 11, id_column="objid")
    result = add_latents(nothing, encoder, stack)
    result = add_baselines(result, stack, [Gauss()], model=meter)
    assert len(result) == 0
    assert result["latent_mean"].shape == (0, 2)
    assert "vae_beats_gauss_mse" in result.colnames


def test_annotate_is_all_of_it(table, encoder, meter, stack):
    """The same columns as one by one."""

    class Model(type(encoder), type(meter)):
        pass

    with pytest.warns(FlaggedRowsWarning):
        together = annotate(table, Model(), stack, baselines=[Gauss()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlaggedRowsWarning)
        one = add_latents(table, Model(), stack)
        one = add_reconstruction(one, Model(), stack)
        one = add_baselines(one, stack, [Gauss()])
    assert together.colnames == one.colnames
    for name in one.colnames:
        assert np.ma.allequal(together[name], one[name])


def test_wrong_partners_are_refused(table, encoder, stack):
    """Another length, another order, no table, another preparation."""
    with pytest.raises(ValueError, match="7 rows and the stack 3 cutouts"):
        add_latents(table, encoder, stack[:3])
    with pytest.raises(ValueError, match="row 0 of the table has objid"):
        add_latents(table, encoder, stack[::-1])
    with pytest.raises(TypeError, match=r"Table\.from_pandas"):
        add_latents(table.to_pandas(), encoder, stack)
    with pytest.raises(ValueError, match="what must be one of"):
        annotate(table, encoder, stack, what=["everything"])
    encoder.preprocessing = {**stack.preprocessing, "pixel_scale": 0.1}
    with pytest.raises(PreprocessingError, match="pixel scale"):
        annotate(table, encoder, stack, what=["latents"])


def test_reconstruction_columns(table, meter, stack):
    """Measured columns are masked where nothing was measured."""
    with pytest.warns(FlaggedRowsWarning):
        result = add_reconstruction(Table(table), meter, stack)
    assert np.flatnonzero(result["vae_mse"].mask).tolist() == sorted(BAD)


def test_pose_columns(table, stack):
    """Poses are columns with errors; what could not be measured is masked."""
    with pytest.raises(ValueError, match=r"measure_pose\(stack\) first"):
        add_pose(table, stack)
    pose = np.tile([1.0, -2.0, np.pi / 2, -1.0, 3.0], (7, 1))
    pose[3] = np.nan
    stack = stack.replace(pose=pose)
    with pytest.warns(FlaggedRowsWarning, match=r"1 of 7 rows .* \(pose\)"):
        result = add_pose(QTable(table), stack, prefix="a_")
    assert_allclose(result["a_pose_x"][0].to_value(u.pix), 6)
    assert_allclose(result["a_pose_y"][0].to_value(u.pix), 3)
    assert_allclose(result["a_pose_angle"][0].to_value(u.deg), 90)
    assert result["a_pose_flip"][0] == -1
    assert np.flatnonzero(result["a_pose_size"].mask).tolist() == [3]
    assert "pose_failed" in decode_flags(int(result["a_pose_flags"][3]))
    # nothing is known of the errors of poses that were given
    assert "a_pose_x_err" not in result.colnames
    assert result.meta["astrovae"]["a_"]["pose"]["n_masked"] == 1
    with pytest.raises(ValueError, match="already has a_pose_x"):
        add_pose(result, stack, prefix="a_")


def test_nothing_to_do_gives_a_copy(table, encoder, stack):
    """Whatever is done with the result, the input stays."""
    for result in (
        annotate(table, encoder, stack, what=()),
        add_baselines(table, stack, []),
    ):
        assert result is not table
        result["x"][0] = -1
        assert table["x"][0] == 20


def test_sigma_that_is_no_number_is_flagged(table, stack):
    """The mean is kept; a variance of zero is one."""

    def encode(images):
        log_var = np.zeros((len(images), 2))
        log_var[[0, 1, 5], 1] = 2000, np.nan, -np.inf
        return np.ones((len(images), 2)), log_var

    with pytest.warns(FlaggedRowsWarning, match="rows could not be measured"):
        result = add_latents(table, encode, stack)
    assert result["latent_sigma"].mask[[0, 1]].all()
    assert result["latent_sigma"][5].tolist() == [1, 0]
    assert result["latent_mean"][:2].tolist() == [[1, 1], [1, 1]]
    flagged = (result["latent_flags"] & Flag.NO_RESULT) != 0
    assert flagged.tolist() == [True, True, *[False] * 5]


def test_arguments_that_look_right(table, encoder, meter, stack):
    """A single baseline, ids that were floats, a prefix that is not one."""
    with pytest.raises(TypeError, match="into a list"):
        add_baselines(table, stack, meter)
    for prefix in (None, 1, "default"):
        with pytest.raises(ValueError, match="prefix must be text"):
            add_latents(table, encoder, stack, prefix=prefix)
    table["objid"] = table["objid"].astype(float)
    with pytest.raises(ValueError, match=r"are floats.*2\*\*53"):
        add_latents(table, encoder, stack)


def test_ucds_are_those_of_the_ivoa():
    """Every descriptor is in the controlled vocabulary, words in their places."""
    for name, spec in {**COLUMNS, **PREDICTIONS}.items():
        assert check_ucd(spec.ucd, check_controlled_vocabulary=True), name
