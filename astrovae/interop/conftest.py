# Licensed under a 3-clause BSD style license - see LICENSE
"""Examples are tested where the other package is installed."""

from importlib.util import find_spec

collect_ignore = [f"{name}.py" for name in ("btk", "galsim") if find_spec(name) is None]
