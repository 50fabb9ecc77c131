# Licensed under a 3-clause BSD style license - see LICENSE
"""Properties of galaxies as conditions of a density."""

import astropy.units as u
import keras
import numpy as np
from scipy import stats

from astrovae._validation import check_option, check_positive_int, read_array

__all__ = ["Condition", "Conditions"]

# shares and ratios are kept so far from 0 and 1, where their logit is infinite
_EDGE = 1e-4
# the usual half of the galaxies lies within, with one sigma to each side
_SIGMA_QUANTILES = (0.15865525, 0.5, 0.84134475)
# values that are further out, in sigmas, are seen as if they were here
_CLIP = 10.0
# The support: all but these shares at the ends, wider by so much of the rest.
_RANGE_QUANTILES = (0.001, 0.999)
_MARGIN = 0.1
# The joint support: all but this share of the training rows.
_JOINT_SHARE = 0.999
# of rows that are kept when the covariance is measured again
_TRIM_SHARE = 0.975
_TRIM_ROUNDS = 3


@keras.saving.register_keras_serializable("astrovae")
class Condition:
    """
    A property that galaxies can be asked to have, and how a flow sees it.

    Parameters
    ----------
    column : str
        The column of the table.
    transform : {"linear", "log", "asinh", "logit", "angle"}, optional
        "log" is for positive quantities that span decades, "asinh" for those
        that may also be zero or negative, such as fluxes in noise, "logit" for
        what lies between 0 and 1, such as axis ratios, and "angle" for
        directions, which become a cosine and a sine. A value that a transform
        does not take, such as a negative one of a logarithm, counts as missing.
    unit : str or `~astropy.units.Unit`, optional
        The unit in which it is seen, by default that of the column when the
        flow is fitted. Later tables may have any unit that converts to it.
    softening : float, optional
        With "asinh", where linear becomes logarithmic, in the unit. By default
        the median of the absolute values that the flow is fitted to.
    fold : int, optional
        With "angle", how often it looks the same in a full turn: 2 for the
        position angle of an axis.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Examples
    --------
    >>> from astropy.table import QTable
    >>> import astropy.units as u
    >>> from astrovae.models import Condition
    >>> table = QTable({"flux": [1.0, 100.0, -1.0] * u.mJy})
    >>> condition = Condition("flux", transform="log", unit="uJy")
    >>> print(condition.features(table).round(2).ravel())
    [ 6.91 11.51   nan]
    """

    def __init__(
        self, column, *, transform="linear", unit=None, softening=None, fold=1
    ):
        self.column = str(column)
        self.transform = check_option("transform", transform, _TRANSFORMS)
        self.unit = None if unit is None else u.Unit(unit)
        if softening is not None and not softening > 0:
            msg = f"softening must be positive, got {softening!r}."
            raise ValueError(msg)
        self.softening = softening
        self.fold = check_positive_int("fold", fold)

    def __repr__(self):
        unit = "" if self.unit is None else f", unit={self.unit.to_string()!r}"
        return f"Condition({self.column!r}, transform={self.transform!r}{unit})"

    def get_config(self):
        return {
            "column": self.column,
            "transform": self.transform,
            "unit": None if self.unit is None else self.unit.to_string(),
            "softening": self.softening,
            "fold": self.fold,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def values(self, table):
        """
        Read the column.

        Parameters
        ----------
        table : `~astropy.table.Table`
            A table.

        Returns
        -------
        values : `~numpy.ndarray`, shape (n,)
            In ``unit``; NaN where there is none.

        Raises
        ------
        TypeError
            If the column does not hold numbers.
        ValueError
            If there is no such column, it has several numbers per row, or its
            unit is missing or does not convert.
        """
        values = read_array(table, self.column)
        if values.ndim != 1:
            msg = (
                f"the column {self.column!r} must have one number per row, got the "
                f"shape {values.shape[1:]}."
            )
            raise ValueError(msg)
        unit = _column_unit(table, self.column)
        if unit == self.unit:
            return values
        if unit is None:
            msg = (
                f"the column {self.column!r} has no unit; {self.unit.to_string()!r} or "
                f"one that converts to it is needed. Set table[{self.column!r}].unit."
            )
            raise ValueError(msg)
        try:
            return np.asarray(
                unit.to(self.unit or u.dimensionless_unscaled, values), float
            )
        except u.UnitConversionError as error:
            wanted = "no unit" if self.unit is None else repr(self.unit.to_string())
            msg = (
                f"the column {self.column!r} is in {unit.to_string()!r}, which does "
                f"not convert to {wanted}."
            )
            raise ValueError(msg) from error

    def features(self, table):
        """
        Give what a flow sees, before it is standardised.

        Parameters
        ----------
        table : `~astropy.table.Table`
            A table.

        Returns
        -------
        features : `~numpy.ndarray`, shape (n, 1) or (n, 2)
            Transformed values, for angles cosine and sine; NaN where missing.
        """
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            columns = _TRANSFORMS[self.transform](self.values(table), self)
        features = np.stack(columns, axis=1)
        return np.where(np.isfinite(features), features, np.nan)

    def resolve(self, table):
        """
        Settle what was left to the table: the unit and the softening.

        Parameters
        ----------
        table : `~astropy.table.Table`
            The table that a flow is fitted to.

        Returns
        -------
        condition : `Condition`
            A copy with nothing left open.
        """
        config = self.get_config()
        if self.unit is None and self.column in table.colnames:
            unit = _column_unit(table, self.column)
            if unit is None and self.transform == "angle":
                msg = (
                    f"the angle {self.column!r} has no unit. Set "
                    f"table[{self.column!r}].unit to 'deg' or 'rad'."
                )
                raise ValueError(msg)
            config["unit"] = unit
        settled = Condition(**config)
        if self.transform == "angle" and not settled.unit.is_equivalent(u.rad):
            msg = f"an angle must have the unit of one, got {settled.unit}."
            raise ValueError(msg)
        if self.transform == "asinh" and self.softening is None:
            size = np.abs(settled.values(table))
            size = size[size > 0]
            settled.softening = float(np.median(size)) if size.size else 1.0
        return settled


def _column_unit(table, name):
    """The unit of a column; one without dimension and scale is none."""
    unit = getattr(table[name], "unit", None)
    return None if unit is None or unit == u.dimensionless_unscaled else unit


def _angle(values, condition):
    angle = condition.fold * values * condition.unit.to(u.rad)
    return [np.cos(angle), np.sin(angle)]


def _logit(values, condition):
    share = np.where((values < 0) | (values > 1), np.nan, values)
    share = np.clip(share, _EDGE, 1 - _EDGE)
    return [np.log(share) - np.log1p(-share)]


_TRANSFORMS = {
    "linear": lambda values, condition: [values],
    "log": lambda values, condition: [np.log(values)],
    "asinh": lambda values, condition: [np.arcsinh(values / condition.softening)],
    "logit": _logit,
    "angle": _angle,
}


class Conditions:
    """
    All conditions of a flow, standardised, with what is known of their support.

    A row of the result has the features of each condition, standardised by their
    median and the half width of the central 68 %, and for each condition whether
    it is missing; its features then are zero.

    A row is in the support if each of its features is in the range of all but
    0.1 % at each end of the training rows, wider by a tenth, angles always; and
    if its Mahalanobis distance, from the covariance of the training rows that is
    measured again without the most distant ones, is less than that of all but
    0.1 % of them.

    Parameters
    ----------
    conditions : sequence of `Condition` or str
        The conditions.
    constants : dict, optional
        What `adapt` has measured.
    """

    def __init__(self, conditions, constants=None):
        if isinstance(conditions, (str, Condition)):
            conditions = [conditions]
        self.conditions = tuple(
            c if isinstance(c, Condition) else Condition(c) for c in conditions
        )
        names = self.names
        if not names or len(set(names)) != len(names):
            msg = f"conditions must be one or more different columns, got {names}."
            raise ValueError(msg)
        self.constants = constants

    @property
    def names(self):
        """The names of the columns."""
        return [condition.column for condition in self.conditions]

    @property
    def owner(self):
        """To which condition each feature belongs."""
        counts = [1 + (c.transform == "angle") for c in self.conditions]
        return np.repeat(np.arange(len(counts)), counts)

    @property
    def dim(self):
        """How many numbers the flow gets."""
        return len(self.owner) + len(self.conditions)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "conditions": [serialize(condition) for condition in self.conditions],
            "constants": self.constants,
        }

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        return cls([deserialize(c) for c in config["conditions"]], config["constants"])

    def _features(self, table):
        if not hasattr(table, "colnames"):
            msg = (
                "conditions are read from the columns of an astropy Table, got "
                f"{type(table).__name__}."
            )
            raise TypeError(msg)
        features = [condition.features(table) for condition in self.conditions]
        return np.concatenate(features, axis=1)

    def adapt(self, table, rows):
        """
        Measure constants on the rows of a table that are trained on.

        Returns
        -------
        conditions : `Conditions`
            With all constants.
        """
        settled = Conditions([c.resolve(table) for c in self.conditions])
        features, owner = settled._features(table)[rows], settled.owner
        for index, name in enumerate(settled.names):
            column = features[:, owner == index]
            if np.isnan(column).all():
                msg = f"the column {name!r} has no usable value in any row."
                raise ValueError(msg)
            if not (np.nanmax(column, axis=0) > np.nanmin(column, axis=0)).any():
                msg = f"the column {name!r} does not vary: it cannot be a condition."
                raise ValueError(msg)
        lower, middle, upper = np.nanquantile(features, _SIGMA_QUANTILES, axis=0)
        scale = 0.5 * (upper - lower)
        scale = np.where(scale > 0, scale, np.nanstd(features, axis=0))
        scale = np.where(scale > 0, scale, 1.0)
        standard = (features - middle) / scale
        low, high = np.nanquantile(standard, _RANGE_QUANTILES, axis=0)
        margin = _MARGIN * (high - low)
        angles = np.array([c.transform == "angle" for c in settled.conditions])[owner]
        missing = np.isnan(features)
        covariance, center, factor = _joint_support(standard[~missing.any(axis=1)])
        constants = {
            "location": middle,
            "scale": scale,
            "low": np.where(angles, -np.inf, low - margin),
            "high": np.where(angles, np.inf, high + margin),
            "seen_missing": [
                bool(missing[:, owner == i].any()) for i in range(len(settled.names))
            ],
            "center": center,
            "covariance": covariance,
            "factor": factor,
        }
        settled.constants = {
            name: np.asarray(value).tolist() for name, value in constants.items()
        }
        return settled

    def allow_missing(self):
        """Let rows lack any condition."""
        self.constants["seen_missing"] = [True] * len(self.conditions)

    def hide(self, encoded, hidden):
        """Take conditions of encoded rows for missing."""
        features, absent = np.split(encoded, [len(self.owner)], axis=1)
        features = np.where(hidden[:, self.owner], np.float32(0), features)
        return np.concatenate(
            [features, np.where(hidden, np.float32(1), absent)], axis=1
        )

    def encode(self, table):
        """
        Give what a flow gets for the rows of a table.

        Returns
        -------
        encoded : `~numpy.ndarray`, shape (n, dim), float32
            Features and indicators.
        usable : `~numpy.ndarray` of bool, shape (n,)
            Whether nothing is missing that was never missing before.
        supported : `~numpy.ndarray` of bool, shape (n,)
            Whether such a row was trained on, and usable.
        """
        constant = {name: np.array(v) for name, v in self.constants.items()}
        features = self._features(table)
        standard = (features - constant["location"]) / constant["scale"]
        missing = np.isnan(standard)
        absent = np.stack(
            [missing[:, self.owner == i].any(axis=1) for i in range(len(self.names))],
            axis=1,
        )
        usable = ~(absent & ~constant["seen_missing"]).any(axis=1)
        inside = (standard >= constant["low"]) & (standard <= constant["high"])
        supported = usable & (inside | missing).all(axis=1)
        for pattern in np.unique(missing, axis=0):
            rows = np.flatnonzero((missing == pattern).all(axis=1))
            seen = ~pattern
            if not seen.any():
                continue
            offset = (standard[rows] - constant["center"])[:, seen]
            covariance = constant["covariance"][np.ix_(seen, seen)]
            squares = (offset @ np.linalg.pinv(covariance) * offset).sum(axis=1)
            limit = constant["factor"] * stats.chi2.ppf(_JOINT_SHARE, seen.sum())
            supported[rows] &= squares <= limit
        standard = np.clip(np.where(missing, 0.0, standard), -_CLIP, _CLIP)
        encoded = np.concatenate([standard, absent], axis=1)
        return encoded.astype(np.float32), usable, supported


def _joint_support(complete):
    """Covariance and centre without the most distant rows, and the limit."""
    dim = complete.shape[1]
    if len(complete) < 5 * (dim + 1):
        # too few to say
        return np.eye(dim), np.zeros(dim), 1e30
    rows = complete
    for _ in range(_TRIM_ROUNDS):
        center = np.median(rows, axis=0)
        covariance = np.cov(rows, rowvar=False).reshape(dim, dim)
        # columns that follow from others leave no direction without width
        covariance += 1e-6 * np.diag(np.maximum(np.diag(covariance), 1e-12))
        offset = complete - center
        squares = (offset @ np.linalg.inv(covariance) * offset).sum(axis=1)
        rows = complete[squares <= np.quantile(squares, _TRIM_SHARE)]
    limit = np.quantile(squares, _JOINT_SHARE)
    return covariance, center, limit / stats.chi2.ppf(_JOINT_SHARE, dim)
