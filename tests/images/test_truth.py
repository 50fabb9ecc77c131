# Licensed under a 3-clause BSD style license - see LICENSE
"""
What cleaning and pose get right on a simulated survey, whose truth is known.

The survey has all that disturbs: neighbours, stars, photon noise, bad columns and
cosmic rays. The run with 1,000 galaxies is marked slow.
"""

import dataclasses

import numpy as np
import pytest
from astropy.table import Table
from scipy import stats

from astrovae.datasets import make_survey
from astrovae.datasets._scene import draw_stamp, truth_from_table
from astrovae.flags import Flag
from astrovae.images import (
    clean_cutouts,
    detect_sources,
    make_cutouts,
    measure_background,
    measure_pose,
)

SIZE, SKY = 64, 100.0


@dataclasses.dataclass
class Survey:
    """Cutouts of galaxies, and the light of each and of its neighbours."""

    truth: Table
    stack: object
    clean: object
    target: np.ndarray
    neighbors: np.ndarray
    hit: np.ndarray

    @property
    def whole(self):
        """Cutouts that are neither at the edge nor mostly masked."""
        return (self.stack.flags & (Flag.PARTIAL | Flag.MOSTLY_MASKED)) == 0

    def column(self, name):
        """Return a column of the truth as plain numbers."""
        values = getattr(self.truth[name], "unmasked", self.truth[name])
        return np.ma.getdata(np.asarray(getattr(values, "value", values)))


def window(slices, origin):
    """Return where pixels of the image lie in a cutout, and which of them."""
    inside, outside = [], []
    for part, first in zip(slices, origin, strict=True):
        low, high = max(part.start, first), min(part.stop, first + SIZE)
        high = max(low, high)
        inside.append(slice(low - first, high - first))
        outside.append(slice(low - part.start, high - part.start))
    return tuple(inside), tuple(outside)


@pytest.fixture(
    scope="module",
    params=[(250, 0.1), pytest.param((1000, 0.2), marks=pytest.mark.slow)],
)
def survey(request):
    """Return a simulated survey, cut and cleaned as a user would."""
    n, companions = request.param
    side = int(110 * np.sqrt(n))
    truth, image = make_survey(
        n,
        n_stars=n // 7,
        companions=companions,
        shape=(side, side),
        background=SKY,
        gain=5.0,
        kinds=("sersic", "bulge_disc", "spiral", "clumpy_disc"),
        bad_columns=4,
        cosmic_rays=n // 4,
        seed=8,
    )
    _, segments = detect_sources(image, n_sigma=2.0, kernel_fwhm=3.0)
    galaxies = truth[np.asarray(truth["kind"]) != "star"]
    stack = make_cutouts(image, galaxies, SIZE, segmentation=segments)
    model, target = np.zeros((side, side)), np.zeros((n, SIZE, SIZE))
    origin = np.ceil(stack.positions[:, ::-1] - SIZE / 2).astype(int)
    values = truth_from_table(truth, np.arange(len(truth)))
    for row in range(len(truth)):
        one = {name: column[row : row + 1] for name, column in values.items()}
        (place, cut), stamp = draw_stamp(one, (side, side), image.meta["psf_fwhm"])
        stamp = stamp[cut][..., 0]
        model[place] += stamp
        if row < n:
            inside, outside = window(place, origin[row])
            target[row][inside] = stamp[outside]
    xy = Table(stack.positions, names=["x", "y"])
    whole, hit = (
        make_cutouts(plane.astype(float), xy, SIZE).data[..., 0]
        for plane in (model, image.meta["cosmic_rays"][..., 0])
    )
    return Survey(
        galaxies,
        stack,
        clean_cutouts(stack, cosmic_rays=True),
        target,
        np.maximum(whole - target, 0),
        hit > 0,
    )


def test_neighbors(survey):
    """Masks catch 90 % of the neighbours' light, and 2 % of the targets' at most."""
    old = survey.stack.mask[..., 0]
    new = survey.clean.mask[..., 0] & ~old
    own, other = (
        np.where(old, 0, plane) for plane in (survey.target, survey.neighbors)
    )
    total = other.sum(axis=(1, 2))
    some = survey.whole & (total > 0.05 * own.sum(axis=(1, 2)))
    caught = (other * new).sum(axis=(1, 2))[some] / total[some]
    lost = (own * new).sum(axis=(1, 2)) / own.sum(axis=(1, 2))
    assert some.mean() > 0.3
    assert np.median(caught) >= 0.9
    assert np.median(lost[some]) <= 0.02
    assert np.median(lost[survey.whole]) <= 0.02
    # flags tell of them, and the column says how much there is
    flagged = (survey.clean.flags & Flag.NEIGHBOR) > 0
    assert flagged[some].mean() > 0.9
    fraction = survey.clean.columns["neighbor_fraction"][some][caught > 0.5]
    true = (total / own.sum(axis=(1, 2)))[some][caught > 0.5]
    assert stats.spearmanr(true, fraction, nan_policy="omit").statistic > 0.7


