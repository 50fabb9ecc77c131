# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of measure_pose, align and unalign, and of the pose of a stack."""

import json

import numpy as np
import pytest
from astropy.table import QTable, Table
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.catalog import COLUMNS, add_pose
from astrovae.datasets import make_galaxies
from astrovae.exceptions import FlaggedRowsWarning
from astrovae.flags import Flag
from astrovae.images import CutoutStack, align, clean_cutouts, measure_pose, unalign

IDENTITY = [0, 0, 0, 1, 1]


def difference(first, second, period=2 * np.pi):
    """Return the difference of two angles, between plus and minus half a period."""
    return (first - second + period / 2) % period - period / 2


def to_observed(u, v, x, y, angle, flip):
    """Return where a point of the aligned frame lies, as the documentation says."""
    return (
        x + np.cos(angle) * u - np.sin(angle) * flip * v,
        y + np.sin(angle) * u + np.cos(angle) * flip * v,
    )


def blobs(pose, points, shape=(41, 44)):
    """Draw blobs of (u, v, amplitude, sigma_u, sigma_v), given in the aligned frame."""
    y, x = (i - (n - 1) / 2 for i, n in zip(np.indices(shape), shape, strict=True))
    images = np.zeros((len(pose), *shape))
    for image, (x0, y0, angle, flip, _) in zip(images, pose, strict=True):
        # the inverse of the map
        dx, dy = x - x0, y - y0
        along = np.cos(angle) * dx + np.sin(angle) * dy
        across = flip * (np.cos(angle) * dy - np.sin(angle) * dx)
        there = to_observed(along, across, x0, y0, angle, flip)
        assert_allclose(there, (x, y), atol=1e-12)
        for u, v, amplitude, sigma_u, sigma_v in points:
            r2 = ((along - u) / sigma_u) ** 2 + ((across - v) / sigma_v) ** 2
            image += amplitude * np.exp(-0.5 * r2)
    return images


def random_pose(rng, n):
    """Draw poses from the whole circle and both hands."""
    pose = np.empty((n, 5))
    pose[:, :2] = rng.uniform(-2, 2, (n, 2))
    pose[:, 2] = rng.uniform(-np.pi, np.pi, n)
    pose[:, 3] = rng.choice([-1, 1], n)
    pose[:, 4] = 3.0
    return pose


@pytest.fixture
def stack():
    """Return galaxies with noise in two bands, some pixels masked."""
    _, stack = make_galaxies(20, shape=32, bands=("g", "r"), seed=5)
    mask = np.random.default_rng(3).random(stack.data.shape) < 0.03
    return stack.replace(mask=mask)


