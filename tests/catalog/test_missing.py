"""Rows that were added to a catalogue are filled, and no others are touched."""

import warnings

import numpy as np
import pytest
from astropy.table import QTable, Table, vstack
from numpy.testing import assert_array_equal

from astrovae.baselines import EigenGalaxies
from astrovae.catalog import (
    add_baselines,
    add_latents,
    add_outliers,
    add_pose,
    add_reconstruction,
    annotate,
)
from astrovae.catalog._appending import plain
from astrovae.datasets import make_galaxies
from astrovae.exceptions import FlaggedRowsWarning
from astrovae.flags import Flag

N_OLD, BAD = 30, (3, 33)


class Model:
    """Counts the galaxies that it is given."""

    preprocessing = None

    def __init__(self, offset=0.0):
        self.offset, self.seen = offset, 0

    def encode(self, stack, show_progress=False):
        self.seen += len(stack)
        batch = stack.batch(np.arange(len(stack)))
        flux = batch["image"].sum(axis=(1, 2, 3)) + self.offset
        return np.stack([flux, -flux], axis=1), np.zeros((len(flux), 2))

    def measure(self, stack, show_progress=False):
        flux = self.encode(stack)[0][:, 0].astype(float)
        return {
            "vae_mse": flux**2,
            "vae_log_like": -flux,
            "vae_elbo": -flux - 1,
            "vae_chi2": np.abs(flux),
        }


class Gauss:
    """A baseline by hand."""

    def measure(self, stack, show_progress=False):
        n = len(stack)
        values = {"gauss_mse": np.ones(n), "gauss_log_like": np.zeros(n)}
        return values | {"gauss_flags": np.array(stack.flags)}


@pytest.fixture(scope="module")
def galaxies():
    """A catalogue and its cutouts, two of them without a valid pixel."""
    truth, stack = make_galaxies(40, shape=(12, 12), seed=2)
    mask = stack.mask.copy()
    mask[list(BAD)] = True
    pose = np.tile([0.5, -0.5, 1.0, 1.0, 2.0], (40, 1))
    return Table(truth["id", "flux"]), stack.replace(mask=mask, pose=pose, unit="nJy")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlaggedRowsWarning)
        yield


def steps(training):
    """Every function that appends, with the same arguments."""
    return {
        "latents": add_latents,
        "reconstruction": add_reconstruction,
        "pose": lambda table, model, stack, **kw: add_pose(table, stack, **kw),
        "baselines": lambda table, model, stack, **kw: add_baselines(
            table, stack, [Gauss()], model=model, **kw
        ),
        "outliers": lambda table, model, stack, **kw: add_outliers(
            table, model, stack, training=training, **kw
        ),
        "all": lambda table, model, stack, **kw: annotate(
            table,
            model,
            stack,
            what=("pose", "latents", "reconstruction", "baselines", "outliers"),
            baselines=[Gauss()],
            training=training,
            **kw,
        ),
    }


def assert_same(one, other):
    """The same columns: values, masks, units, descriptions, bit for bit."""
    assert one.colnames == other.colnames
    for name in one.colnames:
        pair = [getattr(t[name], "unmasked", t[name]) for t in (one, other)]
        data = [np.ma.getdata(getattr(values, "value", values)) for values in pair]
        masks = [
            np.broadcast_to(getattr(t[name], "mask", False), data[0].shape)
            for t in (one, other)
        ]
        assert data[0].dtype == data[1].dtype
        assert_array_equal(*masks)
        assert_array_equal(data[0][~masks[0]], data[1][~masks[0]])
        assert one[name].unit == other[name].unit
        assert one[name].info.description == other[name].info.description
        assert one[name].info.meta == other[name].info.meta


