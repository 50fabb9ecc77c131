"""Tests of catalogues on disk."""

import copy
import os
import subprocess
import sys

import astropy.units as u
import hypothesis.strategies as st
import numpy as np
import pytest
from astropy.coordinates import Longitude, SkyCoord
from astropy.io import fits
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.time import Time
from astropy.utils.exceptions import AstropyWarning
from astropy.utils.masked import Masked
from click.testing import CliRunner
from hypothesis import given, settings

from astrovae.catalog import (
    merge_vectors,
    read_catalog,
    split_vectors,
    write_catalog,
)
from astrovae.cli import main
from astrovae.datasets import make_galaxies

MASK = np.array([False, True, False, False, True])
EXTENSIONS = [".ecsv", ".fits", ".vot", ".parquet", ".h5", ".csv"]
BIG = 1237648720693755918
TYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", "U"]
PROVENANCE = {"default": {"latents": {"seed": 3, "list": [1, None, {"α": "β"}]}}}


def parts(column):
    """Bare values and full mask of a column of any kind."""
    bare = getattr(column, "unmasked", column)
    mask = np.broadcast_to(getattr(column, "mask", False), column.shape)
    return np.asarray(np.ma.getdata(bare)), np.asarray(mask)


def assert_same(new, old):
    """Two tables have equal values, types, masks, units and metadata."""
    assert new.colnames == old.colnames
    assert new.meta == old.meta
    for name in old.colnames:
        (data, mask), (expected, expected_mask) = parts(new[name]), parts(old[name])
        assert data.shape == expected.shape, name
        np.testing.assert_array_equal(mask, expected_mask, err_msg=name)
        np.testing.assert_array_equal(data[~mask], expected[~mask], err_msg=name)
        assert data.dtype.isnative
        if data.dtype.kind not in "US":
            assert data.dtype == expected.dtype, name
        assert data.dtype.kind == expected.dtype.kind, name
        for attribute in ("unit", "description", "format"):
            one, other = (getattr(t[name].info, attribute) for t in (new, old))
            assert one == other, (name, attribute)
        one, other = (dict(t[name].info.meta or {}) for t in (new, old))
        assert one == other, name


