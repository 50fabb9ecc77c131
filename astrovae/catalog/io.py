# Licensed under a 3-clause BSD style license - see LICENSE
"""Read and write catalogues without losing what astrovae put into them."""

import warnings
from pathlib import Path

from astropy.utils.exceptions import AstropyWarning
from yaml import YAMLError

from astrovae._files import atomic_file
from astrovae.catalog._checks import check_table
from astrovae.catalog._coding import encode
from astrovae.catalog._formats import READERS, WRITERS

__all__ = ["read_catalog", "write_catalog"]

# the formats by file extension
_FORMATS = {
    ".ecsv": "ecsv",
    ".fits": "fits",
    ".fit": "fits",
    ".fits.gz": "fits",
    ".vot": "votable",
    ".xml": "votable",
    ".parquet": "parquet",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".csv": "csv",
}


def write_catalog(table, path, *, overwrite=False):
    """
    Write a catalogue; the extension decides the format.

    The file is complete or untouched: it is written under a temporary name
    and renamed, so that a full disk leaves an old file whole.

    Parameters
    ----------
    table : `~astropy.table.Table`
        The catalogue.
    path : path-like
        ``*.ecsv``, ``*.fits``, ``*.vot``, ``*.parquet``, ``*.h5`` or ``*.csv``;
        also ``*.fit``, ``*.fits.gz``, ``*.xml`` and ``*.hdf5``.
    overwrite : bool, optional
        Replace an existing file.

    Raises
    ------
    TypeError
        If ``table`` is not an astropy table.
    ValueError
        If the extension is not known, or the format cannot hold a column.
    FileExistsError
        If the file exists and ``overwrite`` is false.

    See Also
    --------
    split_vectors : For programs that know no vectors.

    Notes
    -----
    `read_catalog` gives values, types, masks, units, descriptions, UCDs,
    coordinates, times and metadata back as they were, from every format. What
    a format has no place for is in a header, that of ECSV [1]_: in CSV as
    lines that begin with ``#``, in FITS as keyword, in VOTable as INFO, in
    Parquet as key of the schema named ``ASTROVAE``, and in HDF5 where astropy
    has it. Other programs see:

    - masked values as nulls. Where a format has none, they are NaN, an empty
      string, or the least integer (the largest, if there are no negative ones);
      if an unmasked element has that value, and for truth values, a column
      ``<name>.mask`` says which are masked;
    - vectors as such, in CSV as columns as by `split_vectors`, which
      `read_catalog` merges;
    - a coordinate as columns like ``coord.ra``, a time as ``time.jd1`` and
      ``time.jd2``;
    - strings as they are, unless the format would alter them (line breaks,
      spaces at an end; in FITS all but ASCII): the column has Python's escapes.

    Quantities that are read are those of a `~astropy.table.QTable`, also if
    columns with units were written.

    References
    ----------
    .. [1] Astropy Proposal for Enhancement 6,
       https://github.com/astropy/astropy-APEs/blob/main/APE6.rst
    """
    check_table("table", table)
    path = Path(path)
    form = check_format(path)
    with warnings.catch_warnings():
        # astropy tells what the header takes care of
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            plain = encode(table, form)
            with atomic_file(path, overwrite=overwrite) as temporary:
                WRITERS[form](plain, temporary)
        except (UnicodeError, TypeError, AttributeError, YAMLError) as error:
            msg = (
                f"{path.name}: there are values that {form} cannot hold "
                f"({error}). Convert or remove them."
            )
            raise ValueError(msg) from error


def read_catalog(path):
    """
    Read a catalogue; the extension decides the format.

    Parameters
    ----------
    path : path-like
        A file of `write_catalog`, or any table in one of its formats; of
        several in one file the first.

    Returns
    -------
    table : `~astropy.table.QTable`
        The catalogue, with provenance restored.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the format is not known or the file cannot be read.
    """
    path = Path(path)
    form = check_format(path)
    if not path.exists():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    try:
        return READERS[form](path)
    # the readers raise errors of many kinds on damaged files
    except Exception as error:
        msg = f"{path} cannot be read as {form}: {error or type(error).__name__}"
        raise ValueError(msg) from error


def check_format(path):
    """Name the format of a path, or say that there is none."""
    name = Path(path).name
    for extension, form in _FORMATS.items():
        if name.lower().endswith(extension):
            return form
    msg = (
        f"the extension of {name!r} does not name a catalogue format; "
        f"known are {', '.join(_FORMATS)}."
    )
    raise ValueError(msg)


def is_catalog(path):
    """Whether a file is a catalogue, and not cutouts in HDF5."""
    if check_format(path) != "hdf5":
        return True
    import h5py

    with h5py.File(path) as file:
        datasets = [item for item in file.values() if isinstance(item, h5py.Dataset)]
        return any(data.dtype.names for data in datasets)