@pytest.mark.parametrize("kind", [Table, QTable])
@pytest.mark.parametrize("step", sorted(steps(None)))
def test_new_rows_are_filled(step, kind, galaxies):
    """As if all had been done at once; only new galaxies are looked at."""
    table, stack = galaxies
    table = kind(table)
    add = steps(stack[:N_OLD])[step]
    at_once = add(table, Model(), stack)
    old = add(table[:N_OLD], Model(), stack[:N_OLD])
    both = vstack([old, table[N_OLD:]], metadata_conflicts="silent")
    before = both.copy()
    model = Model()
    filled = add(both, model, stack, only_missing=True)
    assert_same(filled, at_once)
    assert_same(both, before)
    assert both.meta == before.meta
    n_new, steps_of = 40 - N_OLD, filled.meta["astrovae"]["default"]
    for name, entry in steps_of.items():
        if name == "wins":
            continue
        # there are no flags to say that a row without pixels was reached
        unreached = 1 if name in ("reconstruction", "outliers") else 0
        assert [fill["n_filled"] for fill in entry["fills"]] == [n_new - unreached]
        assert entry["n_rows"] == 40
        assert entry["n_masked"] == (0 if name == "pose" else 2)
        assert entry["date"] == old.meta["astrovae"]["default"][name]["date"]
    assert model.seen <= {"outliers": 9 + 30, "all": 10 + 9 + 9 + 30, "pose": 0}.get(
        step, 10
    )
    # and again, there is nothing to do
    model = Model()
    again = add(filled, model, stack, only_missing=True)
    assert model.seen == 0
    assert_same(again, filled)
    assert again.meta == filled.meta


@pytest.mark.parametrize("step", sorted(steps(None)))
def test_runs_can_be_repeated(step, galaxies):
    """With overwrite the same table, but for the date; absent columns are added."""
    table, stack = galaxies
    add = steps(stack)[step]
    once = add(table, Model(), stack)
    twice = add(once, Model(), stack, overwrite=True)
    assert_same(once, twice)
    for entries in (once.meta, twice.meta):
        for entry in entries["astrovae"]["default"].values():
            entry.pop("date")
    assert once.meta == twice.meta
    assert_same(add(table, Model(), stack, only_missing=True), once)


def test_only_what_is_missing_is_changed(galaxies):
    """Values that are there stay, even if the model has changed its mind."""
    table, stack = galaxies
    full = add_latents(table, Model(), stack)
    assert full["latent_flags"][3] & Flag.NO_VALID_PIXEL
    full["latent_mean"].mask[5:8] = True
    full["latent_sigma"].mask[5:8] = True
    # flags say that these rows were reached
    same = add_latents(full, Model(offset=9.0), stack, only_missing=True)
    assert_same(same, full)
    full["latent_flags"] = np.ma.array(full["latent_flags"], mask=False)
    full["latent_flags"].mask[5:8] = True
    model = Model(offset=9.0)
    other = add_latents(full, model, stack, only_missing=True)
    assert model.seen == 3
    expected = add_latents(table, Model(), stack)["latent_mean"]
    changed = np.zeros(40, bool)
    changed[5:8] = True
    assert_array_equal(other["latent_mean"][~changed], expected[~changed])
    assert (np.abs(other["latent_mean"][changed, 0] - expected[changed, 0]) > 8).all()
    # a column that is gone is made anew, beside those that stay
    full.remove_column("latent_sigma")
    other = add_latents(full, Model(offset=9.0), stack, only_missing=True)
    assert_array_equal(other["latent_mean"][~changed], expected[~changed])
    assert np.ma.getmaskarray(other["latent_sigma"]).any(axis=1).sum() == 2


