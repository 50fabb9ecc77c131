# Licensed under a 3-clause BSD style license - see LICENSE
"""Stacks of galaxy cutouts with everything that belongs to their pixels."""

import copy
import hashlib
import json
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np

from astrovae._files import atomic_file
from astrovae._sources import makes_stacks
from astrovae._validation import check_preprocessing, clean_batch
from astrovae.flags import Flag
from astrovae.images._checks import (
    CheckedPixels,
    as_column,
    as_plane,
    check_bands,
    check_columns,
    check_ids,
    check_labels,
    check_pixel_scale,
    check_psf,
    float_plane,
    in_unit,
    mask_flags,
    psf_flags,
    where_any,
)
from astrovae.images._combine import concatenate, from_table, to_table
from astrovae.images._file_plane import FilePlane, read_column
from astrovae.images._pictures import read_pictures
from astrovae.images.pose import as_pose, pose_columns, pose_parameters

__all__ = ["CutoutStack"]

_PLANES = ("data", "mask", "error", "segmentation")
_COLUMNS = ("ids", "positions", "pose", "flags")
_FORMAT_VERSION = 1


@makes_stacks
class CutoutStack:
    """
    Cutouts of many galaxies, of one shape, with errors, masks and PSFs.

    A stack is what every image function returns and every model takes.
    It is never changed in place: functions return a new one, and record
    what they did in ``steps``, which models store and compare.

    Parameters
    ----------
    data : array_like, shape (n, ny, nx, n_bands) or (n, ny, nx)
        The pixels.
    mask : array_like of bool, optional
        `True` marks a bad pixel. Same shape as ``data``. Pixels that are
        not finite are masked in any case.
    error : array_like, optional
        1-sigma uncertainty of each pixel, in the unit of the data. Pixels
        whose error is not finite and positive are masked.
    psf : array_like, shape (n or 1, ky, kx, n_bands), optional
        The effective PSF (pixel response included) of each cutout, or one
        for all, of sum 1. Where it is not finite, or zero, models mask the band.
    segmentation : array_like of int, shape (n, ny, nx), optional
        Source labels cut from the segmentation map of the whole image;
        0 is background.
    labels : array_like of int, shape (n,), optional
        The label of each target in ``segmentation``. By default, the label
        of the central pixel.
    bands : sequence of str, optional
        Names of the bands, by default ``("band_0", ...)``.
    pixel_scale : float or `~astropy.units.Quantity`, optional
        Angular size of a pixel; a plain number is in arcsec.
    unit : str or `~astropy.units.Unit`, optional
        Unit of the pixel values.
    ids : array_like of int or str, shape (n,), optional
        Identifiers, by default ``0 ... n-1``.
    positions : array_like, shape (n, 2), optional
        Centres (x, y) in pixels of the parent image.
    pose : array_like or `~astropy.table.Table`, optional
        What `measure_pose` gives; an array of shape (n, 5) with x, y, angle,
        flip and size; or a table with ``pose_*`` columns.
    flags : array_like of int, shape (n,), optional
        Bits of `~astrovae.flags.Flag`. Bits that follow from the pixels
        are added.
    columns : dict of array_like, shape (n, ...), optional
        Anything else that is known of each cutout: numbers or strings.
    steps : sequence of dict, optional
        The steps of preparation so far.
    meta : dict, optional
        Anything else worth keeping with the stack; must be JSON.

    Raises
    ------
    ValueError
        If shapes do not fit together, or ``data`` is not 3-D or 4-D.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.images import CutoutStack
    >>> stack = CutoutStack(np.ones((5, 16, 16)), bands=["r"], pixel_scale=0.396)
    >>> len(stack), stack.image_shape
    (5, (16, 16, 1))
    >>> stack[1:3].ids
    array([1, 2])
    """

    def __init__(
        self,
        data,
        *,
        mask=None,
        error=None,
        psf=None,
        segmentation=None,
        labels=None,
        bands=None,
        pixel_scale=None,
        unit=None,
        ids=None,
        positions=None,
        pose=None,
        flags=None,
        columns=None,
        steps=(),
        meta=None,
    ):
        if unit is None and isinstance(data, u.Quantity):
            unit = data.unit
        data, error = in_unit(data, unit), in_unit(error, unit)
        if isinstance(data, CheckedPixels):
            self.data, self.mask = data
        else:
            self.data = float_plane("data", data)
            self.mask = np.isfinite(self.data)
            np.logical_not(self.mask, out=self.mask)  # no second plane in memory
        shape = self.data.shape
        flags = as_column("flags", flags, shape[0], np.int32, 0)
        if not isinstance(data, CheckedPixels):
            flags |= where_any(self.mask, Flag.NON_FINITE)
        if mask is not None:
            self.mask |= as_plane("mask", mask, shape).astype(bool, copy=False)
        self.error = None
        if error is not None:
            self.error = float_plane("error", as_plane("error", error, shape))
            bad = ~(np.isfinite(self.error) & (self.error > 0)) & ~self.mask
            flags |= where_any(bad, Flag.BAD_ERROR)
            if bad.any():
                self.mask = self.mask | bad  # that of checked pixels may be shared
        self.flags = flags | mask_flags(self.mask)
        self.psf = None
        if psf is not None:
            self.psf = check_psf(psf, shape)
            self.flags |= psf_flags(self.psf)
        self.segmentation, self.labels = check_labels(segmentation, labels, shape)
        self.bands = check_bands(bands, shape[-1])
        self.pixel_scale = check_pixel_scale(pixel_scale)
        self.unit = None if unit is None else u.Unit(unit)
        self.ids = np.arange(shape[0]) if ids is None else check_ids(ids, shape[0])
        self.positions = None
        if positions is not None:
            self.positions = np.array(positions, dtype=float).reshape(-1, 2)
            if len(self.positions) != shape[0]:
                msg = f"got {len(self.positions)} positions for {shape[0]} cutouts."
                raise ValueError(msg)
        self.pose, unknown = as_pose(pose, shape)
        self.flags |= unknown
        self.columns = check_columns(columns, shape[0])
        self.steps = tuple(copy.deepcopy(list(steps)))
        self.meta = copy.deepcopy(dict(meta or {}))
        self._path = None

    def __len__(self):
        return self.data.shape[0]

    def __repr__(self):
        n, ny, nx, n_bands = self.data.shape
        planes = [name for name in ("error", "psf") if getattr(self, name) is not None]
        where = f", in {self._path}" if self._path else ""
        return (
            f"<CutoutStack: {n} cutouts of {ny} x {nx} pixels, "
            f"{n_bands} band{'s' * (n_bands != 1)} ({', '.join(self.bands)})"
            f"{', with ' + ' and '.join(planes) if planes else ''}{where}>"
        )

    @property
    def image_shape(self):
        """The shape of one cutout, ``(ny, nx, n_bands)``."""
        return tuple(self.data.shape[1:])

    @property
    def preprocessing(self):
        """
        The record of how these images were prepared, as plain JSON types.

        A model stores it when it is trained and compares it with the stacks
        that it is given later.
        """
        scale = self.pixel_scale
        return {
            "shape": list(self.image_shape[:2]),
            "bands": list(self.bands),
            "pixel_scale": None if scale is None else float(scale.to_value(u.arcsec)),
            "unit": None if self.unit is None else self.unit.to_string(),
            "steps": copy.deepcopy(list(self.steps)),
        }

    @property
    def pose_columns(self):
        """The pose as columns ``pose_*`` of a catalogue; empty if there is none."""
        return pose_columns(self)

    @property
    def usable(self):
        """Which cutouts to train on: not more than half of the pixels masked."""
        bad = Flag.NO_VALID_PIXEL | Flag.MOSTLY_MASKED
        return (np.asarray(self.flags) & bad) == 0

    def prepare(self, preprocessing):
        """
        Prepare the cutouts as a model expects them.

        Steps that the record has and this stack has not gone through yet are
        applied, in order.

        Parameters
        ----------
        preprocessing : dict or None
            The record that the model keeps, e.g. ``vae.preprocessing``.
            `None` asks for nothing.

        Returns
        -------
        stack : `CutoutStack`
            A prepared stack; this one, if nothing was to do.

        Raises
        ------
        ~astrovae.exceptions.PreprocessingError
            If shape, bands, pixel scale or unit differ, or if this stack
            went through other steps.
        """
        from astrovae.images.cleaning import clean_cutouts
        from astrovae.images.pose import align, measure_pose
        from astrovae.images.preparation import preprocess_cutouts

        if preprocessing is None:
            return self
        wanted = preprocessing["steps"]
        done = list(self.steps)
        # steps that are still to be done are no difference
        ahead = wanted if wanted[: len(done)] == done else done
        found = self.preprocessing | {"steps": ahead}
        if any(step["name"] == "preprocess_cutouts" for step in wanted[len(done) :]):
            # it makes other pixels: they are compared afterwards
            found |= {name: preprocessing[name] for name in found if name != "steps"}
        check_preprocessing(preprocessing, found)
        known = (clean_cutouts, measure_pose, align, preprocess_cutouts)
        functions = {f.__name__: f for f in known}
        stack = self
        for step in wanted[len(done) :]:
            stack = functions[step["name"]](stack, **step["parameters"])
        check_preprocessing(preprocessing, stack.preprocessing)
        return stack

    def __getitem__(self, index):
        """
        Select cutouts; an integer gives a stack of one.

        Planes on disk stay there.
        """
        rows = np.atleast_1d(np.arange(len(self))[index])
        new = copy.copy(self)
        new.meta = copy.deepcopy(self.meta)
        names = [*_PLANES, *_COLUMNS, "labels"]
        if self.psf is not None and len(self.psf) > 1:
            names.append("psf")
        for name in names:
            value = getattr(self, name)
            if isinstance(value, FilePlane):
                value = value.select(rows)
            elif value is not None:
                value = value[rows]
            setattr(new, name, value)
        new.columns = {name: values[rows] for name, values in self.columns.items()}
        return new

    def held_out(self, fraction=0.2, *, seed=0):
        """
        Choose galaxies to keep out of training.

        The choice depends on the identifier and the seed alone: it is the
        same in any order and any selection of the rows, and rows with the
        same identifier stay together.

        Parameters
        ----------
        fraction : float, optional
            The share to hold out.
        seed : int, optional
            Another seed gives another choice.

        Returns
        -------
        held_out : `~numpy.ndarray` of bool, shape (n,)
            `True` for held-out galaxies.

        Raises
        ------
        ValueError
            If ``fraction`` is not between 0 and 1.
        """
        if not 0 <= fraction <= 1:
            msg = f"fraction must be between 0 and 1, got {fraction}."
            raise ValueError(msg)
        limit = int(fraction * 2**64)

        def chosen(identifier):
            key = f"{seed}:{identifier}".encode()
            digest = hashlib.blake2b(key, digest_size=8).digest()
            return int.from_bytes(digest, "big") < limit

        return np.fromiter(map(chosen, self.ids.tolist()), bool, len(self))

    def batch(self, indices):
        """
        Read some cutouts as a model wants them.

        Parameters
        ----------
        indices : array_like of int
            Which cutouts.

        Returns
        -------
        batch : dict of `~numpy.ndarray`
            ``image`` and ``error`` in float32, ``mask`` in bool, ``psf``, and
            ``pose`` of shape (n, 5) with x, y, angle, flip and size; all but
            image and mask only if the stack has them. Bad pixels are 0 in
            ``image`` and 1 in ``error``.
        """
        rows = np.asarray(indices)
        if rows.dtype != bool:
            rows = rows.astype(np.intp)
        rows = np.atleast_1d(np.arange(len(self))[rows])
        batch = {"image": self.data[rows], "mask": self.mask[rows]}
        if self.error is not None:
            batch["error"] = self.error[rows]
        if self.psf is not None:
            shared = len(self.psf) == 1
            batch["psf"] = self.psf[np.zeros_like(rows) if shared else rows]
        if self.pose is not None:
            batch["pose"] = pose_parameters(self.pose[rows])
        return clean_batch(batch)

    def replace(self, **changes):
        """
        Copy the stack with some attributes replaced.

        Parameters
        ----------
        **changes
            Arguments of `CutoutStack`.

        Returns
        -------
        stack : `CutoutStack`
            A new stack, in memory; flags that follow from the pixels are
            added to the present ones.
        """
        names = (
            *_PLANES,
            *_COLUMNS,
            "labels",
            "psf",
            "bands",
            "pixel_scale",
            "unit",
            "columns",
            "steps",
            "meta",
        )
        return CutoutStack(**({name: getattr(self, name) for name in names} | changes))

    @classmethod
    def concatenate(cls, stacks):
        """
        Put stacks one after the other.

        Parameters
        ----------
        stacks : iterable of `CutoutStack`
            Of the same shape, bands, unit, pixel scale and steps.

        Returns
        -------
        stack : `CutoutStack`
            All rows, in order, in memory. Of ``meta``, what all have in common.

        Raises
        ------
        ValueError
            If there is no stack, or they do not fit together.
        """
        return concatenate(cls, stacks)

    def to_table(self):
        """
        Give the stack as a table with image columns.

        Returns
        -------
        table : `~astropy.table.Table`
            Columns ``id``, ``image``, ``mask``, ``error``, ``psf`` and so on,
            and those of ``columns``; what is common to all rows is in
            ``table.meta``. FITS, HDF5 and ECSV can hold it.
        """
        return to_table(self)

    @classmethod
    def from_table(cls, table, **options):
        """
        Make a stack from a table with image columns.

        Parameters
        ----------
        table : `~astropy.table.Table`
            With a column ``image`` of shape (n, ny, nx) or (n, ny, nx, n_bands),
            and optionally ``id``, ``mask``, ``error``, ``psf``, ``flags`` and
            ``pose_*``; what `to_table` gives, or like it.
        **options
            Arguments of `CutoutStack` that the table does not say.

        Returns
        -------
        stack : `CutoutStack`
            One cutout per row.

        Raises
        ------
        ValueError
            If there is no column ``image``, or shapes do not fit.
        """
        return from_table(cls, table, options)

    @classmethod
    def from_images(
        cls,
        path,
        *,
        shape=None,
        ids=None,
        bands=None,
        preprocess=None,
        show_progress=False,
        **options,
    ):
        """
        Read one image file per galaxy, from a folder or a zip archive.

        Parameters
        ----------
        path : path-like
            With files ``<id>.jpg``, ``.png``, ``.npy`` (of shape (ny, nx) or
            (ny, nx, n_bands)) or ``.fits`` (bands first). Rows of pictures are
            turned over: the first is at the bottom.
        shape : int or (int, int), optional
            Keep so many pixels around the centre; by default the size of the
            first image. What an image does not have is masked.
        ids : sequence of int or str, optional
            Which images, in which order; by default all.
        bands : sequence of str, optional
            Names of the bands.
        preprocess : {"astrovader"}, optional
            Prepare each picture when it is read, as `preprocess_cutouts` does.
        show_progress : bool, optional
            Whether to show a progress bar.
        **options
            Further arguments of `CutoutStack`, e.g. ``pixel_scale``.

        Returns
        -------
        stack : `CutoutStack`
            Images that are missing, damaged, or implausibly large are masked
            rows with the flag ``UNREADABLE``.

        Raises
        ------
        FileNotFoundError
            If there is no such folder or archive.
        ValueError
            If it has no images, none can be read, or they do not fit in memory.

        Warns
        -----
        ~astropy.utils.exceptions.AstropyUserWarning
            If some cannot be read.
        """
        return read_pictures(
            cls,
            path,
            shape=shape,
            ids=ids,
            bands=bands,
            preprocess=preprocess,
            options=options,
            show_progress=show_progress,
        )

    def write(self, path, *, overwrite=False):
        """
        Write the stack to an HDF5 file.

        The file is complete or absent: it is written under a temporary name
        and renamed.

        Parameters
        ----------
        path : path-like
            The file, usually ``*.h5``.
        overwrite : bool, optional
            Replace an existing file.

        Raises
        ------
        FileExistsError
            If the file exists and ``overwrite`` is false.
        """
        with (
            atomic_file(path, overwrite=overwrite) as temporary,
            h5py.File(temporary, "w") as file,
        ):
            self._write_hdf5(file)

    def _write_hdf5(self, file):
        record = self.preprocessing | {"version": _FORMAT_VERSION, "meta": self.meta}
        file.attrs["astrovae"] = json.dumps(record)
        names = (*_PLANES, *_COLUMNS, "labels", "psf")
        values = {name: getattr(self, name) for name in names}
        values |= {f"columns/{name}": column for name, column in self.columns.items()}
        for name, value in values.items():
            if value is None:
                continue
            value = np.asarray(value)
            if value.dtype.kind == "U":
                value = value.astype(h5py.string_dtype())
            chunks = (min(256, len(value)), *value.shape[1:]) if len(value) else None
            file.create_dataset(name, data=value, chunks=chunks)

    @classmethod
    def read(cls, path):
        """
        Open a stack that was written with `write`.

        Pixels are read when a batch or a selection asks for them.

        Parameters
        ----------
        path : path-like
            The HDF5 file.

        Returns
        -------
        stack : `CutoutStack`
            A stack whose planes stay on disk.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not a stack, or is damaged.
        """
        path = Path(path).resolve()
        if not path.is_file():
            msg = f"There is no file {path}."
            raise FileNotFoundError(msg)
        try:
            return cls._from_hdf5(path)
        except (OSError, KeyError, TypeError, ValueError) as error:
            msg = f"{path} is not a readable stack of cutouts: {error}."
            raise ValueError(msg) from error

    @classmethod
    def _from_hdf5(cls, path):
        stack = cls.__new__(cls)
        with h5py.File(path, "r") as file:
            record = json.loads(file.attrs["astrovae"])
            for name in (*_PLANES, "psf"):
                plane = None
                if name in file:
                    plane = FilePlane(path, name, file[name].shape, file[name].dtype)
                setattr(stack, name, plane)
            for name in (*_COLUMNS, "labels"):
                setattr(stack, name, read_column(file[name]) if name in file else None)
            group = file.get("columns", {})
            stack.columns = {name: read_column(group[name]) for name in group}
        if record["version"] != _FORMAT_VERSION:
            msg = f"its format is version {record['version']}"
            raise ValueError(msg)
        if stack.data is None or stack.mask is None:
            msg = "it has no data or no mask"
            raise ValueError(msg)
        scale = record["pixel_scale"]
        stack.pixel_scale = None if scale is None else scale * u.arcsec
        stack.unit = None if record["unit"] is None else u.Unit(record["unit"])
        stack.bands = tuple(record["bands"])
        stack.steps = tuple(record["steps"])
        stack.meta = record["meta"]
        stack._path = path
        return stack
