# Licensed under a 3-clause BSD style license - see LICENSE
"""What is public exists, is documented in full, and is in the common tests."""

import enum
import importlib
import inspect

import pytest
from numpydoc.validate import validate

import astrovae
from checks import BIJECTOR_CASES, ESTIMATOR_CASES, LAYER_CASES, PRIOR_CASES

SUBPACKAGES = [name for name in astrovae.__all__ if name != "__version__"]

# The codes of numpydoc that every public docstring must satisfy.
DOCSTRING_CHECKS = {
    "GL01",  # text starts on the line after the quotes, if it has several
    "GL03",  # no double blank lines
    "GL05",  # no tabs
    "GL06",  # no unknown sections
    "GL07",  # sections in the order of numpydoc
    "GL08",  # there is a docstring
    "SS01",  # there is a summary,
    "SS02",  # it starts with a capital letter
    "SS03",  # and ends with a period
    "PR01",  # all parameters are documented
    "PR02",  # and no others
    "PR03",  # in their order
    "PR04",  # with a type
    "PR05",  # without a period
    "PR07",  # and a description
    "PR10",  # and a space before the colon
    "RT01",  # what is returned is documented,
    "RT03",  # with a description
    "YD01",  # and so is what is yielded
}


def public_objects(subpackage):
    """Yield (full name, object) of all names in the ``__all__`` of a subpackage."""
    module = importlib.import_module(f"astrovae.{subpackage}")
    for name in module.__all__:
        yield f"{module.__name__}.{name}", getattr(module, name)


def own_methods(name, cls):
    """
    Yield the full names of the public methods that a class adds.

    Those that Keras, scikit-learn or Python prescribe are documented there.
    """
    prescribed = {"from_config", "get_config"}
    for base in cls.__mro__[1:]:
        if not base.__module__.startswith("astrovae"):
            prescribed |= set(vars(base))
    for attribute, value in vars(cls).items():
        kinds = (classmethod, property, staticmethod)
        if attribute.startswith("_") or attribute in prescribed:
            continue
        if inspect.isfunction(value) or isinstance(value, kinds):
            yield f"{name}.{attribute}"


def public_classes(subpackage):
    """Return the public classes of a subpackage."""
    return {obj for _, obj in public_objects(subpackage) if inspect.isclass(obj)}


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_public_names_exist(subpackage):
    """All that ``__all__`` promises is there, once."""
    module = importlib.import_module(f"astrovae.{subpackage}")
    assert getattr(astrovae, subpackage) is module
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_docstrings(subpackage):
    """Public objects and their own methods follow numpydoc."""
    assert docstring_problems(subpackage) == []


@pytest.mark.parametrize("package", ["galsim", "btk"])
def test_docstrings_of_bridges(package):
    """So do those of bridges to other packages, if these are installed."""
    pytest.importorskip(package)
    assert docstring_problems(f"interop.{package}") == []


def docstring_problems(subpackage):
    """List what numpydoc finds wrong with the public names of a module."""
    problems = []
    for name, obj in public_objects(subpackage):
        if not (inspect.isclass(obj) or inspect.isroutine(obj)):
            continue
        names = [name]
        if inspect.isclass(obj):
            names += own_methods(name, obj)
        checks = DOCSTRING_CHECKS
        if inspect.isclass(obj) and issubclass(obj, enum.Enum):
            checks = checks - {"PR01"}  # the constructor is that of Python
        problems += [
            f"{name}: {code} {message}"
            for name in names
            for code, message in validate(name)["errors"]
            if code in checks
        ]
    return problems


def test_every_layer_is_checked():
    """Public layers, priors and bijectors go through the common tests."""
    layers = public_classes("layers")
    priors = {cls for cls in layers if hasattr(cls, "kl_divergence")}
    bijectors = {
        cls for cls in layers if "inverse" in inspect.signature(cls.call).parameters
    }
    assert layers - set(LAYER_CASES) == set()
    assert priors - set(PRIOR_CASES) == set()
    assert bijectors - set(BIJECTOR_CASES) == set()


def test_every_estimator_is_checked():
    """Public classes with a ``fit`` go through the common tests of estimators."""
    estimators = {cls for cls in public_classes("baselines") if hasattr(cls, "fit")}
    assert estimators - set(ESTIMATOR_CASES) == set()