def test_background(survey):
    """The sky is right to a tenth of its noise."""
    table = measure_background(survey.stack)
    rms = np.median(table["background_rms"][survey.whole])
    bias = (table["background"][survey.whole] - SKY) / rms
    assert abs(np.median(bias)) < 0.1
    assert abs(np.mean(bias)) < 0.1
    assert (np.abs(bias) < 0.1).mean() > 0.9
    columns = survey.clean.columns
    known = np.isfinite(columns["background"][:, 0])
    assert ((survey.clean.flags & Flag.NO_BACKGROUND) == 0)[known].all()


def test_cosmic_rays(survey):
    """Nearly all of the pixels that were hit are masked, hardly any others."""
    new = survey.clean.mask & ~survey.stack.mask
    stack = survey.stack
    only = clean_cutouts(stack, background=None, neighbors=None, cosmic_rays=True)
    found = (only.mask & ~stack.mask)[..., 0]
    hit = survey.hit & ~stack.mask[..., 0]
    assert found[hit].mean() > 0.95
    assert found[~hit].mean() < 2e-4
    flagged = (only.flags & Flag.COSMIC_RAY) > 0
    assert flagged[hit.any(axis=(1, 2))].all()
    assert flagged[~hit.any(axis=(1, 2))].mean() < 0.04
    assert new[..., 0][found].all()
    lost = (survey.target * (found & ~hit)).sum(axis=(1, 2))
    assert (lost / survey.target.sum(axis=(1, 2)) < 0.05).all()


def test_pose(survey):
    """
    Angles and centres are right within their errors, for 68 % of the galaxies.

    Where the light of other sources within two half-light radii is less than a
    hundredth of the galaxy's: blends that no segmentation resolves disturb the
    others. Most of these have a flag, and galaxies that have none are right more often
    than all together, without any knowledge of the truth.
    Errors say what noise does: spirals and clumpy discs are compared with what is
    measured on their own light without noise.
    """
    tolerance = 0.05 if len(survey.truth) >= 1000 else 0.1
    pose = measure_pose(survey.clean)
    zero = np.zeros(survey.stack.mask.shape, bool)
    quiet = measure_pose(
        survey.stack.replace(
            data=survey.target[..., np.newaxis],
            mask=zero,
            error=np.ones(zero.shape, np.float32),
        )
    )
    flux, others = survey.column("flux"), survey.column("neighbor_flux")
    bad = Flag.POSE_FAILED | Flag.POSE_NOT_CONVERGED
    known = survey.whole & (pose.flags & bad == 0)
    known &= survey.column("axis_ratio") < 0.8
    use = known & (others < 0.01 * flux)
    assert use.sum() > 0.25 * len(use)
    flagged = (pose.flags & Flag.POSE_UNRELIABLE) > 0
    assert flagged[known & (others > 0.1 * flux)].mean() > 0.8
    assert flagged[use].mean() < 0.5
    assert ((pose.flags & bad) == 0)[survey.whole].mean() > 0.95
    kind = np.asarray(survey.truth["kind"])
    smooth = np.isin(kind, ["sersic", "bulge_disc"])
    offset = survey.stack.positions - np.ceil(survey.stack.positions - SIZE / 2)
    offset -= (SIZE - 1) / 2
    expected = {
        "x": np.where(smooth, offset[:, 0], quiet.pose["x"]),
        "y": np.where(smooth, offset[:, 1], quiet.pose["y"]),
        "angle": np.where(
            smooth, np.radians(survey.column("angle")), quiet.pose["angle"]
        ),
    }
    for name, value in expected.items():
        difference = pose.pose[name] - value
        if name == "angle":
            difference = (difference + np.pi / 2) % np.pi - np.pi / 2
        within = np.abs(difference) < pose.pose[f"{name}_err"]
        assert abs(within[use].mean() - 0.68) <= tolerance, name
        assert within[known & ~flagged].mean() > within[known].mean(), name


def test_recentred(survey):
    """Moved by a fraction of a pixel, galaxies keep their flux and become central."""
    shift = make_cutouts_of_targets(survey)
    before = survey.target[survey.whole].sum(axis=(1, 2))
    after = shift.data[..., 0].astype(float).sum(axis=(1, 2))
    # what matters is at the edge of the cutout, where light comes in and goes out
    inner = survey.column("half_light_radius")[survey.whole] < 4
    assert inner.sum() > 30
    change = np.abs(after / before - 1)
    assert np.median(change[inner]) < 1e-4
    assert (change[inner] < 1e-3).mean() > 0.95
    moved = np.hypot(shift.columns["shift_x"], shift.columns["shift_y"])
    assert moved.mean() > 0.3


def make_cutouts_of_targets(survey):
    """Return the targets' own light, recentred, on a montage with wide margins."""
    rows = np.flatnonzero(survey.whole)
    step = SIZE + 24
    n_across = int(np.ceil(np.sqrt(len(rows))))
    montage = np.zeros((n_across * step, n_across * step))
    xy = np.zeros((len(rows), 2))
    for number, row in enumerate(rows):
        y, x = (12 + step * k for k in divmod(number, n_across))
        montage[y : y + SIZE, x : x + SIZE] = survey.target[row]
        position = survey.stack.positions[row]
        xy[number] = position - np.ceil(position - SIZE / 2) + [x, y]
    table = Table(xy, names=["x", "y"])
    return make_cutouts(montage, table, SIZE, recenter=True)
