# Licensed under a 3-clause BSD style license - see LICENSE
"""Figures show what they say, and leave the state of matplotlib alone."""

import io
import itertools
import re
import subprocess
import sys
from types import SimpleNamespace

import astropy.units as u
import matplotlib as mpl
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from matplotlib import legend
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.decomposition import PCA

from astrovae import plotting
from astrovae.baselines import compare, win_rates
from astrovae.images import CutoutStack
from astrovae.plotting import _display, catalogs

SHAPE = (12, 16)


class Painter:
    """A model that paints galaxies as ``paint(stack)`` or from latents."""

    latent_dim = 3

    def __init__(self, weights=(1.0, 2.0, 0.5), log_var=0.0, n_bands=1, offset=0.0):
        self.weights = np.asarray(weights)
        self.log_var, self.n_bands, self.offset = log_var, n_bands, offset

    def reconstruct(self, stack):
        mean = stack.batch(np.arange(len(stack)))["image"] - self.offset
        return {"mean": mean, "log_var": np.full(mean.shape, self.log_var)}

    def decode(self, z):
        self.z = z
        bright = np.tile((z @ self.weights)[:, None, None, None], (1, *SHAPE, 1))
        return {"mean": np.repeat(bright, self.n_bands, axis=-1)}


def make_stack(rng, n=6, n_bands=3, *, error=False, **kwargs):
    """Round galaxies on noise, with a bad pixel and a neighbour each."""
    y, x = np.indices(SHAPE)
    galaxy = 50 * np.exp(-((x - 8) ** 2 + (y - 6) ** 2) / 8)
    data = galaxy[..., None] + rng.normal(size=(n, *SHAPE, n_bands))
    mask = np.zeros(data.shape, dtype=bool)
    mask[:, 0, 0] = True
    segmentation = np.zeros((n, *SHAPE), dtype=int)
    segmentation[:, 5:8, 7:10] = 1
    segmentation[:, :3, 12:] = 2
    return CutoutStack(
        data,
        mask=mask,
        error=np.full(data.shape, 3.0) if error else None,
        segmentation=segmentation,
        **kwargs,
    )


def make_table(stack, rng, dim=3):
    """Latents for the galaxies of a stack."""
    table = Table({"latent_mean": rng.normal(size=(len(stack), dim))})
    table["latent_sigma"] = np.full((len(stack), dim), 0.1)
    return table


def render(figure):
    """Draw a figure in full, and return the size of the picture."""
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=30)
    assert buffer.getvalue().startswith(b"\x89PNG")


def pictures(figure):
    """The arrays of all pictures, in the order that they were drawn."""
    return [np.ma.getdata(ax.images[0].get_array()) for ax in figure.axes if ax.images]


def texts(figure):
    """All that is written."""
    found = list(figure.texts)
    for ax in figure.axes:
        found += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        found.append(SimpleNamespace(get_text=lambda ax=ax: ax.get_title(loc="left")))
    return " | ".join(text.get_text() for text in found)


def all_figures(stack, rng, n_bands):
    """One of each kind."""
    model = Painter(n_bands=n_bands)
    table = make_table(stack, rng)
    shape = (len(stack), n_bands) if n_bands > 1 else len(stack)
    table["vae_mse"], table["gauss_mse"] = rng.random((2, *np.atleast_1d(shape)))
    table["vae_log_like"], table["gauss_log_like"] = -table["vae_mse"], table["vae_mse"]
    return {
        "cutouts": plotting.plot_cutouts(stack, stack),
        "reconstructions": plotting.plot_reconstructions(stack, model),
        "latents": plotting.plot_latents(table, stack),
        "traversals": plotting.plot_traversals(model, table["latent_mean"]),
        "errors": plotting.plot_error_histogram(table),
        "history": plotting.plot_history({"loss": [3.0, 2.0]}),
        "wins": plotting.plot_win_rates(compare(table)),
    }


