# Licensed under a 3-clause BSD style license - see LICENSE
"""Cutouts as surveys and simulators give them out."""

import io
import zipfile
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
from astropy.io import fits
from astropy.nddata import InverseVariance, NDData
from astropy.table import Table

from astrovae._validation import check_shape
from astrovae.flags import Flag
from astrovae.images._pictures import center_on, unpack, warn_unreadable
from astrovae.images.cutouts import make_cutouts
from astrovae.images.stack import CutoutStack

__all__ = ["read_galsim_catalog", "read_hsc_blends", "read_multimodal_universe"]

_HSC_BANDS, _HSC_PIXEL_SCALE = ("g", "r", "i", "z", "y"), 0.168
# the keys that images have in the Multimodal Universe
_FLUX_KEYS = ("flux", "array")
_ID_KEYS = ("object_id", "id")


def read_multimodal_universe(source, *, good_mask=None, unit=None):
    """
    Read images in the schema of the Multimodal Universe.

    Parameters
    ----------
    source : path-like, sequence of dict, or mapping
        An HDF5 file with ``image_array`` (or ``image_flux``), ``image_band``,
        ``image_mask``, ``image_ivar``, ``image_psf_fwhm``, ``image_scale`` and
        ``object_id``; or rows as the library ``datasets`` gives them, each with
        ``image``, which holds ``band``, ``flux``, ``mask``, ``ivar``,
        ``psf_fwhm`` and ``scale`` for each band; or a mapping of columns.
    good_mask : bool, optional
        Whether ``mask`` is `True` where pixels are good, on which the surveys
        differ. By default it is what agrees better with ``ivar > 0``.
    unit : str or `~astropy.units.Unit`, optional
        Unit of the fluxes, which the schema does not say.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        With errors from the inverse variance; pixels without any are masked.
        ``columns["psf_fwhm"]``, of shape (n, n_bands), is as in the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If what the schema asks for is missing, or rows differ in bands, shape
        or pixel scale.

    References
    ----------
    The Multimodal Universe Collaboration 2024, NeurIPS (arXiv:2412.02527)

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.images import read_multimodal_universe
    >>> image = {"band": ["g", "r"], "flux": np.ones((2, 8, 8)),
    ...          "ivar": np.ones((2, 8, 8)), "mask": np.ones((2, 8, 8), bool),
    ...          "psf_fwhm": [1.1, 0.9], "scale": [0.26, 0.26]}
    >>> read_multimodal_universe([{"image": image, "object_id": "7"}])
    <CutoutStack: 1 cutouts of 8 x 8 pixels, 2 bands (g, r), with error>
    """
    if isinstance(source, (str, Path)):
        columns = _read_hdf5(Path(source))
    elif hasattr(source, "keys") or hasattr(source, "colnames"):
        columns = _columns_of_rows([{"image": one} for one in source["image"]])
        names = getattr(source, "colnames", None) or list(source.keys())
        key = next((name for name in _ID_KEYS if name in names), None)
        columns["id"] = None if key is None else np.asarray(source[key])
    else:
        columns = _columns_of_rows(list(source))
    flux, bands = columns["flux"], columns["band"]
    if flux.ndim != 4 or flux.shape[1] != len(bands):
        msg = (
            f"the fluxes must have the shape (n, {len(bands)}, ny, nx) for the bands "
            f"{bands}, got {flux.shape}."
        )
        raise ValueError(msg)
    mask, error = np.zeros(flux.shape, bool), None
    ivar = columns.get("ivar")
    if ivar is not None:
        known = np.isfinite(ivar) & (ivar > 0)
        error = 1 / np.sqrt(np.where(known, ivar, 1))
        mask |= ~known
    if columns.get("mask") is not None:
        given = np.asarray(columns["mask"]).astype(bool)
        given = given[:, np.newaxis] if given.ndim == 3 else given
        given = np.broadcast_to(given, flux.shape)
        if good_mask is None:
            good_mask = (given == ~mask).mean() >= 0.5
        mask |= ~given if good_mask else given
    scale = columns.get("scale")
    pixel_scale = None
    if scale is not None and np.size(scale):
        pixel_scale = float(np.ravel(scale)[0])
        if not np.allclose(scale, pixel_scale, rtol=1e-3):
            msg = f"images differ in pixel scale, {np.unique(scale)}: read them apart."
            raise ValueError(msg)
    further = {}
    if columns.get("psf_fwhm") is not None:
        further["psf_fwhm"] = np.asarray(columns["psf_fwhm"], float)
    ids = columns.get("id")
    if ids is not None and np.asarray(ids).dtype.kind == "S":
        ids = np.char.decode(ids, "utf-8")
    return CutoutStack(
        np.moveaxis(flux, 1, -1),
        mask=np.moveaxis(mask, 1, -1),
        error=None if error is None else np.moveaxis(error, 1, -1),
        bands=bands,
        pixel_scale=pixel_scale,
        unit=unit,
        ids=ids,
        columns=further,
    )