class TestTruth:
    """What is measured is what was put in."""

    @pytest.mark.parametrize("options", [{}, {"bands": ("g", "r", "i"), "gain": 10}])
    def test_errors(self, options):
        """Centre and angle are within one sigma of the truth for 68 percent."""
        truth, stack = make_galaxies(1000, shape=40, seed=3, **options)
        columns = measure_pose(stack).pose_columns
        for axis in ("x", "y"):
            deviation = columns[f"pose_{axis}"] - truth[axis].value
            share = np.mean(np.abs(deviation) < columns[f"pose_{axis}_err"])
            assert abs(share - 0.68) < 0.05
        flat = np.asarray(truth["axis_ratio"]) < 0.8
        angle = np.asarray(getattr(truth["angle"], "unmasked", truth["angle"]).value)
        deviation = difference(columns["pose_angle"], angle, 180)
        within = np.abs(deviation) < columns["pose_angle_err"]
        assert abs(within[flat].mean() - 0.68) < 0.05

    def test_gaussians(self, rng):
        """Gaussians are recovered; pixels that miss do not matter."""
        pose = random_pose(rng, 30)
        data = blobs(pose, [(0, 0, 10, 4.5, 2.0)])
        mask = rng.random(data.shape) < 0.1
        data[mask] = 1e6
        result = measure_pose(CutoutStack(data, mask=mask, error=np.ones(data.shape)))
        assert_allclose(result.pose["x"], pose[:, 0], atol=1e-6)
        assert_allclose(result.pose["y"], pose[:, 1], atol=1e-6)
        angle = difference(result.pose["angle"], pose[:, 2], np.pi)
        assert_allclose(angle, 0, atol=1e-6)
        assert_allclose(result.pose["size"], 3, rtol=1e-6)
        assert_allclose(result.pose["axis_ratio"], 2 / 4.5, rtol=1e-6)
        assert (result.flags == 0).all()

    def test_closed_form_errors(self):
        """The Cramer-Rao bound of an elliptical Gaussian in white noise."""
        sigma_u, sigma_v, snr = 4.0, 2.0, 10.0
        pose = np.array([[0, 0, 0, 1, 1], [0.3, 0.2, np.pi / 2, 1, 1]])
        data = blobs(pose, [(0, 0, snr, sigma_u, sigma_v)], shape=(48, 48))
        result = measure_pose(CutoutStack(data, error=np.ones(data.shape))).pose
        total = np.sqrt(np.pi * sigma_u * sigma_v) * snr
        along, across = np.sqrt(2) * np.array([sigma_u, sigma_v]) / total
        assert_allclose(result["x_err"], [along, across], rtol=1e-5)
        assert_allclose(result["y_err"], [across, along], rtol=1e-5)
        # flattening of the ellipse, seen from where it is a circle
        flat = sigma_u / sigma_v - sigma_v / sigma_u
        assert_allclose(result["angle_err"], 2 / flat / total, rtol=1e-5)
        assert_allclose(result["axis_ratio_err"], 2 * 0.5 / total, rtol=1e-5)
        assert_allclose(result["size_err"], np.sqrt(8) / total, rtol=1e-5)

    def test_brighter_side(self, rng):
        """It is at +u and +v; angle and flip follow the documented map."""
        pose = random_pose(rng, 40)
        data = blobs(pose, [(0, 0, 10, 4.0, 2.0), (8, 0, 1, 1.5, 1.5)])
        data += blobs(pose, [(0, 5, 1.5, 1.5, 1.5)])
        result = measure_pose(CutoutStack(data)).pose
        assert_array_equal(result["flip"], pose[:, 3])
        assert np.abs(difference(result["angle"], pose[:, 2])).max() < 0.1
        assert (np.abs(result["angle"]) <= np.pi).all()

    def test_bands_share_the_pose(self, rng):
        """A band without signal adds none of its noise, a second one helps."""
        pose = random_pose(rng, 50)
        model = blobs(pose, [(0, 0, 4, 3.0, 1.5)])
        noise = rng.normal(size=(3, *model.shape))
        bands = np.stack([model + noise[0], noise[1], model + noise[2]], axis=-1)
        stacks = [
            CutoutStack(bands[..., index], error=np.ones(bands[..., index].shape))
            for index in ([0], [0, 1], [0, 1, 2])
        ]
        one, empty, two = (measure_pose(stack).pose for stack in stacks)
        change = (empty["x"] - one["x"]) / one["x_err"]
        assert np.sqrt(np.mean(change**2)) < 0.2
        assert_allclose(np.median(two["x_err"] / one["x_err"]), 0.5**0.5, rtol=0.05)

    def test_photon_noise(self):
        """Size and shape do not depend on how bright the galaxy is."""
        _, quiet = make_galaxies(200, shape=40, snr=(100, 200), seed=1)
        _, loud = make_galaxies(200, shape=40, snr=(100, 200), seed=1, gain=1)
        ratio = measure_pose(loud).pose["size"] / measure_pose(quiet).pose["size"]
        assert_allclose(np.median(ratio), 1, atol=0.02)

    def test_round(self, rng):
        """A circle has no angle, and says so; an ellipse does not."""
        pose = random_pose(rng, 60)
        noise = rng.normal(size=(60, 41, 44))
        for sigma_u, expected in ((3.0, 1.0), (5.0, 0.0)):
            data = blobs(pose, [(0, 0, 5, sigma_u, 3.0)]) + noise
            result = measure_pose(CutoutStack(data, error=np.ones(data.shape)))
            flagged = (result.flags & Flag.POSE_UNRELIABLE) > 0
            assert abs(flagged.mean() - expected) <= 0.1
            assert (result.pose["angle_err"] <= np.pi / np.sqrt(12)).all()

    def test_blends_are_flagged(self, rng):
        """A companion within the galaxy makes it lopsided; arms and noise do not."""
        pose = random_pose(rng, 60)
        noise = rng.normal(size=(60, 41, 44))
        galaxy = (0, 0, 10, 5.0, 3.0)
        arms = [(6, 2, 2, 2.0, 2.0), (-6, -2, 2, 2.0, 2.0)]
        for parts, expected in (
            ([galaxy], 0.1),
            ([galaxy, *arms], 0.1),
            ([galaxy, (8, 3, 6, 2.0, 2.0)], 1.0),
        ):
            data = blobs(pose, parts) + noise
            mask = rng.random(data.shape) < 0.05
            stack = CutoutStack(data, mask=mask, error=np.ones(data.shape))
            flagged = (measure_pose(stack).flags & Flag.POSE_UNRELIABLE) > 0
            assert abs(flagged.mean() - expected) <= 0.12
        # bright galaxies are never quite symmetric, nor Gaussian
        bright = 100 * blobs(pose, [galaxy, (3, 1, 0.1, 3.0, 3.0), (0, 0, 5, 2, 1)])
        stack = CutoutStack(bright + noise, error=np.ones(noise.shape))
        flagged = (measure_pose(stack).flags & Flag.POSE_UNRELIABLE) > 0
        assert not flagged.any()

    def test_overlap_is_flagged(self):
        """Light of a touching neighbour turns the angle; a column tells of it."""
        _, stack = make_galaxies(4, shape=40, snr=(100, 200), seed=2)
        stack = stack.replace(columns={"neighbor_overlap": [0, 0.01, 0.05, np.nan]})
        other = measure_pose(stack.replace(columns={}))
        new = measure_pose(stack).flags & ~other.flags
        assert new.tolist()[2] & Flag.POSE_UNRELIABLE or (
            other.flags[2] & Flag.POSE_UNRELIABLE
        )
        assert (new[[0, 1, 3]] == 0).all()

    def test_noise_is_estimated(self):
        """Without an error plane, errors are about those with one."""
        _, stack = make_galaxies(50, shape=48, seed=2)
        known, unknown = measure_pose(stack), measure_pose(stack.replace(error=None))
        assert_allclose(unknown.pose["x"], known.pose["x"], atol=1e-5)
        assert_allclose(unknown.pose["x_err"], known.pose["x_err"], rtol=0.3)
        scaled = measure_pose(CutoutStack(1e-9 * stack.data))
        assert_allclose(scaled.pose["angle"], unknown.pose["angle"], atol=1e-4)


