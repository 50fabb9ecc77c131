# Licensed under a 3-clause BSD style license - see LICENSE
"""
Pages of classes that show what is public and leave the rest to its owner.

A page lists what a class adds to Keras or scikit-learn. To that belongs what it
inherits from a private base class of ours, and so the public ancestors of that
one are shown in its place. A constructor shows its arguments although Keras hides
them. A method that only fills in what a base class prescribes has the docstring of
our base class, or names the one of Keras or scikit-learn; its members can be
referred to by name.
"""

import importlib
import inspect

from sphinx.util.inspect import stringify_signature

import astrovae

PROJECTS = {"keras": "Keras", "sklearn": "scikit-learn"}


def project_of(obj):
    """Name the top-level package that an object was made in."""
    return obj.__module__.split(".")[0]


def is_public(cls):
    """Whether a class is of another project, or in an ``__all__`` of ours."""
    if project_of(cls) != "astrovae":
        return True
    subpackage = importlib.import_module(".".join(cls.__module__.split(".")[:2]))
    return cls.__name__ in subpackage.__all__


def collect_members(app):
    """Give each public class what its page should list, and nothing else."""
    for subpackage in astrovae.__all__:
        module = getattr(astrovae, subpackage)
        for name in getattr(module, "__all__", ()):
            cls = getattr(module, name)
            if inspect.isclass(cls):
                adopt_members(cls)
                drop_generated_members(cls)


def adopt_members(cls):
    """Move documented members up from private base classes."""
    for base in cls.__mro__[1:]:
        if is_public(base):
            continue
        for name, member in list(vars(base).items()):
            owner = next(parent for parent in cls.__mro__ if name in vars(parent))
            if not name.startswith("_") and owner is base and member.__doc__:
                setattr(cls, name, member)


def drop_generated_members(cls):
    """Remove members that scikit-learn writes into every estimator."""
    for name, member in list(vars(cls).items()):
        if type(member).__module__.startswith("sklearn."):
            delattr(cls, name)


def public_bases(cls):
    """Yield the nearest public ancestors of a class."""
    for base in cls.__bases__:
        if is_public(base):
            yield base
        else:
            yield from public_bases(base)


def hide_private_bases(app, name, obj, options, bases):
    """Show public ancestors only."""
    shown = dict.fromkeys(
        base
        for parent in bases
        for base in ([parent] if is_public(parent) else public_bases(parent))
    )
    if len(shown) > 1:
        shown.pop(object, None)
    bases[:] = shown


def document_inherited(app, what, name, obj, options, lines):
    """Give a member without a docstring that of ours, or name its owner."""
    if lines or what not in ("method", "attribute", "property"):
        return
    module, class_name, attribute = name.rsplit(".", 2)
    cls = getattr(importlib.import_module(module), class_name, None)
    for base in getattr(cls, "__mro__", ())[1:]:
        if attribute not in vars(base):
            continue
        project = project_of(base)
        docstring = vars(base)[attribute].__doc__
        if project != "astrovae":
            owner = PROJECTS.get(project, project)
            docstring = f"See ``{base.__name__}.{attribute}`` of {owner}."
        if docstring:
            lines[:] = inspect.cleandoc(docstring).splitlines()
            return


def show_arguments(app, what, name, obj, options, signature, return_annotation):
    """Show the arguments of ``__init__`` where ``__new__`` takes anything."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    _, *parameters = inspect.signature(obj.__init__).parameters.values()
    return stringify_signature(inspect.Signature(parameters)), return_annotation


def accept_inherited(app, env, node, contnode):
    """Let a docstring name a member that is on the page of a base class."""
    module, class_name = node.get("py:module"), node.get("py:class")
    if not (module and class_name and module.startswith("astrovae")):
        return None
    cls = getattr(importlib.import_module(module), class_name, None)
    return contnode if hasattr(cls, node["reftarget"]) else None


def setup(app):
    """Connect to autodoc, before automodapi and numpydoc do."""
    app.connect("builder-inited", collect_members, priority=400)
    app.connect("autodoc-process-bases", hide_private_bases)
    app.connect("autodoc-process-docstring", document_inherited, priority=400)
    app.connect("autodoc-process-signature", show_arguments, priority=400)
    app.connect("missing-reference", accept_inherited)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