def _read_hdf5(path):
    """The columns of a file of the Multimodal Universe."""
    if not path.is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    try:
        with h5py.File(path, "r") as file:
            key = next((k for k in _ID_KEYS if k in file), None)
            columns = {"id": None if key is None else np.asarray(file[key])}
            for name in ("flux", "array", "band", "mask", "ivar", "psf_fwhm", "scale"):
                if f"image_{name}" in file:
                    columns[name] = np.asarray(file[f"image_{name}"])
    except OSError as error:
        msg = f"{path} is not a readable HDF5 file: {error}."
        raise ValueError(msg) from error
    columns.setdefault("flux", columns.pop("array", None))
    if columns["flux"] is None or "band" not in columns:
        msg = f"{path} has no image_array and image_band: it is of another schema."
        raise ValueError(msg)
    band = np.atleast_2d(columns["band"])
    if (band != band[:1]).any():
        msg = f"rows of {path} differ in bands: read them apart."
        raise ValueError(msg)
    columns["band"] = _text(band[0])
    if columns["id"] is not None and columns["id"].dtype.kind == "O":
        columns["id"] = np.array(_text(columns["id"]))
    return columns


def _text(values):
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def _columns_of_rows(rows):
    """Columns from rows that hold one image each."""
    if not rows:
        msg = "there are no rows: give at least one."
        raise ValueError(msg)
    columns = {}
    images = []
    for row in rows:
        image = row["image"]
        if not hasattr(image, "keys"):
            # a list with one dict for each band
            image = {key: [one[key] for one in image] for key in image[0]}
        images.append(image)
    first = images[0]
    flux = next((key for key in _FLUX_KEYS if key in first), None)
    if flux is None or "band" not in first:
        msg = f"images must have 'band' and 'flux', they have {sorted(first)}."
        raise ValueError(msg)
    bands = _text(first["band"])
    for number, image in enumerate(images):
        if _text(image["band"]) != bands:
            msg = (
                f"row {number} has the bands {_text(image['band'])}, the first row "
                f"{bands}: read them apart."
            )
            raise ValueError(msg)
    for key in (flux, "mask", "ivar", "psf_fwhm", "scale"):
        if key in first:
            try:
                values = np.stack([np.asarray(image[key]) for image in images])
            except ValueError as error:
                msg = f"rows differ in the shape of {key!r}: read them apart."
                raise ValueError(msg) from error
            columns["flux" if key == flux else key] = values
    columns["band"] = bands
    key = next((key for key in _ID_KEYS if key in rows[0]), None)
    if key is not None:
        columns["id"] = np.asarray([row[key] for row in rows])
    return columns