def turn(array, way):
    """Turn planes one of eight ways."""
    return np.rot90(array[:, ::-1] if way & 4 else array, way & 3, axes=(1, 2))


class TestSymmetry:
    """A turned image has a turned pose, and the same aligned image."""

    @pytest.mark.parametrize("way", range(8))
    def test_turns_and_mirrors(self, stack, way):
        planes = {name: turn(getattr(stack, name), way) for name in ("data", "mask")}
        turned = measure_pose(CutoutStack(**planes, error=turn(stack.error, way)))
        stack = measure_pose(stack)
        x, y, angle, flip = (stack.pose[name] for name in ("x", "y", "angle", "flip"))
        if way & 4:  # y points the other way
            y, angle, flip = -y, -angle, -flip
        for _ in range(way & 3):  # np.rot90 turns +y to +x
            x, y, angle = y, -x, angle - np.pi / 2
        assert_allclose(turned.pose["x"], x, atol=1e-5)
        assert_allclose(turned.pose["y"], y, atol=1e-5)
        assert_allclose(difference(turned.pose["angle"], angle), 0, atol=1e-5)
        assert_array_equal(turned.pose["flip"], flip)
        for name in ("size", "axis_ratio", "x_err", "angle_err", "size_err"):
            swap = name == "x_err" and way & 1
            other = stack.pose["y_err" if swap else name]
            assert_allclose(turned.pose[name], other, rtol=1e-4)
        first, second = align(stack), align(turned)
        valid = ~(first.mask | second.mask)
        assert (first.mask != second.mask).mean() < 1e-3
        assert_allclose(first.data[valid], second.data[valid], atol=1e-3)

    def test_batches(self, stack):
        """A pose depends on no other row, bit for bit."""
        together = measure_pose(stack).pose
        rows = np.array([13, 2, 19, 2])
        assert_array_equal(measure_pose(stack[rows]).pose, together[rows])
        assert_array_equal(measure_pose(stack[7:8]).pose, together[7:8])

    def test_masked_pixels_are_ignored(self, stack):
        """Whatever is under the mask changes no bit."""
        data, error = stack.data.copy(), stack.error.copy()
        data[stack.mask], error[stack.mask] = 1e30, 1e-30
        other = CutoutStack(data, mask=stack.mask, error=error)
        first, second = measure_pose(stack), measure_pose(other)
        assert_array_equal(first.pose, second.pose)
        for name in ("data", "mask", "error"):
            aligned = (getattr(align(s), name) for s in (first, second))
            assert_array_equal(*aligned)

    def test_inputs_are_not_changed(self, stack):
        planes = ("data", "mask", "error", "flags", "pose")
        posed = measure_pose(stack)
        assert stack.pose is None
        before = {name: getattr(posed, name).tobytes() for name in planes}
        aligned = align(posed)
        unalign(aligned.data, posed.pose)
        measure_pose(posed)
        posed.pose_columns["pose_x"][...] = 7
        posed.batch([0])["pose"][...] = 7
        assert {name: getattr(posed, name).tobytes() for name in planes} == before


