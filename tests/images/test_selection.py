# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of selections."""

import json

import astropy.units as u
import numpy as np
import pandas as pd
import pytest
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from numpy.testing import assert_array_equal

from astrovae.datasets import make_galaxies
from astrovae.flags import Flag
from astrovae.images import Cut, Selection, clean_cutouts, measure_pose


def test_log():
    """Each cut sees what the cuts before it left; missing values do not pass."""
    table = Table({"a": [1.0, 2, 3, np.nan, 5], "b": MaskedColumn([1, 2, 3, 4, 5])})
    table["b"].mask = [0, 0, 1, 0, 0]
    keep, log = Selection([("a", ">", 1), ("b", "<=", 4, "few")]).apply(table)
    assert_array_equal(keep, [0, 1, 0, 0, 0])
    assert log["name"].tolist() == ["a > 1", "few"]
    assert log["n_before"].tolist() == [5, 3]
    assert log["n_removed"].tolist() == [2, 2]
    assert log["n_missing"].tolist() == [1, 1]
    assert log["n_left"].tolist() == [3, 1]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("<", [1, 0, 0]),
        ("<=", [1, 1, 0]),
        (">", [0, 0, 1]),
        (">=", [0, 1, 1]),
        ("==", [0, 1, 0]),
        ("!=", [1, 0, 1]),
    ],
)
def test_conditions(condition, expected):
    cut = Cut("a", condition, 2)
    assert_array_equal(cut(np.array([1, 2, 3])), expected)
    table = QTable({"a": Masked([1, 2, 3] * u.mag, mask=[0, 0, 1])})
    keep, _ = Selection([cut]).apply(table)
    assert_array_equal(keep, np.array(expected) * [1, 1, 0])
    frame = pd.DataFrame({"a": [1, 2, 3]})
    assert_array_equal(Selection([cut]).apply(frame)[0], expected)


def test_text():
    frame = pd.DataFrame({"kind": ["star", None, "galaxy"]})
    keep, log = Selection([("kind", "!=", "star")]).apply(frame)
    assert_array_equal(keep, [False, False, True])
    assert log["n_missing"][0] == 1


def test_stack():
    """Flags, pose and columns of a stack can be cut on; the record repeats it."""
    _, stack = make_galaxies(40, shape=48, seed=1)
    stack = measure_pose(clean_cutouts(stack))
    flags = np.array(stack.flags)
    flags[:3] |= Flag.COSMIC_RAY
    stack = stack.replace(flags=flags)
    selection = Selection(
        [
            ("flags", "without", ["cosmic_ray", "partial"]),
            ("snr", ">", 20),
            Cut("pose_axis_ratio", "<", 0.9),
        ]
    )
    keep, log = selection.apply(stack)
    expected = (flags & (Flag.COSMIC_RAY | Flag.PARTIAL)) == 0
    assert log["n_left"][0] == expected.sum()
    expected &= stack.columns["snr"] > 20
    expected &= stack.pose["axis_ratio"] < 0.9
    assert_array_equal(keep, expected)
    assert len(stack[keep]) == log["n_left"][-1]
    again = Selection(**json.loads(json.dumps(selection.to_dict())))
    assert again == selection
    assert_array_equal(again.apply(stack)[0], keep)


def test_votes(data_path):
    """No edge-on and no odd galaxies of Galaxy Zoo 2."""
    table = pd.read_csv(data_path / "gz2_galaxies.csv")
    selection = Selection.from_votes("Class2.1", "Class6.1")
    keep, log = selection.apply(table)
    expected = (table["Class2.1"] <= 0.5) & (table["Class6.1"] <= 0.5)
    assert_array_equal(keep, expected)
    assert log["n_missing"][0] == table["Class2.1"].isna().sum()
    assert 0 < keep.sum() < len(table)


def test_nothing():
    keep, log = Selection([]).apply(Table({"a": [1, 2]}))
    assert keep.all()
    assert len(log) == 0


def test_errors():
    with pytest.raises(ValueError, match="condition must be one of"):
        Cut("a", "=", 1)
    with pytest.raises(ValueError, match="there are no flags"):
        Cut("flags", "without", "nothing")
    with pytest.raises(ValueError, match="no column 'b'"):
        Selection([("b", ">", 1)]).apply(Table({"a": [1]}))
    with pytest.raises(ValueError, match="has the shape"):
        Selection([("a", ">", 1)]).apply(Table({"a": [[1, 2]]}))