def read_galsim_catalog(path, *, shape=None):
    """
    Read galaxies in the format of GalSim's ``RealGalaxyCatalog``.

    Stamps differ in size: they are put, centre on centre, into cutouts of one
    shape, and what they do not reach is masked.

    Parameters
    ----------
    path : path-like
        The catalogue; its files of images and PSFs lie beside it.
    shape : int or (int, int), optional
        Size of the cutouts; by default that of the largest stamp.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        With ``error``, the square root of the catalogue's ``NOISE_VARIANCE``,
        which lacks the galaxy's own photon noise, and does not say that it is
        correlated between pixels; ``psf``; and the columns ``mag`` and
        ``weight`` of the catalogue. Damaged stamps are masked and flagged.

    Raises
    ------
    FileNotFoundError
        If the catalogue is not there.
    ValueError
        If it is no such catalogue, or none of its images can be read.

    References
    ----------
    Mandelbaum, R., et al. 2012, MNRAS, 420, 1518 (arXiv:1107.4629)

    Examples
    --------
    >>> from astrovae.images import read_galsim_catalog
    >>> stack = read_galsim_catalog("real_galaxy_catalog.fits")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    try:
        table = Table.read(path, format="fits")
    except Exception as error:
        msg = f"{path} is not a readable catalogue: {error}."
        raise ValueError(msg) from error
    needed = {"IDENT", "GAL_FILENAME", "GAL_HDU", "PSF_FILENAME", "PSF_HDU"}
    missing = needed.difference(table.colnames)
    if missing:
        msg = f"{path} is no RealGalaxyCatalog: it lacks {', '.join(sorted(missing))}."
        raise ValueError(msg)
    stamps, kernels, reasons = {}, {}, {}
    for kind, images in (("GAL", stamps), ("PSF", kernels)):
        _read_stamps(path.parent, table, kind, images, reasons)
    rows = [row for row in range(len(table)) if row not in reasons]
    if not rows:
        msg = f"no image of {path} can be read: {reasons.get(0, 'it is empty')}."
        raise ValueError(msg)
    if shape is None:
        shape = np.max([stamps[row].shape[:2] for row in rows], axis=0).tolist()
    shape = check_shape("shape", shape)
    size = np.max([kernels[row].shape[:2] for row in rows], axis=0)
    n = len(table)
    data, mask = np.zeros((n, *shape, 1), np.float32), np.ones((n, *shape, 1), bool)
    psf = np.zeros((n, *(size // 2 * 2 + 1), 1), np.float32)
    for row in rows:
        center_on(stamps[row], data[row], mask[row])
        center_on(kernels[row], psf[row])
    psf[list(reasons)] = psf[rows[0]]
    names = table["IDENT"].tolist()
    warn_unreadable(path, names, reasons)
    error = None
    if "NOISE_VARIANCE" in table.colnames:
        sigma = np.sqrt(np.asarray(table["NOISE_VARIANCE"], float))
        error = np.broadcast_to(sigma[:, None, None, None], data.shape)
    flags = np.zeros(n, np.int32)
    flags[list(reasons)] = Flag.UNREADABLE
    scale = (
        np.asarray(table["PIXEL_SCALE"]) if "PIXEL_SCALE" in table.colnames else None
    )
    same = scale is not None and np.allclose(scale, scale[0], rtol=1e-6)
    columns = {
        name.lower(): np.asarray(table[name], float)
        for name in ("MAG", "WEIGHT")
        if name in table.colnames
    }
    bands = None
    if "BAND" in table.colnames and len(set(table["BAND"])) == 1:
        bands = [str(table["BAND"][0]).strip()]
    return CutoutStack(
        data,
        mask=mask,
        error=error,
        psf=psf,
        bands=bands,
        pixel_scale=float(scale[0]) if same else None,
        ids=np.asarray(table["IDENT"]),
        flags=flags,
        columns=columns,
    )


def _read_stamps(folder, table, kind, images, reasons):
    """Read the images of a kind, each from its HDU, file by file."""
    files = [str(name).strip() for name in table[f"{kind}_FILENAME"]]
    for name in dict.fromkeys(files):
        rows = [row for row, file in enumerate(files) if file == name]
        # a catalogue does not lead out of its folder
        path = folder / Path(name).name
        try:
            with fits.open(path, memmap=False) as hdus:
                for row in rows:
                    try:
                        array = hdus[int(table[f"{kind}_HDU"][row])].data
                        images[row] = np.asarray(array, np.float32)[..., np.newaxis]
                        if images[row].ndim != 3:
                            msg = f"its shape is {images[row].shape[:-1]}"
                            raise ValueError(msg)
                    except Exception as error:
                        reasons[row] = f"{name}: {error or type(error).__name__}"
        except Exception as error:
            reasons |= dict.fromkeys(rows, f"{name}: {error}")


def read_hsc_blends(path, *, shape=64, bands=_HSC_BANDS, pixel_scale=_HSC_PIXEL_SCALE):
    """
    Read footprints of Hyper Suprime-Cam, one cutout around each peak.

    Parameters
    ----------
    path : path-like
        A zip archive of ``.npz`` files, or a folder with them: ``images`` and
        ``weights`` (inverse variance) of shape (n_bands, ny, nx), ``peaks`` of
        shape (n, 2), x and y, and ``psfs`` (n_bands, ky, kx).
    shape : int or (int, int), optional
        Size of the cutouts.
    bands : sequence of str, optional
        Names of the bands.
    pixel_scale : float or `~astropy.units.Quantity`, optional
        Angular size of a pixel; a number is in arcsec.

    Returns
    -------
    stack : `~astrovae.images.CutoutStack`
        Pixels outside the footprint are masked. ``ids`` are
        ``"<footprint>_<peak>"``; ``columns`` have ``footprint`` and ``peak``.

    Raises
    ------
    FileNotFoundError
        If there is no such archive.
    ValueError
        If none of its members can be read.

    Warns
    -----
    ~astropy.utils.exceptions.AstropyUserWarning
        If some members cannot be read; how many peaks they have is not known.

    Examples
    --------
    >>> from astrovae.images import read_hsc_blends
    >>> stack = read_hsc_blends("hsc_blends.zip")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.exists():
        msg = f"There is no folder or file {path}."
        raise FileNotFoundError(msg)
    pieces, reasons, names = [], {}, []
    for name, read in _npz_members(path):
        names.append(name)
        try:
            with np.load(io.BytesIO(read()), allow_pickle=False) as member:
                pieces.append(_footprint(member, name, shape, bands, pixel_scale))
        # damaged archives give errors of many kinds
        except Exception as error:
            reasons[len(names) - 1] = str(error) or type(error).__name__
    if not pieces:
        reason = reasons.get(0, "there is no .npz file")
        msg = f"no footprint in {path} can be read: {reason}."
        raise ValueError(msg)
    warn_unreadable(path, names, reasons)
    return CutoutStack.concatenate(pieces)