class TestBadRows:
    """Rows that cannot be measured are flagged, and disturb no other."""

    def test_bad_rows(self, rng):
        _, stack = make_galaxies(2, shape=24, seed=5)
        data = np.concatenate([stack.data, rng.normal(size=(9, 24, 24, 1))])
        mask = np.zeros(data.shape, bool)
        error = np.ones(data.shape)
        data[2] = np.nan
        data[3] = 0
        data[4] = 100
        data[5] = -np.abs(data[5])
        mask[6] = True
        mask[7] = True
        mask[7, 10:12, 10:13] = False  # six pixels
        data[8] *= 0.5  # noise
        data[9] = np.linspace(0, 100, 24)[:, np.newaxis]  # a slope
        error[10] = 1e30
        result = measure_pose(CutoutStack(data, mask=mask, error=error))
        failed = (result.flags & Flag.POSE_FAILED) > 0
        assert_array_equal(failed, [False] * 2 + [True] * 9)
        assert_array_equal(result.batch(range(2, 11))["pose"], [IDENTITY] * 9)
        assert np.isnan(result.pose["x_err"][2:]).all()
        assert_array_equal(result.pose[:2], measure_pose(stack).pose)
        assert not np.isnan(result.pose[:2].tolist()).any()
        columns = result.pose_columns
        assert np.isnan(columns["pose_x"][2:]).all()
        again = measure_pose(result[:2].replace(flags=[Flag.POSE_FAILED, 0]))
        assert ((again.flags & Flag.POSE_FAILED) == 0).all()

    def test_no_error_plane(self, rng):
        """The noise of constant rows cannot be estimated."""
        data = np.stack([np.zeros((9, 9)), np.ones((9, 9)), rng.normal(size=(9, 9))])
        data[2, 4:] = np.nan
        result = measure_pose(CutoutStack(data))
        assert ((result.flags & Flag.POSE_FAILED) > 0)[:2].all()

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (9, 1), (5, 30)])
    def test_small_cutouts(self, rng, shape):
        result = measure_pose(CutoutStack(rng.normal(size=(4, *shape)) + 3))
        assert np.isfinite(result.batch(range(4))["pose"]).all()
        assert align(result, shape=(3, 4)).image_shape == (3, 4, 1)

    def test_huge_and_tiny_numbers(self):
        _, stack = make_galaxies(3, shape=24, seed=5)
        expected = measure_pose(stack).pose
        for factor in (1e-30, 1e30):
            scaled = stack.replace(
                data=stack.data * np.float32(factor),
                error=stack.error * np.float32(factor),
            )
            pose = measure_pose(scaled).pose
            assert_allclose(pose["angle"], expected["angle"], rtol=1e-4)
            assert_allclose(pose["x_err"], expected["x_err"], rtol=1e-4)

    def test_empty(self):
        empty = measure_pose(CutoutStack(np.zeros((0, 8, 8))))
        assert empty.batch(np.arange(0))["pose"].shape == (0, 5)
        assert align(empty, shape=5).image_shape == (5, 5, 1)
        assert len(empty.pose_columns["pose_x"]) == 0

    def test_not_converged(self):
        _, stack = make_galaxies(3, shape=24, seed=5)
        result = measure_pose(stack, max_iter=2)
        assert ((result.flags & Flag.POSE_NOT_CONVERGED) > 0).all()
        with pytest.raises(ValueError, match="max_iter must be a positive integer"):
            measure_pose(stack, max_iter=0)