def test_import_leaves_pyplot_alone(tmp_path):
    """Neither an import nor a figure selects a backend, loads Keras or prints."""
    code = (
        "import sys, matplotlib\n"
        "before = dict(matplotlib.rcParams)\n"
        "from astrovae import plotting\n"
        "plotting.plot_history({'loss': [1.0, 2.0]}).savefig('loss.png')\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "bad = {'matplotlib.pyplot', 'keras', 'tensorflow', 'jax', 'torch'}\n"
        "print(sorted(bad & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, capture_output=True, check=False, cwd=tmp_path, text=True
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("n_bands", [1, 2, 3, 5])
def test_figures_for_any_bands(rng, n_bands, error):
    """All figures can be drawn, and the settings stay as they were."""
    before = dict(mpl.rcParams)
    stack = make_stack(rng, n_bands=n_bands, error=error)
    for figure in all_figures(stack, rng, n_bands).values():
        render(figure)
    assert dict(mpl.rcParams) == before


def test_no_warning_on_slow_machines(rng, monkeypatch):
    """Where a look at the clock takes seconds, matplotlib finds legends slow."""
    clock = SimpleNamespace(perf_counter=itertools.count(0, 10).__next__)
    monkeypatch.setattr(legend, "time", clock)
    for figure in all_figures(make_stack(rng), rng, 1).values():
        render(figure)
    assert clock.perf_counter() > 10


@pytest.mark.parametrize("n", [1, 2, 4])
def test_figures_of_few_galaxies(rng, n):
    """Small samples are drawn in full."""
    for figure in all_figures(make_stack(rng, n=n), rng, 3).values():
        render(figure)


def test_figures_of_stacks_on_disk(rng, tmp_path):
    """Stacks are read where they are shown."""
    make_stack(rng).write(tmp_path / "stack.h5")
    stack = CutoutStack.read(tmp_path / "stack.h5")
    for figure in all_figures(stack, rng, 3).values():
        render(figure)


# ----------------------------------------------------------------------
# colours
# ----------------------------------------------------------------------


def test_colors_are_kept(rng):
    """The stretch changes brightness, not the ratio of the bands."""
    image = rng.uniform(0.01, 1, size=(2, *SHAPE, 3))
    levels = np.zeros((2, 1, 1, 3)), np.full((2, 1, 1, 1), 2.0)
    colors = _display.to_colors(image, np.zeros(image.shape, bool), levels, (0, 1, 2))
    assert_allclose(colors / colors[..., :1], image / image[..., :1], rtol=1e-6)
    assert colors.min() >= 0
    assert colors.max() <= 1


def test_rgb_chooses_bands(rng):
    """Any three bands can be shown."""
    image = rng.uniform(0, 1, size=(1, *SHAPE, 5))
    mask = np.zeros(image.shape, bool)
    levels = np.zeros((1, 1, 1, 5)), np.ones((1, 1, 1, 1))
    chosen = _display.to_colors(image, mask, levels, (4, 1, 0))
    levels = np.zeros((1, 1, 1, 3)), np.ones((1, 1, 1, 1))
    alone = _display.to_colors(image[..., [4, 1, 0]], mask[..., :3], levels, (0, 1, 2))
    assert_array_equal(chosen, alone)


def test_few_bands_are_grey(rng):
    """Two bands give no false colours."""
    figure = plotting.plot_reconstructions(make_stack(rng, n_bands=2), Painter())
    image = pictures(figure)[0][1:]  # stripes have a colour
    assert_array_equal(image[..., 0], image[..., 1])
    assert_array_equal(image[..., 0], image[..., 2])


def test_values_under_masks_do_not_matter(rng):
    """The picture is the same whatever stands under the mask."""
    image = rng.normal(size=(2, *SHAPE, 3))
    mask = rng.random(image.shape) < 0.2
    mask[:, :2] = True
    shown = []
    for value in (0.0, 1e30, np.nan):
        changed = np.where(mask, value, image)
        levels = _display.limits(changed, mask)
        shown.append(_display.to_colors(changed, mask, levels, (0, 1, 2)))
    assert np.isfinite(shown[0]).all()
    assert_array_equal(shown[0], shown[1])
    assert_array_equal(shown[0], shown[2])


@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("masked", [False, True])
def test_limits_of_nothing(value, masked):
    """Constant and fully masked cutouts have limits, too."""
    image = np.full((1, *SHAPE, 2), value)
    black, white = _display.limits(image, np.full(image.shape, masked))
    assert np.isfinite(black).all()
    assert_array_equal(white, 1)


def test_noise_is_not_stretched_to_white(rng):
    """A cutout without a galaxy stays dark."""
    image = rng.normal(size=(1, 64, 64, 1))
    _, white = _display.limits(image, np.zeros(image.shape, bool))
    assert white > 10


@pytest.mark.parametrize("rgb", [(0, 1), (0, 1, 3), ("r", "g", "b")])
def test_rgb_must_exist(rng, rgb):
    """Bands that are not there are refused."""
    stack = make_stack(rng)
    with pytest.raises(ValueError, match=r"rgb must be three of the bands 0 \.\.\. 2"):
        plotting.plot_cutouts(stack, stack, rgb=rgb)


# ----------------------------------------------------------------------
# galaxies
# ----------------------------------------------------------------------


def test_rows_without_pixels_are_left_out(rng):
    """Rows that have nothing to show are skipped, chosen or not."""
    stack = make_stack(rng)
    mask = stack.mask.copy()
    mask[[1, 4]] = True
    stack = stack.replace(mask=mask, ids=np.arange(6) + 2**62)
    figure = plotting.plot_cutouts(stack, stack)
    assert "id 4611686018427387904" in texts(figure)
    assert "id 4611686018427387905" not in texts(figure)
    figure = plotting.plot_reconstructions(stack, Painter(), indices=[4, 2])
    assert re.findall(r"id \d+(\d)", texts(figure)) == ["6"]
    with pytest.raises(ValueError, match="no galaxy with a valid pixel"):
        plotting.plot_cutouts(stack, stack, indices=[1, 4])
    with pytest.raises(ValueError, match=r"indices must be within 0 \.\.\. 5"):
        plotting.plot_cutouts(stack, stack, indices=[6])


def test_crowded_galaxies_come_first():
    """What cleaning changed is shown before what it did not."""
    stack = SimpleNamespace(flags=np.zeros(100, dtype=int))
    crowded = np.arange(100) % 10 == 5
    rows = _display.choose_rows(stack, None, 5, preferred=crowded)
    assert_array_equal(rows, [5, 25, 45, 75, 95])
    rows = _display.choose_rows(stack, None, 12, preferred=crowded)
    assert crowded[rows].sum() == 10
    assert len(np.unique(rows)) == 12


def test_cutouts_show_target_and_neighbors(rng):
    """Neighbours are tinted, the target is outlined, masks are striped."""
    stack = make_stack(rng, n=2)
    figure = plotting.plot_cutouts(stack, stack)
    before, middle, after = (pictures(figure)[i] for i in (0, 2, 4))
    assert before.shape == (*SHAPE, 3)
    # a neighbour is orange: red above blue; the sky of this row is grey
    assert (middle[:3, 12:, 0] > middle[:3, 12:, 2]).all()
    assert_array_equal(middle[10, 3:9, 0], middle[10, 3:9, 2])
    assert_array_equal(after[0, 0], _display._STRIPES[0])
    outlines = [ax for ax in figure.axes if ax.collections]
    assert len(outlines) == 2


def test_cutouts_must_correspond(rng):
    """Other galaxies are refused."""
    stack = make_stack(rng)
    with pytest.raises(ValueError, match="not the same galaxies"):
        plotting.plot_cutouts(stack, stack[:3])


def test_image_and_reconstruction_share_the_stretch(rng):
    """Equal pixels have equal colours."""
    stack = make_stack(rng)
    shown = pictures(plotting.plot_reconstructions(stack, Painter(), n_galaxies=6))
    for image, painted in zip(shown[:6], shown[6:12]):
        assert_array_equal(image[1:], painted[1:])


@pytest.mark.parametrize(("band", "error"), [(None, False), (1, False), (1, True)])
def test_residuals_are_in_units_of_sigma(rng, band, error):
    """Residual, sigma and chi2 are those of the model, with known errors."""
    stack = make_stack(rng, error=error, unit="nJy", bands=["g", "r", "i"])
    # residual 10; sigma 4 and, with the known error of 3, 5
    model = Painter(log_var=np.log(16.0), offset=10.0)
    figure = plotting.plot_reconstructions(stack, model, band=band)
    residual, sigma = (pictures(figure)[i] for i in (12, 18))
    expected = 5.0 if error else 4.0
    good = ~stack.mask[0].all(axis=-1)
    assert_allclose(sigma[good], expected, rtol=1e-6)
    assert_allclose(residual[good], 10 / expected, rtol=1e-6)
    assert np.isnan(residual[~good]).all()
    norm = figure.axes[12].images[0].norm
    assert norm.vmin == -norm.vmax
    assert f"χ² per pixel {(10 / expected) ** 2:.2f}" in texts(figure)
    assert "σ [nJy]" in texts(figure)
    name = "those of r" if band else "means of the bands"
    assert name in texts(figure)


def test_scale_of_sigma_is_logarithmic_if_wide(rng):
    """Faint and bright galaxies are both legible."""
    stack = make_stack(rng, n_bands=1)
    for spread, kind in ((1.0, False), (20.0, True)):
        noise = np.log(np.linspace(1, spread**2, SHAPE[1]))[:, None]
        figure = plotting.plot_reconstructions(stack, Painter(log_var=noise))
        render(figure)
        assert isinstance(figure.axes[-2].images[0].norm, LogNorm) == kind


@pytest.mark.parametrize("band", [-1, 3, "r"])
def test_band_must_exist(rng, band):
    """A band that is not there is refused."""
    with pytest.raises(ValueError, match=r"band must be one of 0 \.\.\. 2"):
        plotting.plot_reconstructions(make_stack(rng), Painter(), band=band)


def test_traversals_are_ordered_by_activity(rng):
    """The most active latent is on top; steps are those of the catalogue."""
    model = Painter(weights=(1.0, 3.0, 0.5))
    means = rng.normal([1, 2, 3], [1, 1, 10], size=(500, 3))
    masked = np.ma.masked_invalid(np.vstack([means, np.full((2, 3), np.nan)]))
    figure = plotting.plot_traversals(model, masked, n_sigma=2, n_steps=5)
    ax = figure.axes[0]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    # 10 x 0.5, 1 x 3, 1 x 1
    assert [label.split("\n")[0] for label in labels] == [
        "latent 2",
        "latent 1",
        "latent 0",
    ]
    assert labels[0].endswith(f"σ = {means[:, 2].std():.2f}")
    steps = [label.get_text() for label in ax.get_xticklabels()]
    assert steps == ["−2 σ", "−1 σ", "centre", "+1 σ", "+2 σ"]
    z = model.z.reshape(3, 5, 3)
    assert_allclose(z[:, 2], np.tile(means.mean(axis=0), (3, 1)))
    moved = means.mean(axis=0) + 2 * np.diag(means.std(axis=0))
    assert_allclose(z[:, -1], moved)
    # brightness grows to the right in the picture, too
    picture = ax.images[0].get_array()
    middle = picture[:, picture.shape[1] // 10 :: picture.shape[1] // 5, 0]
    assert (np.diff(middle[len(middle) // 6]) >= 0).all()


def test_traversals_of_the_prior_and_of_one_galaxy():
    """Without a catalogue, sigma is that of the prior."""
    model = Painter()
    plotting.plot_traversals(model)
    assert_allclose(model.z.reshape(3, 7, 3)[1, 0], [0, -3, 0])
    figure = plotting.plot_traversals(model, np.array([1.0, 2, 3]), max_latents=2)
    assert_allclose(model.z.reshape(3, 7, 3)[1, 0], [1, -1, 3])
    assert len(figure.axes[0].get_yticks()) == 2


@pytest.mark.parametrize(
    ("means", "message"),
    [
        (np.zeros((5, 2)), r"must have the shape \(n, 3\), got \(5, 2\)"),
        (np.full((5, 3), np.nan), "no row of latent_mean is finite"),
    ],
)
def test_traversals_refuse_other_latents(means, message):
    """Latents of another model are refused."""
    with pytest.raises(ValueError, match=message):
        plotting.plot_traversals(Painter(), means)


# ----------------------------------------------------------------------
# catalogues
# ----------------------------------------------------------------------


def test_map_is_that_of_principal_components(rng):
    """Points and labels agree with scikit-learn."""
    latents = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5))
    points, labels = catalogs._plane(latents, None, None)
    pca = PCA(2).fit(latents)
    expected = pca.transform(latents)
    signs = np.sign((points * expected).sum(axis=0))
    assert_allclose(points, expected * signs, atol=1e-10)
    for label, share in zip(labels, pca.explained_variance_ratio_):
        assert f"({100 * share:.0f} % of the variance)" in label


def test_thumbnails_are_where_their_galaxies_are(rng):
    """Each cell shows one galaxy: of those inside, the nearest to its middle."""
    points = rng.normal(size=(300, 2))
    low, high = np.array([-1.0, -1.5]), np.array([1.0, 1.5])
    shape = (6, 8)
    cells, chosen = catalogs._nearest_to_cells(points, low, high, shape)
    assert len(np.unique(cells)) == len(cells)
    size = (high - low) / shape[::-1]
    seen = 0
    for number in range(shape[0] * shape[1]):
        corner = low + size * [number % shape[1], number // shape[1]]
        inside = ((points >= corner) & (points < corner + size)).all(axis=1)
        seen += inside.any()
        if inside.any():
            distance = np.hypot(*((points - corner) / size - 0.5).T)
            nearest = np.flatnonzero(inside)[distance[inside].argmin()]
            assert chosen[cells == number] == nearest
    assert seen == len(cells)


def test_map_leaves_masked_rows_out(rng):
    """Rows without latents are not shown."""
    stack = make_stack(rng, n=30)
    table = make_table(stack, rng, dim=2)
    mask = np.zeros((30, 2), dtype=bool)
    mask[[3, 7]] = True
    table["latent_mean"] = MaskedColumn(table["latent_mean"], mask=mask)
    figure = plotting.plot_latents(table, stack, n_columns=5)
    assert "28 galaxies" in texts(figure)
    (points,) = figure.axes[0].collections
    inside = len(points.get_offsets())
    assert f"{28 - inside} lie outside" in texts(figure)
    table["latent_mean"].mask[:] = True
    with pytest.raises(ValueError, match="no row of the table has latents"):
        plotting.plot_latents(table, stack)


@pytest.mark.parametrize(
    ("dim", "axes", "labels"),
    [
        (1, {}, ("latent 0", "σ of latent 0")),
        (2, {}, ("latent 0", "latent 1")),
        (4, {"x": 3}, ("latent 3", "latent 0")),
        (4, {"y": 0}, ("latent 1", "latent 0")),
        (4, {"x": 2, "y": 3}, ("latent 2", "latent 3")),
    ],
)
def test_map_of_chosen_latents(rng, dim, axes, labels):
    """The axes say what they are."""
    stack = make_stack(rng, n=9)
    ax = plotting.plot_latents(make_table(stack, rng, dim), stack, **axes).axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == labels


def test_map_refuses_what_does_not_fit(rng):
    """Tables of other galaxies, without latents, or with fewer, are refused."""
    stack = make_stack(rng)
    table = make_table(stack, rng)
    with pytest.raises(ValueError, match="the table has 5 rows, the stack 6 cutouts"):
        plotting.plot_latents(table[:5], stack)
    with pytest.raises(ValueError, match="no column 'm_latent_mean'"):
        plotting.plot_latents(table, stack, prefix="m_")
    with pytest.raises(ValueError, match=r"x must be a latent, 0 \.\.\. 2, got x=3"):
        plotting.plot_latents(table, stack, x=3)


def wilson(wins, n, z=1.959963984540054):
    """The interval of Wilson (1927), in percent."""
    share = wins / n
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return 100 * (center - half), 100 * (center + half)


def test_error_histogram_counts_held_out_galaxies(rng):
    """Rates are those of held-out galaxies that have both errors."""
    ours, theirs = rng.random((2, 200, 3))
    held_out = np.arange(200) < 80
    ours[:5], theirs[75:80] = np.nan, np.nan
    table = QTable({"p_vae_mse": Masked(ours, mask=np.isnan(ours)) * u.nJy**2})
    table["p_gauss_mse"] = Masked(theirs, mask=np.isnan(theirs)) * u.nJy**2
    table["held_out"] = held_out
    table.meta["astrovae"] = {"p_": {"reconstruction": {"bands": ["g", "r", "i"]}}}
    figure = plotting.plot_error_histogram(table, prefix="p_")
    render(figure)
    text = texts(figure)
    wins = (ours.sum(axis=1) < theirs.sum(axis=1))[5:75].sum()
    low, high = wilson(wins, 70)
    assert (
        f"better for {100 * wins / 70:.1f} % of 70 held-out galaxies "
        f"(95 % interval {low:.1f} to {high:.1f} %)"
    ) in text
    for i, band in enumerate("gri"):
        wins = (ours < theirs)[5:75, i].sum()
        assert f"{100 * wins / 70:.1f} % ({wilson(wins, 70)[0]:.1f} to" in text
        assert f"MSE ratio, {band}" in text
    # every galaxy with both errors is in a bin
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert sum(heights) == 190 + 70


def test_error_histogram_without_held_out_galaxies():
    """All galaxies are counted, and zero is in the range."""
    table = Table({"vae_mse": [1.0, 2, 3, 0], "gauss_mse_background": [2.0, 4, 6, 1]})
    figure = plotting.plot_error_histogram(table, suffix="_background")
    render(figure)
    assert "better for 100.0 % of 3 galaxies" in texts(figure)
    assert "Gaussian plus constant" in texts(figure)
    low, high = figure.axes[0].get_xlim()
    assert low < 0 < high


@pytest.mark.parametrize(("low", "high"), [(-1.3, 0.4), (0.2, 0.9), (-2, -1), (0, 0)])
def test_no_bin_has_both_winners(low, high):
    """Zero is an edge, and all is within the edges."""
    edges = catalogs._edges(low, high)
    assert np.abs(edges).min() < 1e-12
    assert edges[0] < min(low, 0)
    assert edges[-1] > max(high, 0)


def test_error_histogram_needs_errors():
    """Missing and empty columns are named."""
    table = Table({"vae_mse": [1.0, np.nan]})
    with pytest.raises(ValueError, match=r"no column 'gauss_mse'; .*annotate"):
        plotting.plot_error_histogram(table)
    table["gauss_mse"] = [np.nan, 1.0]
    with pytest.raises(ValueError, match="no row has both vae_mse and gauss_mse"):
        plotting.plot_error_histogram(table)


def test_history_shows_both_losses():
    """Curves are those of the history, in epochs that count from one."""
    losses = {"loss": [3.0, 2.0, 1.0], "val_loss": [2.5, 1.5], "kl": [1.0, 1, 1]}
    figure = plotting.plot_history(SimpleNamespace(history=losses))
    train, validation = figure.axes[0].lines
    assert_array_equal(train.get_xydata(), [[1, 3], [2, 2], [3, 1]])
    assert_array_equal(validation.get_xydata(), [[2, 2.5], [3, 1.5]])
    render(plotting.plot_history({"loss": [1.0, np.nan, 2.0]}))


def test_history_is_not_hidden_by_its_first_epochs():
    """Losses far above the others are counted, not shown."""
    loss = np.append([1e9, 1e7], np.linspace(2, 1, 50))
    figure = plotting.plot_history({"loss": loss})
    assert figure.axes[0].get_ylim()[1] < 4
    assert "2 values above the frame" in texts(figure)


@pytest.mark.parametrize("losses", [{}, {"loss": []}, {"loss": [np.nan]}])
def test_history_needs_a_loss(losses):
    """A model that was not trained has no history."""
    with pytest.raises(ValueError, match="no finite loss"):
        plotting.plot_history(losses)


def test_real_model_and_data(rng):
    """The functions take what the package makes."""
    pytest.importorskip("keras")
    from astrovae.catalog import add_latents
    from astrovae.models import VAE

    stack = make_stack(rng, n=8)
    vae = VAE(stack.image_shape, latent_dim=4, seed=1)
    table = add_latents(Table({"id": np.arange(8)}), vae, stack)
    render(plotting.plot_reconstructions(stack, vae, n_galaxies=2))
    render(plotting.plot_latents(table, stack))
    render(plotting.plot_traversals(vae, table["latent_mean"], n_steps=3))


def test_win_rates_are_drawn(rng):
    """Every rate has a point with its interval, under the name of its baseline."""
    names = ("mse", "log_like")
    columns = [f"{model}_{name}" for model in ("vae", "gauss", "pca") for name in names]
    table = Table({name: rng.normal(size=(40, 2)) ** 2 for name in columns})
    table["gauss_mse_background"] = table["gauss_mse"] / 2
    table["gauss_log_like_background"] = table["gauss_log_like"] + 1
    rates = compare(table)
    figure = plotting.plot_win_rates(rates, bands=["r", "i"])
    render(figure)
    error, likelihood = figure.axes
    labels = [label.get_text() for label in error.get_yticklabels()]
    assert labels[:3] == ["Gaussian", "Gaussian, r", "Gaussian, i"]
    assert "Gaussian plus constant, i" in labels
    assert "PCA" in labels
    for ax, quantity in ((error, "mse"), (likelihood, "like")):
        wanted = sorted(100 * rates["rate"][rates["quantity"] == quantity])
        points = [bars.lines[0].get_xdata() for bars in ax.containers]
        assert_allclose(sorted(np.concatenate(points)), wanted)
        segments = np.concatenate(
            [bars.lines[2][0].get_segments() for bars in ax.containers]
        )
        low = sorted(100 * rates["low"][rates["quantity"] == quantity])
        assert_allclose(sorted(segments[:, 0, 0]), low, atol=1e-9)
    assert "the model and principal components" in figure.get_suptitle()
    # the model alone, as win_rates gives it
    render(plotting.plot_win_rates(win_rates(table)))
    with pytest.raises(ValueError, match="no galaxy was measured"):
        plotting.plot_win_rates(rates[:0])