def _npz_members(path):
    """The names of footprints, and functions that read them."""
    if path.is_dir():
        for file in sorted(path.glob("*.npz")):
            yield file.stem, file.read_bytes
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".npz"):
                    yield Path(name).stem, lambda name=name: unpack(archive, name)
    except (zipfile.BadZipFile, OSError) as error:
        msg = f"{path} is not a readable zip archive: {error}."
        raise ValueError(msg) from error


def _footprint(member, name, shape, bands, pixel_scale):
    """The cutouts of one footprint."""
    images, weights = member["images"], member["weights"]
    peaks = np.asarray(member["peaks"], float).reshape(-1, 2)
    if images.ndim != 3 or images.shape != weights.shape or len(bands) != len(images):
        msg = f"its images have the shape {images.shape}, its weights {weights.shape}"
        raise ValueError(msg)
    image = NDData(
        images,
        uncertainty=InverseVariance(weights),
        mask=~(weights > 0),
        meta={"bands": tuple(bands), "band_axis": 0},
    )
    number = np.arange(len(peaks))
    table = Table({"x": peaks[:, 0], "y": peaks[:, 1]})
    table["id"] = np.array([f"{name}_{i}" for i in number], dtype=f"U{len(name) + 8}")
    psf = np.moveaxis(member["psfs"], 0, -1)[np.newaxis]
    stack = make_cutouts(
        image,
        table,
        shape,
        psf=np.repeat(psf, len(peaks), axis=0),
        pixel_scale=pixel_scale,
    )
    footprint = np.array([name] * len(peaks), dtype=f"U{len(name)}")
    columns = stack.columns | {"footprint": footprint, "peak": number}
    return stack.replace(columns=columns, pixel_scale=u.Quantity(pixel_scale, u.arcsec))