class TestAlign:
    """From the observed to the aligned frame and back."""

    def test_features_go_where_the_map_says(self, rng):
        pose = random_pose(rng, 12)
        points = [(0, 0, 10, 4.0, 2.5), (8, 0, 1, 2.0, 2.0), (0, 5, 2.0, 2.0, 2.0)]
        stack = CutoutStack(blobs(pose, points), pose=pose)
        aligned = align(stack, shape=(27, 30))
        expected = blobs(np.array([IDENTITY]), points, shape=(27, 30))
        expected = np.broadcast_to(expected, (12, 27, 30))
        valid = ~aligned.mask[..., 0]
        assert valid.mean() > 0.95
        assert_allclose(aligned.data[..., 0][valid], expected[valid], atol=0.01)
        assert aligned.psf is aligned.pose is None
        back = unalign(aligned.data, stack.pose, shape=(41, 44))
        inside = back != 0
        assert inside.mean() > 0.2
        middle = (slice(None), slice(15, 26), slice(17, 27))
        assert_allclose(back[middle], stack.data[middle], atol=0.05)
        flat = unalign(aligned.data[..., 0], pose, shape=(41, 44))
        assert_allclose(flat, back[..., 0], atol=1e-6)

    def test_psfs_turn_with_their_galaxies(self, rng):
        """About their middle, wherever the galaxy is, and of the same sum."""
        pose = random_pose(rng, 12)
        points = [(0, 0, 1, 3.5, 2.0), (3, 1, 0.3, 1.5, 1.5)]
        centered = pose.copy()
        centered[:, :2] = 0
        psf = np.stack([blobs(centered, points, (31, 31))] * 2, axis=-1)
        psf *= [1.0, 2.0]
        psf[3, ..., 1] = np.nan
        data = np.zeros((12, 9, 9, 2))
        stack = CutoutStack(data, pose=pose, psf=psf)
        before = stack.psf.copy()
        aligned = align(stack, shape=11)
        expected = blobs(np.array([IDENTITY]), points, (31, 31))
        good = np.arange(12) != 3
        assert_allclose(aligned.psf[..., 0], np.repeat(expected, 12, 0), atol=0.01)
        assert_allclose(
            aligned.psf[good, ..., 1], np.repeat(2 * expected, 11, 0), atol=0.02
        )
        total = aligned.psf[good].sum(axis=(1, 2))
        assert_allclose(total, psf[good].sum(axis=(1, 2)), rtol=1e-5)
        assert np.isnan(aligned.psf[3, ..., 1]).all()
        assert_array_equal(stack.psf, before)
        # the same for all galaxies, before: each has its own, after
        shared = align(stack.replace(psf=psf[:1]), shape=11)
        assert_allclose(shared.psf[0], aligned.psf[0], atol=1e-6)
        assert shared.psf.shape == (12, 31, 31, 2)
        assert align(stack[:0], shape=11).psf.shape == (0, 31, 31, 2)
        # an infinite pixel, too, is no PSF
        psf[3, 5, 5, 0] = np.inf
        for order in (1, 3):
            aligned = align(stack.replace(psf=psf), shape=11, order=order)
            assert np.isnan(aligned.psf[3]).all()
            assert np.isfinite(aligned.psf[good]).all()

    def test_identity(self, stack):
        """The identity changes nothing."""
        stack = stack.replace(
            pose=[IDENTITY] * 20, segmentation=np.ones((20, 32, 32), int)
        )
        aligned = align(stack)
        assert_array_equal(aligned.mask, stack.mask)
        good = ~stack.mask
        assert_allclose(aligned.data[good], stack.data[good], atol=1e-3)
        assert_allclose(aligned.error[good], stack.error[good])
        assert_array_equal(aligned.segmentation, stack.segmentation)

    def test_measured_again(self):
        """An aligned galaxy has the pose of one."""
        _, stack = make_galaxies(30, shape=48, snr=(100, 200), seed=2)
        pose = measure_pose(align(measure_pose(stack)))
        flat = pose.pose["axis_ratio"] < 0.8
        assert_allclose(
            pose.batch(np.flatnonzero(flat))["pose"][:, :4],
            [IDENTITY[:4]] * flat.sum(),
            atol=0.02,
        )

    def test_refused(self, stack):
        with pytest.raises(ValueError, match=r"Call measure_pose\(stack\) first"):
            align(stack)
        with pytest.raises(ValueError, match="order must be one of 0, 1"):
            align(measure_pose(stack), order=6)
        with pytest.raises(ValueError, match="got 20 poses for 3 cutouts"):
            unalign(stack.data[:3], measure_pose(stack).pose)