def test_values_of_two_models_are_not_mixed(galaxies):
    """Another class, file, dimension or unit is refused; so is a contradiction."""
    table, stack = galaxies
    old = add_latents(table[:N_OLD], Model(), stack[:N_OLD])
    both = vstack([old, table[N_OLD:]], metadata_conflicts="silent")

    class Other(Model):
        pass

    with pytest.raises(ValueError, match="class = 'Model', this is 'Other'"):
        add_latents(both, Other(), stack, only_missing=True)
    with pytest.raises(ValueError, match="n_rotations = 1, this is 4"):
        add_latents(both, Model(), stack, n_rotations=4, only_missing=True)
    both.meta["astrovae"]["default"]["latents"]["sha256"] = "abc"
    model = Model()
    model.sha256 = "def"
    with pytest.raises(ValueError, match="sha256 = 'abc'"):
        add_latents(both, model, stack, only_missing=True)
    del both.meta["astrovae"]

    class Wide(Model):
        def encode(self, stack, show_progress=False):
            return np.ones((len(stack), 3)), None

    with pytest.raises(ValueError, match=r"rows of the shape \(2,\).*\(3,\)"):
        add_latents(both, Wide(), stack, only_missing=True)
    measured = add_reconstruction(table[:N_OLD], Model(), stack[:N_OLD])
    measured = vstack([measured, table[N_OLD:]], metadata_conflicts="silent")
    with pytest.raises(ValueError, match=r"vae_mse .*\[nJy2\].*\[mJy2\]"):
        add_reconstruction(
            measured, Model(), stack.replace(unit="mJy"), only_missing=True
        )
    with pytest.raises(ValueError, match="give one of them"):
        add_latents(both, Model(), stack, only_missing=True, overwrite=True)


def test_no_provenance_is_needed(galaxies):
    """Where the metadata was lost, the model says what its columns are."""
    table, stack = galaxies
    old = add_reconstruction(table[:N_OLD], Model(), stack[:N_OLD])
    both = vstack([old, table[N_OLD:]], metadata_conflicts="silent")
    del both.meta["astrovae"]
    model = Model()
    filled = add_reconstruction(both, model, stack, only_missing=True)
    assert model.seen == 9
    assert_same(filled, add_reconstruction(table, Model(), stack))


def test_percentiles_need_a_fixed_reference(galaxies):
    """Among themselves, all percentiles change with a row that is added."""
    table, stack = galaxies
    eigen = EigenGalaxies(2).fit(stack[:20])
    full = add_outliers(table, eigen, stack)
    assert_same(add_outliers(full, eigen, stack, only_missing=True), full)
    part = vstack([full[:N_OLD], table[N_OLD:]], metadata_conflicts="silent")
    with pytest.raises(ValueError, match=r"needs training=\.\.\."):
        add_outliers(part, eigen, stack, only_missing=True)
    with pytest.raises(ValueError, match="reference = 'the stack itself'"):
        add_outliers(part, eigen, stack, training=stack, only_missing=True)


def test_empty_catalogue(galaxies):
    """Nothing is missing from no rows, but columns are."""
    table, stack = galaxies
    add = steps(stack[:5])["all"]
    result = add(table[:0], Model(), stack[:0], only_missing=True)
    assert len(result) == 0
    assert {"latent_mean", "vae_outlier_percentile", "gauss_mse"} <= set(
        result.colnames
    )


def test_stacked_catalogues_are_filled(galaxies):
    """astropy chains the lists of their records; the model is the same."""
    table, stack = galaxies
    eigen = EigenGalaxies(2).fit(stack[:20])
    parts = []
    for start, stop in ((0, 15), (15, N_OLD)):
        part = add_latents(table[start:stop], eigen, stack[start:stop])
        parts.append(add_baselines(part, stack[start:stop], [eigen]))
    both = vstack([*parts, table[N_OLD:]], metadata_conflicts="silent")
    filled = add_latents(both, eigen, stack, only_missing=True)
    filled = add_baselines(filled, stack, [eigen], only_missing=True)
    expected = add_latents(table, eigen, stack)
    expected = add_baselines(expected, stack, [eigen])
    assert filled.colnames == expected.colnames
    for name in expected.colnames:
        pair = [plain(t[name]) for t in (filled, expected)]
        np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-6)
    records = [t.meta["astrovae"]["default"] for t in (filled, expected)]
    for step, record in records[1].items():
        for key in ("columns", "bands", "preprocessing", "n_rows"):
            assert records[0][step][key] == record[key]
    other = EigenGalaxies(3).fit(stack[:20])
    with pytest.raises(ValueError, match="two models would be mixed"):
        add_latents(both, other, stack, only_missing=True)