def elements(dtype):
    """Draw values of a type, its limits and oddities among them."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return st.booleans()
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        edges = [limits.min, limits.max]
        edges += [BIG, -BIG] * (dtype == "i8") + [BIG] * (dtype == "u8")
        return st.sampled_from(edges) | st.integers(limits.min, limits.max)
    if dtype.kind == "f":
        return st.floats(width=8 * dtype.itemsize)
    odd = [
        "",
        " ",
        "nan",
        "#1",
        '"',
        "1",
        ",",
        "a\nb",
        "\\x20",
        "null",
        "é",
        "🌌",
        "--",
    ]
    text = st.text(st.characters(exclude_characters="\0"), max_size=4)
    return st.sampled_from(odd) | text


@st.composite
def columns(draw, n):
    """Draw a column with n rows."""
    dtype = draw(st.sampled_from(TYPES))
    shape = (n, *draw(st.sampled_from([(), (), (1,), (2,), (3, 2)])))
    size = int(np.prod(shape))
    values = draw(st.lists(elements(dtype), min_size=size, max_size=size))
    data = np.array(values, dtype=dtype).reshape(shape)
    column = Column(data)
    if draw(st.booleans()):
        flags = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        column = MaskedColumn(data, mask=np.array(flags, dtype=bool).reshape(shape))
    if data.dtype.kind in "iuf":
        unit = draw(st.sampled_from([None, "nJy", "deg", "pix", "km / s"]))
        if unit and draw(st.booleans()):
            quantity = u.Quantity(data, unit, dtype=data.dtype)
            mask = getattr(column, "mask", None)
            column = quantity if mask is None else Masked(quantity, mask=mask)
        elif unit is None:
            column.format = draw(
                st.sampled_from([None, "d" if dtype[0] in "iu" else "g"])
            )
    column.info.description = draw(st.sampled_from([None, "ein Maß", '5" #c']))
    column.info.meta = draw(
        st.sampled_from([{}, {"ucd": "phot.flux"}, {"ucd": "not a ucd!", "x": [1]}])
    )
    return column


@st.composite
def tables(draw):
    """Draw a table, with or without rows."""
    n = draw(st.integers(0, 4))
    result = QTable(
        meta={"astrovae": PROVENANCE, "SURVEY": "SDSS", "two words": (1, 2)}
    )
    names = ["a", 'b, "c', "σ", "a.mask"]
    for name in names[: draw(st.integers(1, len(names)))]:
        result.add_column(draw(columns(n)), name=name)
    return result


@pytest.mark.parametrize("extension", EXTENSIONS)
@settings(max_examples=40)
@given(table=tables())
def test_round_trips(tmp_path_factory, extension, table):
    """Whatever a table holds comes back, from every format."""
    before = table.copy()
    path = tmp_path_factory.mktemp("io") / f"catalog{extension}"
    write_catalog(table, path)
    assert_same(read_catalog(path), table)
    assert_same(table, before)


@settings(max_examples=60)
@given(table=tables())
def test_split_and_merge_are_inverse(table):
    """Vectors come back in their place, with all that belongs to them."""
    split = split_vectors(table)
    assert all(split[name].ndim == 1 for name in split.colnames)
    result = merge_vectors(split)
    assert_same(result, table)
    assert [type(c) for c in result.itercols()] == [type(c) for c in table.itercols()]


@pytest.fixture
def table():
    """Every kind of column that astrovae writes, with masks, and provenance."""
    n = len(MASK)
    vector = np.arange(2.0 * n).reshape(n, 2)
    pair = np.stack([MASK, MASK], axis=1)
    result = QTable()
    result["objid"] = BIG + np.arange(n)
    result["gz2_objid"] = MaskedColumn(BIG + np.arange(n), mask=MASK)
    result["name"] = ["a", "bb", "c", "d", "e"]
    result["flux"] = Masked(np.arange(n) * u.nJy, mask=MASK)
    result["fluxes"] = Masked(vector * u.nJy, mask=pair)
    result["latent_mean"] = MaskedColumn(vector.astype("f4"), mask=pair)
    result["flags"] = np.arange(n, dtype="i4")
    result["win"] = MaskedColumn(np.ones(n, bool), mask=MASK)
    result["wins"] = MaskedColumn(np.ones((n, 2), bool), mask=pair)
    result["flux"].info.description = "a flux"
    result["flux"].info.meta = {"ucd": "phot.flux"}
    result.meta["astrovae"] = PROVENANCE
    return result


@pytest.mark.parametrize("rows", [slice(None), slice(0)])
@pytest.mark.parametrize(
    "extension", [*EXTENSIONS, ".fit", ".fits.gz", ".xml", ".hdf5"]
)
def test_catalogue_of_astrovae(table, tmp_path, extension, rows):
    """Its columns come back, with or without rows, under every extension."""
    path = tmp_path / f"catalog{extension}"
    write_catalog(table[rows], path)
    assert_same(read_catalog(path), table[rows])


@pytest.mark.parametrize("rows", [slice(None), slice(0)])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_coordinates_and_times(tmp_path, extension, rows):
    """Columns that are objects come back as such."""
    table = QTable({"id": [1, 2]})
    table["sky"] = SkyCoord([1, 2] * u.deg, [-3, 4] * u.deg, distance=[1, 2] * u.kpc)
    table["time"] = Time([51544.25, 60000.1], format="mjd", scale="tdb")
    table["angle"] = Longitude([1, 359] * u.deg)
    table["mag"] = u.Magnitude([20.0, 21.0], u.ABmag)
    table["day"] = np.array(["2024-02-29", "NaT"], dtype="M8[s]")
    table = table[rows]
    path = tmp_path / f"catalog{extension}"
    write_catalog(table, path)
    result = read_catalog(path)
    assert result.colnames == table.colnames
    for name in table.colnames:
        assert type(result[name]) is type(table[name])
    assert (result["sky"].separation_3d(table["sky"]) == 0 * u.kpc).all()
    assert (result["time"] == table["time"]).all()
    assert result["time"].scale == "tdb"
    assert (result["angle"] == table["angle"]).all()
    assert result["mag"].unit == u.ABmag
    np.testing.assert_array_equal(result["day"], table["day"])


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_split_table_stays_split(table, tmp_path, extension):
    """What the user split is not merged by a file, and can be merged after it."""
    path = tmp_path / f"catalog{extension}"
    split = split_vectors(table, ["latent_mean"])
    assert "latent_mean_1" in split.colnames
    write_catalog(split, path)
    result = read_catalog(path)
    assert_same(result, split)
    assert_same(merge_vectors(result), table)


def test_clashes_and_gaps_of_vectors(table):
    """A name that is taken, and an element that is missing, are named."""
    table["latent_mean_1"] = 1
    with pytest.raises(ValueError, match="already has latent_mean_1"):
        split_vectors(table)
    del table["latent_mean_1"]
    split = split_vectors(table)
    del split["latent_mean_1"]
    with pytest.raises(ValueError, match="latent_mean_1 missing"):
        merge_vectors(split)
    del split["latent_mean_0"]
    assert "latent_mean" not in merge_vectors(split).colnames
    split["fluxes"] = 1
    with pytest.raises(ValueError, match="fluxes cannot be merged"):
        merge_vectors(split)
    with pytest.raises(ValueError, match="no column 'nothing'"):
        split_vectors(table, ["nothing"])
    with pytest.raises(ValueError, match="nothing to split"):
        split_vectors(table, ["name"])
    with pytest.raises(ValueError, match=r"of shape \(5, 0\)"):
        split_vectors(QTable({"none": np.zeros((5, 0))}))
    with pytest.raises(TypeError, match="from_pandas"):
        split_vectors(table["objid", "name"].to_pandas())


# ---------------------------------------------------------------------------
# What other programs see, and what they wrote
# ---------------------------------------------------------------------------


def test_csv_for_others(table, tmp_path):
    """Pandas and astropy read names, numbers and nulls from our CSV."""
    import pandas as pd

    table["name"] = ["NGC #1", "a,b", '"', "", "10"]
    path = tmp_path / "catalog.csv"
    write_catalog(table, path)
    frame = pd.read_csv(path, comment="#", keep_default_na=False)
    assert frame["name"].tolist() == list(table["name"])
    assert frame["objid"].tolist() == table["objid"].tolist()
    assert list(frame.columns)[4:6] == ["fluxes_0", "fluxes_1"]
    for options in ({"format": "ascii.csv", "comment": "#"}, {"format": "ascii.ecsv"}):
        result = Table.read(path, **options)
        assert result["gz2_objid"].tolist() == table["gz2_objid"].tolist()
        assert result["name"][0] == "NGC #1"


def test_nulls_for_others(table, tmp_path):
    """Nulls are those of the format, and UCDs where the format has them."""
    import pandas as pd

    for extension in ("fits", "vot", "parquet"):
        write_catalog(table, tmp_path / f"catalog.{extension}")
    frame = pd.read_parquet(tmp_path / "catalog.parquet", dtype_backend="pyarrow")
    assert frame["gz2_objid"].isna().tolist() == MASK.tolist()
    assert frame["gz2_objid"][2] == BIG + 2
    for extension in ("fits", "vot"):
        plain = Table.read(tmp_path / f"catalog.{extension}")
        assert plain["gz2_objid"].mask.tolist() == MASK.tolist()
        assert plain["flux"].unit == u.nJy
    assert plain["flux"].meta["ucd"] == "phot.flux"
    assert plain["flux"].description == "a flux"
    header = fits.getheader(tmp_path / "catalog.fits", 1)
    column = table.colnames.index("flux") + 1
    assert header[f"TUCD{column}"] == "phot.flux"
    assert header[f"TCOMM{column}"] == "a flux"


def test_info_tells_catalogues_from_stacks(table, tmp_path):
    """Both can be HDF5."""
    del table.meta["astrovae"]
    write_catalog(table, tmp_path / "catalog.h5")
    make_galaxies(3, shape=8, seed=1)[1].write(tmp_path / "stack.h5")
    for name, text in (("catalog", "5 rows, 9 columns"), ("stack", "CutoutStack")):
        result = CliRunner().invoke(main, ["info", str(tmp_path / f"{name}.h5")])
        assert text in result.output


def test_vot_declares_axes_in_its_own_order(tmp_path):
    """In VOTable the first axis varies fastest."""
    write_catalog(QTable({"a": np.zeros((1, 2, 3))}), tmp_path / "a.vot")
    assert 'arraysize="3x2"' in (tmp_path / "a.vot").read_text()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_files_of_astropy(tmp_path, extension):
    """Files that astropy wrote read as they are."""
    path = tmp_path / f"catalog{extension}"
    table = Table({"objid": [BIG, BIG + 1], "s": ["a", "b"], "x": [1.5, 2.5]})
    options = {".h5": {"path": "data"}, ".vot": {"format": "votable"}}
    table.write(path, **options.get(extension, {}))
    result = read_catalog(path)
    assert isinstance(result, QTable)
    assert result.colnames == table.colnames
    for name in table.colnames:
        assert result[name].tolist() == table[name].tolist()
        assert result[name].dtype.kind == table[name].dtype.kind


def test_fits_of_topcat(tmp_path):
    """Units, UCDs and descriptions of a FITS table from elsewhere are read."""
    columns = [
        fits.Column("ID", "K", array=[BIG, -1], null=-1),
        fits.Column("FLUX", "E", unit="nJy", array=[1.5, np.nan]),
        fits.Column("COUNT", "J", unit="adu", array=[3, 2**31 - 1]),
        fits.Column("NAME", "4A", array=["a", "bcd"]),
    ]
    hdu = fits.BinTableHDU.from_columns(columns)
    hdu.header["TUCD2"] = "phot.flux"
    hdu.header["TCOMM2"] = "Flux in r"
    path = tmp_path / "topcat.fits"
    hdu.writeto(path)
    table = read_catalog(path)
    assert table["ID"].tolist() == [BIG, None]
    assert table["FLUX"].unit == u.nJy
    assert table["FLUX"].info.meta["ucd"] == "phot.flux"
    assert table["FLUX"].info.description == "Flux in r"
    assert table["COUNT"].dtype == np.int32
    assert table["NAME"].tolist() == ["a", "bcd"]


@pytest.mark.parametrize(
    "text",
    [
        "id,ra\n1237648720693755918,1.5\n,2\n",
        "#Table1\nid,ra\n1237648720693755918,1.5\n,2\n",
        "# a comment, or two, maybe\n#\nid,ra\n1237648720693755918,1.5\n,2\n",
    ],
)
def test_any_csv(tmp_path, text):
    """Comments before the names are passed over; ids stay whole."""
    path = tmp_path / "any.csv"
    path.write_text(text)
    table = read_catalog(path)
    assert table.colnames == ["id", "ra"]
    assert table["id"].tolist() == [BIG, None]
    path.write_text(f"id\n{BIG}\n{2**63 + 1}\n")
    with pytest.warns(AstropyWarning, match="reverting to String"):
        assert read_catalog(path)["id"].tolist() == [str(BIG), str(2**63 + 1)]
    path.write_text("#id,ra\n1,2\n")
    assert read_catalog(path).colnames == ["#id", "ra"]


def test_parquet_of_pandas(tmp_path):
    """Nulls, text, dates and lists of other writers are read."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "id": pd.array([BIG, None], dtype="Int64"),
            "s": ["a", None],
            "x": [1.5, np.nan],
            "day": pd.to_datetime(["2024-02-29", None]),
            "list": [[1, 2], [3]],
            "kind": pd.Categorical(["b", "b"]),
        }
    )
    path = tmp_path / "pandas.parquet"
    frame.to_parquet(path)
    table = read_catalog(path)
    assert table["id"].tolist() == [BIG, None]
    assert table["s"].tolist() == ["a", None]
    assert table["x"][0] == 1.5
    assert table["day"][0] == np.datetime64("2024-02-29")
    assert list(table["list"]) == [[1, 2], [3]]
    assert table["kind"].tolist() == ["b", "b"]