class TestStack:
    """Pose is a column of a stack."""

    def test_round_trip(self, stack, tmp_path):
        stack = measure_pose(stack)
        stack.write(tmp_path / "stack.h5")
        back = CutoutStack.read(tmp_path / "stack.h5")
        rows = [3, 1, 1]
        for other in (back, back.replace(), stack.replace(meta={"a": 1})):
            assert_array_equal(other.pose, stack.pose)
            assert_array_equal(other[rows].pose, stack.pose[rows])
            batch = other.batch(rows)["pose"]
            assert batch.dtype == np.float32
            expected = [
                stack.pose[name][rows] for name in ("x", "y", "angle", "flip", "size")
            ]
            assert_array_equal(batch, np.stack(expected, axis=1).astype("f4"))
        assert "pose" not in stack.replace(pose=None).batch([0])

    def test_from_arrays(self, rng):
        images = np.ones((4, 8, 8))
        pose = random_pose(rng, 4)
        stack = CutoutStack(images, pose=pose)
        assert_array_equal(stack.batch(range(4))["pose"], pose.astype("f4"))
        pose[1, 2] = np.nan
        stack = CutoutStack(images, pose=np.ma.array(pose, mask=np.eye(4, 5)))
        expected = [Flag.POSE_FAILED] * 4
        assert_array_equal(stack.flags, expected)
        assert_array_equal(stack.batch(range(4))["pose"], [IDENTITY] * 4)
        with pytest.raises(ValueError, match="got 3 poses for 4 cutouts"):
            CutoutStack(images, pose=pose[:3])
        with pytest.raises(ValueError, match=r"shape \(n, 5\); got an array of shape"):
            CutoutStack(images, pose=pose[:, :3])

    @pytest.mark.parametrize("kind", [Table, QTable])
    def test_from_table(self, stack, kind):
        """Columns go to a catalogue and come back."""
        data = stack.data.copy()
        data[4] = 0
        stack = measure_pose(stack.replace(data=data))
        with pytest.warns(FlaggedRowsWarning, match="1 of 20 rows"):
            table = add_pose(kind({"id": stack.ids}), stack)
        back = stack.replace(pose=table, flags=None)
        for name in stack.pose.dtype.names:
            assert_allclose(back.pose[name], stack.pose[name], rtol=1e-12, atol=1e-12)
        assert_array_equal((back.flags & Flag.POSE_FAILED) > 0, np.arange(20) == 4)
        names = {name for name in COLUMNS if name.startswith("pose_")}
        assert set(table.colnames) == {"id", *names}
        few = Table(table[["pose_x", "pose_y", "pose_angle"]])
        assert_array_equal(stack.replace(pose=few).pose["size"], np.ones(20))
        with pytest.raises(ValueError, match="lacks pose_angle"):
            stack.replace(pose=few[["pose_x", "pose_y"]])

    def test_prepare(self, stack):
        """A model that was trained with a pose gets one."""
        posed = align(measure_pose(clean_cutouts(stack), max_iter=20))
        record = json.loads(json.dumps(posed.preprocessing))
        prepared = stack.prepare(record)
        assert_array_equal(prepared.data, posed.data)
        posed = measure_pose(clean_cutouts(stack))
        prepared = clean_cutouts(stack).prepare(posed.preprocessing)
        assert_array_equal(prepared.pose, posed.pose)


