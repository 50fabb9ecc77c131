# Licensed under a 3-clause BSD style license - see LICENSE
"""Clusters in the catalogue are those of the model, numbered for good."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, QTable, Table, vstack
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from scipy.stats import entropy, median_abs_deviation, multivariate_normal

from astrovae.catalog import (
    COLUMNS,
    add_clusters,
    add_latents,
    annotate,
    cluster_order,
    cluster_summary,
    read_catalog,
    write_catalog,
)
from astrovae.exceptions import FlaggedRowsWarning
from astrovae.flags import Flag
from astrovae.images import CutoutStack

NAMES = [name for name in COLUMNS if name.startswith("cluster_")]
WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-2.0, 0.0], [0.0, 0.5], [2.0, 0.0]])
VARIANCES = np.array([[0.5, 1.0], [1.0, 0.3], [0.2, 0.6]])


class Mixture:
    """The parameters of a mixture."""

    def __init__(self, weights=WEIGHTS, means=MEANS, covariances=VARIANCES):
        self.parts = weights, means, covariances

    def components(self):
        return dict(zip(("weights", "means", "covariances"), self.parts, strict=True))

    def bhattacharyya(self):
        return np.arange(len(self.parts[0]) ** 2).reshape(2 * (len(self.parts[0]),))


class Model:
    """Latents are two pixels, known exactly; a pixel of 99 breaks it."""

    posterior = "diagonal"

    def __init__(self, prior=None):
        self.prior = prior or Mixture()

    def encode(self, stack, show_progress=False):
        batch = stack.batch(np.arange(len(stack)))
        mean = batch["image"].reshape(len(stack), 2).astype(float)
        mean[mean == 99] = np.nan
        return mean, np.full_like(mean, -60.0)

    def responsibilities(self, stack, show_progress=False, return_mean=False):
        assert return_mean
        mean, _ = self.encode(stack)
        weights, means, covariances = self.prior.parts
        density = [
            weight * np.exp(-0.5 * np.square(mean - m) @ (1 / c)) / np.sqrt(c.prod())
            for weight, m, c in zip(weights, means, covariances, strict=True)
        ]
        return np.transpose(density / np.sum(density, axis=0)), mean


@pytest.fixture
def stack(rng):
    """Galaxies of three kinds; the last two cannot be measured."""
    kind = rng.integers(3, size=40)
    data = MEANS[kind] + rng.normal(size=(40, 2)) * np.sqrt(VARIANCES[kind])
    mask = np.zeros((40, 1, 2), bool)
    mask[-1] = True
    data[-2, 0] = 99
    return CutoutStack(data[:, None], mask=mask, ids=np.arange(40))


@pytest.fixture
def table(stack):
    """Their catalogue."""
    result = Table({"id": np.arange(40), "mass": stack.data[:, 0, 0, 0]})
    result.meta["name"] = "test"
    return result


def add(table, model, stack=None, **options):
    """Append clusters, expecting the warning."""
    with pytest.warns(FlaggedRowsWarning, match="2 of 40 rows"):
        return add_clusters(table, model, stack, **options)


def test_columns_are_those_of_the_definition(table, stack):
    """Probabilities, entropies and distances, as others compute them."""
    result = add(table, Model(), stack)
    known = np.arange(38)
    z = stack.data[known, 0, :, 0].astype(float)
    order = [1, 2, 0]
    density = np.stack(
        [
            WEIGHTS[c] * multivariate_normal(MEANS[c], np.diag(VARIANCES[c])).pdf(z)
            for c in order
        ],
        axis=1,
    )
    expected = density / density.sum(axis=1, keepdims=True)
    assert_allclose(result["cluster_prob"][known], expected, rtol=1e-5, atol=1e-7)
    label = expected.argmax(axis=1)
    assert len(set(label)) == 3
    assert_array_equal(result["cluster_label"][known], label)
    assert_allclose(
        result["cluster_entropy"][known], entropy(expected, axis=1), atol=1e-6
    )
    distances = np.stack(
        [
            cdist(z, MEANS[c : c + 1], "mahalanobis", VI=np.diag(1 / VARIANCES[c]))[
                :, 0
            ]
            for c in order
        ],
        axis=1,
    )
    found = result["cluster_distance"][known]
    assert_allclose(found, distances[known, label], rtol=1e-6)
    assert_array_equal(cluster_order(Model()), order)
    assert result.meta["astrovae"]["default"]["clusters"]["order"] == order


def test_rows_are_safe(table, stack):
    """Masked where nothing is known, with the reason; the input stays."""
    before = table.copy()
    result = add(table, Model(), stack)
    assert table.colnames == before.colnames
    assert table.meta == before.meta
    assert result.colnames == [*table.colnames, *NAMES]
    for name in NAMES[:4]:
        mask = np.ma.getmaskarray(result[name]).reshape(40, -1)
        assert np.flatnonzero(mask.any(axis=1)).tolist() == [38, 39]
        assert mask[38:].all()
    assert result["cluster_flags"][38] == Flag.NO_RESULT
    assert result["cluster_flags"][39] & Flag.NO_VALID_PIXEL
    assert not result["cluster_flags"][39] & Flag.NO_RESULT
    assert result["cluster_label"].dtype == np.int32
    for name in NAMES:
        assert result[name].info.description == COLUMNS[name].description
    twice = add(result, Model(), stack, prefix="b_")
    assert "b_cluster_label" in twice.colnames
    with pytest.raises(ValueError, match="already has cluster_label"):
        add_clusters(result, Model(), stack)
    quantities = add(QTable(table), Model(), stack)
    assert_array_equal(
        np.ma.getdata(quantities["cluster_label"]), np.ma.getdata(result[NAMES[0]])
    )


def test_numbers_do_not_depend_on_the_place_in_the_prior(table, stack):
    """By weight; equal weights, by means, whatever the last digit is."""
    expected = add(table, Model(), stack)["cluster_label"]
    for order in ([2, 0, 1], [1, 0, 2]):
        prior = Mixture(WEIGHTS[order], MEANS[order], VARIANCES[order])
        found = add(table, Model(prior), stack)["cluster_label"]
        assert_array_equal(found, expected)
    equal = np.full(3, 1 / 3)
    for last_digit in (0.0, 1e-9, -1e-9):
        weights = equal + last_digit * np.arange(3)
        assert_array_equal(cluster_order(Model(Mixture(weights))), [0, 1, 2])
        swapped = Mixture(weights, MEANS[::-1], VARIANCES[::-1])
        assert_array_equal(cluster_order(Model(swapped)), [2, 1, 0])


def test_only_missing(table, stack):
    """New rows are assigned, others stay, and two mixtures are not mixed."""
    first = add_clusters(table[:20], Model(), stack[:20])
    grown = vstack([first, table[20:]])
    with pytest.warns(FlaggedRowsWarning, match="2 of 20 rows"):
        filled = add_clusters(grown, Model(), stack, only_missing=True)
    whole = add(table, Model(), stack)
    for name in NAMES:
        assert_array_equal(filled[name], whole[name])
    other = Model(Mixture(WEIGHTS[::-1]))
    with pytest.raises(ValueError, match="made with order"):
        add_clusters(grown, other, stack, only_missing=True)
    # flags say that they were tried: nothing is left to do
    again = add_clusters(whole, Model(), stack, only_missing=True)
    assert again.meta == whole.meta


def test_equal_weights_of_many_components():
    """At no number do the last digits of a machine change the order."""
    n = 128  # whose inverse lies in the middle of two numbers of six digits
    means = np.arange(2.0 * n).reshape(n, 2)
    for last_digits in (0.0, 3e-9):
        weights = 1 / n + last_digits * (-1) ** np.arange(n)
        order = cluster_order(Model(Mixture(weights, means, np.ones((n, 2)))))
        assert_array_equal(order, np.arange(n))


def test_some_columns_of_another_clustering(table, stack):
    """Are not filled up with those of this one."""
    table["cluster_label"] = np.arange(40)
    with pytest.raises(ValueError, match="has cluster_label, but not all columns"):
        add_clusters(table, Model(), stack, only_missing=True)
    assert len(add(table, Model(), stack, overwrite=True)) == 40


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("num_components", [1, 3])
def test_small_tables(n, num_components, stack):
    """None, one, and galaxies that are all the same; one component."""
    prior = Mixture(*(part[:num_components] for part in Mixture().parts))
    same = stack[np.zeros(n, int)].replace(ids=np.arange(n))
    result = add_clusters(Table({"id": np.arange(n)}), Model(prior), same)
    assert result["cluster_prob"].shape == (n, num_components)
    assert len(set(result["cluster_label"])) <= 1
    if num_components == 1:
        assert_allclose(result["cluster_prob"], 1)
        assert_allclose(result["cluster_entropy"], 0)
    summary = cluster_summary(result, model=Model(prior), stack=same)
    assert len(summary) == num_components
    assert summary["n_galaxies"].sum() == n


@pytest.mark.parametrize("suffix", ["ecsv", "fits", "parquet", "h5", "vot"])
def test_files(suffix, table, stack, tmp_path):
    """Labels stay integers, and masked ones masked."""
    result = add(table, Model(), stack)
    write_catalog(result, tmp_path / f"a.{suffix}")
    back = read_catalog(tmp_path / f"a.{suffix}")
    assert back["cluster_label"].dtype.kind == "i"
    assert np.flatnonzero(back["cluster_label"].mask).tolist() == [38, 39]
    assert_array_equal(back["cluster_label"][:38], result["cluster_label"][:38])
    assert_allclose(back["cluster_prob"][:38], result["cluster_prob"][:38])
    # which component is which is not forgotten
    assert list(cluster_summary(back)["component"]) == [1, 2, 0]


def make_vae(covariance="diagonal", posterior="diagonal", seed=3):
    """A model with weights that mean nothing, and a mixture in its latents."""
    from astrovae.layers import MixturePrior
    from astrovae.models import VAE, DenseEncoder

    shape = (1, 2, 1)
    prior = MixturePrior(3, latent_dim=2, covariance=covariance, seed=seed)
    prior.logits.assign(np.log(WEIGHTS))
    vae = VAE(
        shape,
        2,
        DenseEncoder((4,)),
        prior=prior,
        posterior=posterior,
        scale=[1.0],
        noise=[1.0],
        seed=seed,
    )
    vae.encode(np.zeros((1, *shape), np.float32))
    kernel, bias = vae.posterior_layer.weights
    rng = np.random.default_rng(seed)
    kernel.assign(rng.normal(size=kernel.shape))
    bias.assign(rng.normal(size=bias.shape) * 0.3)
    # components of different widths, or widths of posteriors do not matter
    scales = prior.raw_scales
    scales.assign(rng.normal(size=scales.shape) * 0.7)
    return vae


@pytest.mark.parametrize(
    ("covariance", "posterior"),
    [
        ("diagonal", "diagonal"),
        ("tied", "diagonal"),
        ("full", "diagonal"),
        ("diagonal", "full"),
    ],
)
def test_clusters_of_a_vae(covariance, posterior, table, stack):
    """From images as the model has it; from its latents, the same."""
    vae = make_vae(covariance, posterior)
    stack, table = stack[:38], table[:38]
    result = add_clusters(table, vae, stack)
    gamma = vae.responsibilities(stack)[:, cluster_order(vae)]
    assert_allclose(result["cluster_prob"], gamma, rtol=1e-6)
    assert_allclose(result["cluster_prob"].sum(axis=1), 1, rtol=1e-5)
    assert (np.diff(np.sort(gamma.max(axis=1)))[5:] > 0).any()
    # neither order nor company of the galaxies matters
    alone = add_clusters(table[[7, 3]], vae, stack[[7, 3]])
    assert_array_equal(alone["cluster_label"], result["cluster_label"][[7, 3]])
    for name in NAMES[1:]:
        assert_allclose(alone[name], result[name][[7, 3]], rtol=1e-6, atol=1e-6)
    latents = add_latents(table, vae, stack)
    from_latents = add_clusters(latents, vae)
    assert_array_equal(from_latents["cluster_label"], result["cluster_label"])
    for name in NAMES[1:]:
        assert_allclose(from_latents[name], result[name], rtol=2e-4, atol=2e-5)
    records = (t.meta["astrovae"]["default"] for t in (result, from_latents))
    assert [record["clusters"]["from"] for record in records] == ["images", "latents"]


def test_calibrated_latents(table, stack):
    """Calibration widens the sigmas of the table, and changes no probability."""
    vae = make_vae()
    stack, table = stack[:38], table[:38]
    plain = add_latents(table, vae, stack)
    expected = add_clusters(table, vae, stack)
    vae.latent_temperature = [4.0, 0.3]
    wide = add_latents(table, vae, stack)
    assert_allclose(wide["latent_sigma"], plain["latent_sigma"] * [4.0, 0.3], rtol=1e-5)
    del wide.meta["astrovae"]  # then the table is taken to be the model's
    results = [add_clusters(part, vae) for part in (plain, wide)]
    for found in (add_clusters(table, vae, stack), *results):
        for name in NAMES[1:]:
            assert_allclose(found[name], expected[name], rtol=2e-4, atol=2e-5)
    # sigmas of before and after would be mixed
    grown = vstack([plain[:30], table[30:]])
    with pytest.raises(ValueError, match="made with latent_temperature"):
        add_latents(grown, vae, stack, only_missing=True)
    wide = add_latents(table, vae, stack)
    mixed, alike = (
        vstack([part, wide], metadata_conflicts="silent") for part in (plain, wide)
    )
    with pytest.raises(ValueError, match="of another latent_temperature"):
        add_clusters(mixed, vae)
    assert len(add_clusters(alike, vae)) == 76


def test_clusters_are_the_same_after_loading(table, stack, tmp_path):
    """And with the components of the prior in another order."""
    from keras import ops

    vae = make_vae()
    stack, table = stack[:38], table[:38]
    expected = add_clusters(table, vae, stack)
    vae.save_preset(tmp_path / "preset")
    loaded = type(vae).from_preset(tmp_path / "preset")
    prior = vae.prior
    for variable in (prior.logits, prior.means, prior.raw_scales):
        variable.assign(ops.convert_to_numpy(variable)[[2, 0, 1]])
    for model in (loaded, vae):
        found = add_clusters(table, model, stack)
        assert_array_equal(found["cluster_label"], expected["cluster_label"])
        assert_allclose(found["cluster_prob"], expected["cluster_prob"], rtol=1e-5)


def test_latents_of_the_table(table, stack):
    """Bad rows stay bad, and rows that have no latents yet are filled later."""
    model = Model()
    with pytest.warns(FlaggedRowsWarning, match="2 of 40"):
        latents = add_latents(table, model, stack, prefix="a_")
    latents["a_latent_mean"][5] = np.nan
    with pytest.warns(FlaggedRowsWarning, match=r"3 of 40 rows .* \(clusters\)"):
        result = add_clusters(latents, model, prefix="a_")
    mask = np.ma.getmaskarray(result["a_cluster_label"])
    assert np.flatnonzero(mask).tolist() == [5, 38, 39]
    assert result["a_cluster_flags"][5] == Flag.NO_RESULT
    assert result["a_cluster_flags"][39] & Flag.NO_VALID_PIXEL
    first = add_latents(table[:10], model, stack[:10])
    grown = vstack([first, table[10:14]])
    with pytest.warns(FlaggedRowsWarning, match="4 of 14 rows"):
        early = add_clusters(grown, model)
    assert np.ma.getmaskarray(early["cluster_flags"]).tolist() == 10 * [0] + 4 * [1]
    grown = add_latents(early, model, stack[:14], only_missing=True)
    late = add_clusters(grown, model, only_missing=True)
    assert not np.ma.getmaskarray(late["cluster_label"]).any()
    assert_array_equal(late["cluster_prob"][:10], early["cluster_prob"][:10])
    # a model that gives points
    del grown["latent_sigma"]
    points = add_clusters(grown, model, prefix="", overwrite=True)
    assert_allclose(points["cluster_prob"], late["cluster_prob"])


def test_latents_of_another_model_are_refused(table, stack):
    """By what the provenance says of it, and by their number."""
    model = Model()
    model.sha256 = "one"
    stack, table = stack[:10], table[:10]
    latents = add_latents(table, model, stack)
    assert len(add_clusters(latents, model)) == 10
    with pytest.raises(ValueError, match="no column 'b_latent_mean': give the cutouts"):
        add_clusters(latents, model, prefix="b_")
    model.sha256 = "two"
    with pytest.raises(ValueError, match="made with sha256 = 'one', this model has"):
        add_clusters(latents, model)

    class Other(Model):
        pass

    with pytest.raises(ValueError, match="made with class = 'Model', this model has"):
        add_clusters(latents, Other())
    plain = Table({"latent_mean": np.zeros((10, 3))})
    with pytest.raises(ValueError, match=r"rows of the shape \(3,\), the components"):
        add_clusters(plain, model)
    plain["latent_mean"], plain["latent_sigma"] = np.zeros((10, 2)), np.zeros((10, 3))
    with pytest.raises(ValueError, match=r"latent_sigma has rows of the shape \(3,\)"):
        add_clusters(plain, model)
    full = Model()
    full.posterior, full.prior.covariance = "full", "full"
    with pytest.raises(ValueError, match="have correlations, which the table"):
        add_clusters(latents, full)
    assert len(add_clusters(latents, full, stack)) == 10


def test_models_without_clusters(table, stack):
    """Are told what is missing."""
    from astrovae.models import VAE

    vae = VAE((1, 2, 1), latent_dim=2)
    for call in (lambda: add_clusters(table, vae, stack), lambda: cluster_order(vae)):
        with pytest.raises(ValueError, match="prior of this VAE is GaussianPrior"):
            call()
    with pytest.raises(ValueError, match="no column 'cluster_label'"):
        cluster_summary(table)
    with pytest.raises(ValueError, match="the table has 40 rows and the stack 5"):
        add_clusters(table, Model(), stack[:5])
    with pytest.raises(TypeError, match="must be a CutoutStack, got ndarray"):
        add_clusters(table, Model(), stack.data)
    with pytest.raises(ValueError, match="prior of this VAE is GaussianPrior"):
        # before the latents, which take long, are appended
        annotate(table, vae, stack.data, what=["latents", "clusters"])


def test_annotate_adds_clusters_if_there_are_any(table, stack):
    """By default, and on demand."""

    class Measured(Model):
        def measure(self, stack, show_progress=False):
            return {"vae_mse": np.ones(len(stack))}

    model = Measured()
    stack, table = stack[:8], table[:8]
    result = annotate(table, model, stack, baselines=[])
    assert {*NAMES, "latent_mean", "vae_mse"} < set(result.colnames)
    some = annotate(table, model, stack, what="clusters")
    assert some.colnames == [*table.colnames, *NAMES]
    model.prior = None
    without = annotate(table, model, stack, baselines=[])
    assert "vae_mse" in without.colnames
    assert "cluster_label" not in without.colnames
    with pytest.raises(ValueError, match="clusters need a model whose prior"):
        annotate(table, model, stack, what="clusters")


def test_summary_is_that_of_numpy(table, stack):
    """Sizes, medians and deviations, with units; empty clusters are masked."""
    weights = np.array([0.25, 0.4, 0.3, 0.05])
    means = np.vstack([MEANS, [[500.0, 500.0]]])
    model = Model(Mixture(weights, means, np.vstack([VARIANCES, [[1.0, 1.0]]])))
    table["mass"].unit = "Msun"
    table["mass"][3] = np.nan
    table["flux"] = MaskedColumn(np.arange(40.0), mask=np.arange(40) < 4)
    table["mag"] = (np.arange(40.0) + 10) * u.ABmag
    table["angle"] = np.arange(40.0) * u.deg
    table["place"] = SkyCoord(np.arange(40.0), np.arange(40.0), unit="deg")
    result = add(table, model, stack)
    for catalog in (result, QTable(result)):
        summary = cluster_summary(catalog, model=model, n_prototypes=3)
        assert list(summary["component"]) == [1, 2, 0, 3]
        label = np.ma.filled(result["cluster_label"], -1)
        counts = [int((label == c).sum()) for c in range(4)]
        assert list(summary["n_galaxies"]) == counts
        assert counts[3] == 0
        assert_allclose(summary["share"], np.array(counts) / 38)
        mass = np.asarray(table["mass"])
        for c in range(3):
            values = mass[(label == c) & np.isfinite(mass)]
            assert summary["mass_median"].unit == u.Msun
            assert_allclose(summary["mass_median"][c].value, np.median(values))
            mad = median_abs_deviation(values)
            assert_allclose(summary["mass_mad"][c].value, mad)
            flux = np.flatnonzero((label == c) & (np.arange(40) >= 4))
            assert_allclose(summary["flux_median"][c], np.median(flux))
            own = np.flatnonzero(label == c)
            nearest = own[np.argsort(result["cluster_distance"][own])[:3]]
            assert list(summary["prototypes"][c]) == list(nearest)
            gamma = np.asarray(result["cluster_prob"][own])
            assert_allclose(summary["shared_prob"][c], gamma.mean(axis=0), rtol=1e-5)
        for name in ("mass_median", "mass_mad", "flux_median", "entropy", "distance"):
            assert list(summary[name].mask) == [False] * 3 + [True]
        assert summary["prototypes"].mask[3].all()
        assert summary["shared_prob"].mask[3].all()
        assert_allclose(summary["mean_prob"].sum(), 1, rtol=1e-5)
        order = [1, 2, 0, 3]
        assert_array_equal(
            summary["overlap"], model.prior.bhattacharyya()[np.ix_(order, order)]
        )
        assert summary["mag_median"].unit == u.ABmag
        assert summary["mag_mad"].unit == u.mag
        assert "angle_median" not in summary.colnames
        assert summary.meta["astrovae"]["cluster_summary"]["n_left_out"] == 2
    alone = cluster_summary(result, "flux")
    assert "mass_median" not in alone.colnames
    assert "overlap" not in alone.colnames


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_images_are_made_of_valid_pixels(statistic, table, stack):
    """And are empty where there is none."""
    mask = np.array(stack.mask)
    mask[:10, 0, 1] = True
    stack = stack.replace(mask=mask)
    prior = Mixture(
        np.array([0.9, 0.1]), np.array([[0, 0], [900, 0.0]]), np.ones((2, 2))
    )
    result = add(table, Model(prior), stack)
    summary = cluster_summary(result, stack=stack, statistic=statistic)
    assert summary["image"].shape == (2, 1, 2, 1)
    function = getattr(np, statistic)
    assert_allclose(
        summary["image"][0, 0, 0, 0], function(stack.data[:38, 0, 0]), rtol=1e-5
    )
    assert_allclose(
        summary["image"][0, 0, 1, 0], function(stack.data[10:38, 0, 1]), rtol=1e-5
    )
    assert np.isnan(summary["image"][1]).all()
    with pytest.raises(ValueError, match="the table has 40 rows and the stack 3"):
        cluster_summary(result, stack=stack[:3])


def test_summary_of_what_does_not_belong_together(table, stack):
    """Another model, labels beyond the probabilities, columns of text."""
    result = add(table, Model(), stack)
    with pytest.raises(ValueError, match="the clusters are those of another model"):
        cluster_summary(result, model=Model(Mixture(WEIGHTS[::-1])))
    result["kind"] = ["a"] * 40
    with pytest.raises(TypeError, match="the column 'kind' must hold numbers"):
        cluster_summary(result, ["kind"])
    with pytest.raises(ValueError, match="no column 'size'"):
        cluster_summary(result, ["size"])
    result["cluster_label"][0] = 7
    with pytest.raises(ValueError, match="cluster_label must be from 0 to 2"):
        cluster_summary(result)
    result["cluster_label"] = np.full(40, 0.5)
    with pytest.raises(ValueError, match="cluster_label must hold whole numbers"):
        cluster_summary(result)
    result["cluster_label"] = np.full(40, 1.0)
    assert list(cluster_summary(result)["n_galaxies"]) == [0, 40, 0]
    with pytest.raises(TypeError, match="must be a CutoutStack, got ndarray"):
        cluster_summary(result, stack=stack.data)