def test_edited_file(table, tmp_path):
    """A file that astropy wrote again with other columns keeps what still fits."""
    path = tmp_path / "catalog.fits"
    write_catalog(table, path)
    with fits.open(path) as hdus:
        columns = hdus[1].columns
        columns.del_col("fluxes")
        columns.change_name("flux", "flux_r")
        hdu = fits.BinTableHDU.from_columns(columns[:6], header=hdus[1].header)
        hdu.header["OBSERVER"] = "Leavitt"
        hdu.writeto(path, overwrite=True)
    result = read_catalog(path)
    assert result["gz2_objid"].tolist() == table["gz2_objid"].tolist()
    assert "flux_r" in result.colnames
    assert result.meta["astrovae"] == PROVENANCE
    assert result.meta["OBSERVER"] == "Leavitt"


# ---------------------------------------------------------------------------
# What goes wrong
# ---------------------------------------------------------------------------

FULL_DISK = """
import resource, signal, sys
import numpy as np
from astropy.table import Table
from astrovae.catalog import write_catalog
# with the header of the table in memory, the file may have 20 kB
table = Table({"x": np.random.default_rng(1).normal(size=(5_000, 4))})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for path in sys.argv[1:]:
    try:
        write_catalog(table, path, overwrite=True)
    except OSError as error:
        print(type(error).__name__, path)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
def test_full_disk_leaves_the_old_files(table, tmp_path):
    """Writing that fails on the way leaves the old file whole, and no litter."""
    paths = [tmp_path / f"catalog{extension}" for extension in EXTENSIONS]
    for path in paths:
        write_catalog(table, path)
    before = {path: path.read_bytes() for path in paths}
    arguments = [sys.executable, "-c", FULL_DISK, *map(str, paths)]
    result = subprocess.run(
        arguments, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split("\n")) == len(paths) + 1, result.stdout
    assert {path: path.read_bytes() for path in paths} == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_damaged_files_are_named(table, tmp_path, extension):
    """A file that ends early, and one of something else, give one clear error."""
    path = tmp_path / f"catalog{extension}"
    write_catalog(table, path)
    content = path.read_bytes()
    for damaged in (b"", b"not a table", content[: len(content) // 2]):
        path.write_bytes(damaged)
        if extension in (".csv", ".ecsv") and damaged.startswith(b"not"):
            continue
        with pytest.raises(ValueError, match=rf"catalog\{extension} cannot be read"):
            read_catalog(path)


def test_missing_mask_is_not_forgotten(tmp_path):
    """Without its mask, a column would have values that nobody measured."""
    path = tmp_path / "catalog.fits"
    write_catalog(Table({"win": MaskedColumn([True, False], mask=[0, 1])}), path)
    with fits.open(path) as hdus:
        hdu = fits.BinTableHDU.from_columns(hdus[1].columns[:1], hdus[1].header)
        hdu.writeto(path, overwrite=True)
    with pytest.raises(ValueError, match="the mask of 'win', is missing"):
        read_catalog(path)


@pytest.mark.parametrize("extension", EXTENSIONS[1:])
def test_objects_are_refused(tmp_path, extension):
    """Values of any type have a place in ECSV alone."""
    table = Table({"any": np.array([[1], {"a": 2}], dtype=object)})
    with pytest.raises(ValueError, match=r"'any'.*cannot hold"):
        write_catalog(table, tmp_path / f"catalog{extension}")
    assert list(tmp_path.iterdir()) == []
    write_catalog(table, tmp_path / "catalog.ecsv")
    assert list(read_catalog(tmp_path / "catalog.ecsv")["any"]) == [[1], {"a": 2}]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_metadata_that_no_file_can_hold(table, tmp_path, extension):
    """An object of any class cannot be written."""
    table.meta["model"] = object()
    with pytest.raises(ValueError, match=r"cannot represent.*remove them"):
        write_catalog(table, tmp_path / f"catalog{extension}")
    assert list(tmp_path.iterdir()) == []


def test_input_is_not_changed(table, tmp_path):
    """Writing leaves table and metadata as they were."""
    meta, before = copy.deepcopy(table.meta), table.copy()
    for extension in EXTENSIONS:
        write_catalog(table, tmp_path / f"catalog{extension}")
    assert table.meta == meta
    assert_same(table, before)


def test_bad_paths(table, tmp_path):
    """Each is named, and so is what is no table."""
    with pytest.raises(TypeError, match="from_pandas"):
        write_catalog(table["objid", "name"].to_pandas(), tmp_path / "catalog.csv")
    with pytest.raises(ValueError, match="does not name a catalogue format"):
        write_catalog(table, tmp_path / "catalog.docx")
    write_catalog(table, tmp_path / "catalog.ecsv")
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_catalog(table, tmp_path / "catalog.ecsv")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        write_catalog(table, tmp_path / "none" / "catalog.ecsv")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_catalog(tmp_path / "none.fits")


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("meta", [{1: 2}, {"EXTNAME": 3}, {"CONTINUE": 3}])
def test_metadata_that_are_no_keywords(tmp_path, extension, meta):
    """Keys that are numbers, and those that mean something else to FITS."""
    table = Table({"a": [1, 2]}, meta=meta)
    write_catalog(table, tmp_path / f"catalog{extension}")
    assert read_catalog(tmp_path / f"catalog{extension}").meta == meta


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_names_with_spaces(tmp_path, extension):
    """Also at their ends."""
    table = Table({" a b ": [1, 2], "a": [3, 4], "A": [5, 6], "b,c": ["x", "#"]})
    write_catalog(table, tmp_path / f"catalog{extension}")
    assert_same(read_catalog(tmp_path / f"catalog{extension}"), table)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_vectors_without_elements(tmp_path, extension):
    """They are written as they are, or refused by name."""
    table, path = Table({"v": np.zeros((2, 0)), "a": [1, 2]}), tmp_path / extension[1:]
    path = path.with_suffix(extension)
    if extension in (".ecsv", ".fits"):
        write_catalog(table, path)
        assert read_catalog(path)["v"].shape == (2, 0)
    else:
        with pytest.raises(ValueError, match=r"'v' has no elements.*\.ecsv"):
            write_catalog(table, path)
        assert list(tmp_path.iterdir()) == []


def test_csv_of_spreadsheets(tmp_path):
    """Some begin with a mark of the byte order."""
    for text in ("id,ra\n1,2\n", '"id",ra\n1,2\n'):
        (tmp_path / "sheet.csv").write_text("\ufeff" + text, encoding="utf-8")
        assert read_catalog(tmp_path / "sheet.csv").colnames == ["id", "ra"]


def test_one_vector_is_split_by_its_name():
    """A name is not a sequence of letters."""
    table = Table({"mean": np.zeros((1, 2)), "sigma": np.ones((1, 2))})
    names = ["mean_0", "mean_1", "sigma"]
    assert split_vectors(table, "mean").colnames == names


def test_info_on_records_of_others(tmp_path):
    """Not every record says when it was made, and with what."""
    steps = {"latents": {"seed": 1}, "pose": {"astrovae": "0.1"}}
    table = Table({"a": [1]}, meta={"astrovae": {"default": steps}})
    write_catalog(table, tmp_path / "catalog.ecsv")
    result = CliRunner().invoke(main, ["info", str(tmp_path / "catalog.ecsv")])
    assert result.exit_code == 0
    assert result.output.splitlines()[-2:] == [
        "  default: latents",
        "  default: pose, astrovae 0.1",
    ]