def test_known_poses_get_their_brighter_sides():
    # the centre, angle and shape of the main blob are what is known
    pose = np.array([[1.5, -2, 0.4, 1, 3], [0.3, 0.8, 2.5, -1, 3], [-2, 1, -2, -1, 3]])
    images = blobs(
        pose, [(0, 0, 100, 4, 2.25), (5, 0, 4, 1.5, 1.5), (0, 4, 4, 1.5, 1.5)]
    )
    stack = CutoutStack(images, error=np.full(images.shape, 0.1))
    ny, nx = images.shape[1:]
    known = Table(
        {
            "pose_x": pose[:, 0] + (nx - 1) / 2,
            "pose_y": pose[:, 1] + (ny - 1) / 2,
            # of both directions of the axis, not always the right one
            "pose_angle": np.degrees(pose[:, 2] + [0, np.pi, 0]),
            "pose_size": [3.0, 3, 3],
            "pose_axis_ratio": [2.25 / 4] * 3,
        }
    )
    found = measure_pose(stack, known=known)
    assert_allclose(found.pose["x"], pose[:, 0], atol=1e-12)
    assert_allclose(found.pose["y"], pose[:, 1], atol=1e-12)
    assert_allclose(difference(found.pose["angle"], pose[:, 2]), 0, atol=1e-12)
    assert_array_equal(found.pose["flip"], pose[:, 3])
    assert_allclose(found.pose["size"], 3)
    assert_allclose(found.pose["axis_ratio"], 2.25 / 4)
    assert (found.pose["angle_err"] > 0).all()
    assert not found.flags.any()


def test_known_poses_that_cannot_be_used_are_flagged():
    rng = np.random.default_rng(1)
    stack = CutoutStack(rng.normal(size=(4, 20, 20)))
    known = Table(
        {
            "pose_x": [9.5, np.nan, 40, 3],
            "pose_y": [9.5, 9.5, 9.5, 12],
            "pose_angle": [10.0, 20, 30, 40],
            "pose_size": [2.0, 2, 2, 2],
            "pose_axis_ratio": [0.5] * 4,
        }
    )
    found = measure_pose(stack, known=known)
    failed = (found.flags & Flag.POSE_FAILED) > 0
    # noise has a pose if it is known
    assert_array_equal(failed, [False, True, True, False])
    assert_allclose(found.pose["x"], [0, 0, 0, -6.5])
    with pytest.raises(ValueError, match="3 known poses for 4 cutouts"):
        measure_pose(stack, known=known[:3])
    known.remove_column("pose_size")
    with pytest.raises(ValueError, match="lacks pose_size"):
        measure_pose(stack, known=known)
