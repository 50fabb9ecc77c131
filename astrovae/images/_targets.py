# Licensed under a 3-clause BSD style license - see LICENSE
"""What cleaning tells about the target of each cutout."""

import numpy as np

from astrovae.flags import Flag
from astrovae.images._neighbors import dilate

__all__ = ["MIN_SNR", "excess_variance", "measure_targets", "psf_sigmas"]

# a target with less S/N than this hardly stands out of the noise
MIN_SNR = 5.0
# its centroid is no farther than this from the centre, in pixels
_MAX_DISTANCE = 3.0
# the blur is compared with it out to so many sigmas, if so much of it is seen
_PSF_REACH, _PSF_SHARE = 4.0, 0.5


def psf_sigmas(psf):
    """
    The sigma of the Gaussian as wide at half maximum as each PSF.

    Parameters
    ----------
    psf : `~numpy.ndarray`, shape (n, ky, kx, n_bands)

    Returns
    -------
    sigma : `~numpy.ndarray`, shape (n, n_bands)
        In pixels; NaN where the PSF is not positive.
    """
    peak = psf.max(axis=(1, 2), keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = psf / peak
        # whole pixels make steps of the area: count those near the level in part
        area = np.clip((level - 0.5) / 0.1 + 0.5, 0, 1).sum(axis=(1, 2))
    sigma = np.sqrt(area / np.pi / (2 * np.log(2)))
    return np.where((peak > 0)[:, 0, 0], sigma, np.nan)


def measure_targets(data, level, bad, segmentation, labels, rms, centers):
    """
    Measure S/N, centre and neighbours inside the isophotes.

    Only pixels with sources are looked at: most pixels have none.

    Parameters
    ----------
    data : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
        The images.
    level : `~numpy.ndarray`, shape (n, n_bands)
        Their sky.
    bad : `~numpy.ndarray` of bool, shape (n, ny, nx, n_bands)
        Pixels that were bad before neighbours were masked.
    segmentation, labels
        Of the sources and of the targets.
    rms : `~numpy.ndarray`, shape (n, n_bands)
        Scatter of the sky, NaN where unknown.
    centers : `~numpy.ndarray`, shape (n, 2)
        Where targets should be, x and y in pixels of the cutout.

    Returns
    -------
    columns : dict of `~numpy.ndarray`, shape (n,)
        ``snr``, ``center_distance``, ``neighbor_fraction`` and
        ``neighbor_overlap``; NaN where there is no target.
    flags : `~numpy.ndarray` of int, shape (n,)
    centroids : `~numpy.ndarray`, shape (n, 2)
        x and y in pixels of the cutout; NaN where there is no target.
    """
    n, ny, nx, n_bands = data.shape
    known = np.isfinite(rms) & (rms > 0)
    weight = np.divide(1, rms**2, out=np.zeros_like(rms), where=known)
    # the best sum of bands for a source that is equally bright in all, in units
    # of its own noise
    norm = np.sqrt(weight.sum(axis=1))
    usable = norm > 0
    weight = (weight / np.where(usable, norm, 1)[:, np.newaxis]).astype(np.float32)
    pixels = np.flatnonzero(segmentation > 0)
    counts = (segmentation > 0).reshape(n, ny * nx).sum(axis=1)
    rows = np.repeat(np.arange(n), counts)
    light = data.reshape(-1, n_bands)[pixels] - level.astype(np.float32)[rows]
    light[bad.reshape(-1, n_bands)[pixels]] = 0
    light = (light * weight[rows]).sum(axis=1)
    sources = segmentation.ravel()[pixels]
    own = sources == labels[rows]
    around = np.bincount(rows[~own], light[~own], n)
    overlap = _mirrored_light(light, rows, pixels, sources, own, (n, ny, nx))
    rows, light, pixels = rows[own], light[own], pixels[own] % (ny * nx)
    area, flux = np.bincount(rows, minlength=n), np.bincount(rows, light, n)
    found = (area > 0) & usable
    positive = np.maximum(light, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        snr, fraction, overlap = flux / np.sqrt(area), around / flux, overlap / flux
        total = np.bincount(rows, positive, n)
        x, y = (
            np.bincount(rows, positive * place, n) / total
            for place in (pixels % nx, pixels // nx)
        )
    centroids = np.stack([x, y], axis=1)
    distance = np.hypot(*(centroids - centers).T)
    columns = {
        "snr": np.where(found, snr, np.nan),
        "center_distance": np.where(found, distance, np.nan),
        "neighbor_fraction": np.where(found & (flux > 0), fraction, np.nan),
        "neighbor_overlap": np.where(found & (flux > 0), overlap, np.nan),
    }
    with np.errstate(invalid="ignore"):
        flags = np.where(found & ~(snr >= MIN_SNR), Flag.LOW_SNR, 0)
        flags |= np.where(found & (distance > _MAX_DISTANCE), Flag.OFF_CENTER, 0)
        flags |= np.where(found & (fraction > 1), Flag.CROWDED, 0)
    return columns, flags.astype(np.int32), centroids


def _mirrored_light(light, rows, pixels, sources, own, shape):
    """
    How much light of neighbours lies inside the target, if they are symmetric.

    Light of a neighbour that a half turn about its brightest pixel brings into the
    target is there as well; the segmentation gave it to the target.

    Parameters
    ----------
    light, rows, pixels, sources : `~numpy.ndarray`, shape (n_pixels,)
        Of all pixels with sources: light, cutout, place and label.
    own : `~numpy.ndarray` of bool, shape (n_pixels,)
        Those of the targets.
    shape : tuple of int
        ``(n, ny, nx)``.

    Returns
    -------
    overlap : `~numpy.ndarray`, shape (n,)
    """
    n, ny, nx = shape
    target = np.zeros(n * ny * nx, bool)
    target[pixels[own]] = True
    # far from targets, half a turn leads nowhere
    near = dilate(target.reshape(shape), 1).ravel()
    touching = np.zeros(n, bool)
    touching[rows[near[pixels] & ~own]] = True
    some = touching[rows] & ~own
    light, rows = light[some], rows[some]
    keys = rows * (int(sources.max(initial=0)) + 1) + sources[some]
    _, group = np.unique(keys, return_inverse=True)
    peak = np.zeros(group.max(initial=-1) + 1)
    np.maximum.at(peak, group, light)
    brightest = light == peak[group]
    place = pixels[some] % (ny * nx)
    inside, mirrored = True, []
    for at, size in ((place // nx, ny), (place % nx, nx)):
        center = np.zeros(len(peak), np.intp)
        center[group[brightest]] = at[brightest]
        opposite = 2 * center[group] - at
        inside = inside & (opposite >= 0) & (opposite < size)
        mirrored.append(np.clip(opposite, 0, size - 1))
    inside &= target[(rows * ny + mirrored[0]) * nx + mirrored[1]]
    return np.bincount(rows[inside], np.maximum(light[inside], 0), n)


def excess_variance(data, bad, psf, rms, centroids):
    """
    By how much sources are wider than the PSF: the variance of what blurs it.

    A little blur of variance s changes the PSF by s/2 times its Laplacian, and a
    little shift by its gradient. These three and the PSF itself are fitted by least
    squares to the valid pixels around the centroid, in each band. A star
    gives 0 within its uncertainty however bright it is, and however
    much of it is masked.

    Parameters
    ----------
    data : `~numpy.ndarray`, shape (n, ny, nx, n_bands)
        Without sky.
    bad : `~numpy.ndarray` of bool, shape (n, ny, nx, n_bands)
        Pixels that do not count.
    psf : `~numpy.ndarray`, shape (n or 1, ky, kx, n_bands)
    rms : `~numpy.ndarray`, shape (n, n_bands)
        Noise of a pixel.
    centroids : `~numpy.ndarray`, shape (n, 2)
        x and y in pixels, NaN where there is no source.

    Returns
    -------
    excess, excess_err : `~numpy.ndarray`, shape (n,)
        The mean of bands in units of the variance of the PSF, weighted, and its
        uncertainty; NaN where too little is seen.
    """
    n, *shape, n_bands = data.shape
    sigmas = psf_sigmas(psf)
    reach = int(np.ceil(_PSF_REACH * np.nanmax(sigmas, initial=1.0)))
    reach = min(reach, (min(psf.shape[1:3]) - 1) // 2)
    steps = np.arange(-reach, reach + 1)
    index, valid = [np.arange(n)[:, np.newaxis, np.newaxis]], True
    for axis, size in enumerate(shape):
        at = np.nan_to_num(centroids[:, 1 - axis], nan=-2 * size)
        at = np.rint(at).astype(int)[:, np.newaxis] + steps
        at = np.expand_dims(at, 2 - axis)
        valid = valid & (at >= 0) & (at < size)
        index.append(np.clip(at, 0, size - 1))
    index = tuple(index)
    light = data[index].reshape(n, -1, n_bands)
    valid = (valid[..., np.newaxis] & ~bad[index]).reshape(light.shape)
    middle = [
        slice(size // 2 - reach, size // 2 + reach + 1) for size in psf.shape[1:3]
    ]
    total, weight = np.zeros((2, n))
    for band in range(n_bands):
        basis = _psf_basis(psf[..., band])[:, :, middle[0], middle[1]]
        basis = basis.reshape(*basis.shape[:2], -1)
        seen = np.where(valid[..., band], basis[:, 0] ** 2, 0).sum(axis=1)
        seen /= (basis[:, 0] ** 2).sum(axis=1)
        some = (seen > _PSF_SHARE) & (rms[:, band] > 0)
        masked = basis * valid[:, np.newaxis, :, band]
        normal = masked @ basis.transpose(0, 2, 1)
        normal[~some] = np.eye(4)
        covariance = np.linalg.inv(normal)
        image = np.where(valid[..., band], light[..., band], 0)[..., np.newaxis]
        flux, x, y, wider = (covariance @ (masked @ image))[..., 0].T
        some &= flux > MIN_SNR * rms[:, band] * np.sqrt(covariance[:, 0, 0])
        flux, scale = np.where(some, flux, 1), sigmas[:, band] ** 2
        excess = (wider / flux - ((x / flux) ** 2 + (y / flux) ** 2) / 2) / scale
        error = rms[:, band] * np.sqrt(covariance[:, 3, 3]) / flux / scale
        one = np.where(some & (error > 0), error, np.inf) ** -2
        total, weight = total + np.where(some, excess, 0) * one, weight + one
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / weight, np.where(weight > 0, weight**-0.5, np.nan)


def _psf_basis(psf):
    """PSFs, their derivatives, and half their Laplacians; shape (n, 4, ky, kx)."""
    psf = np.pad(psf.astype(float), ((0, 0), (1, 1), (1, 1)))
    inner = psf[:, 1:-1, 1:-1]
    left, right = psf[:, 1:-1, :-2], psf[:, 1:-1, 2:]
    down, up = psf[:, :-2, 1:-1], psf[:, 2:, 1:-1]
    laplacian = left + right + down + up - 4 * inner
    planes = inner, (left - right) / 2, (down - up) / 2, laplacian / 2
    basis = np.stack(planes, axis=1)
    total = inner.sum(axis=(1, 2))[:, np.newaxis, np.newaxis, np.newaxis]
    return basis / np.where(total > 0, total, 1)
