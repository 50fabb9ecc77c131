# Licensed under a 3-clause BSD style license - see LICENSE
"""
The arrows of the architecture, read from the import statements.

docs/development/package_map.rst draws them. Imports inside functions count:
what a module needs does not depend on when it asks for it.
"""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import astrovae

PACKAGE = Path(astrovae.__file__).parent

# Private foundations and registries. Each may import those before it.
SHARED = (
    "exceptions",
    "flags",
    "_optional",
    "_progress",
    "_files",
    "_validation",
    "_sources",
)

# Each room and what it may import besides SHARED.
NUMPY_HALF = {
    "images": set(),
    "datasets": {"images"},
}
KERAS_HALF = {
    "ops": set(),
    "_batches": {"ops"},
    "layers": {"ops"},
    "models": {"ops", "_batches", "layers"},
}
JOINS = {
    # Stacks and models are known by what they do, not by their class.
    "baselines": {"ops", "_batches"},
    # The Gaussian fit is the baseline unless told otherwise.
    "catalog": {"baselines"},
}
BELOW_LEAVES = {*NUMPY_HALF, *KERAS_HALF, *JOINS}
LEAVES = {
    "diagnostics": BELOW_LEAVES,
    "interop": BELOW_LEAVES,
    "plotting": BELOW_LEAVES,
    "scale": BELOW_LEAVES,
    "report": BELOW_LEAVES,
    "quickstart": BELOW_LEAVES | {"plotting", "report"},
}
ALLOWED = {
    **{room: set(SHARED[:rank]) for rank, room in enumerate(SHARED)},
    **{
        room: imports | set(SHARED)
        for rooms in (NUMPY_HALF, KERAS_HALF, JOINS, LEAVES)
        for room, imports in rooms.items()
    },
    "cli": {*SHARED, *BELOW_LEAVES, *LEAVES},
    "__init__": set(),
}

# What the package itself offers to its rooms.
ROOT = ("astrovae", "astrovae.__version__")

# Rooms that never load Keras; baselines load it inside their fits.
WITHOUT_KERAS = {*SHARED, *NUMPY_HALF, "catalog"}

# Keras is used through its public interface, and never around it.
FORBIDDEN = ("keras.src", "keras.backend", "tensorflow", "jax", "jaxlib", "torch")
# (module, import): why it cannot do without.
FORBIDDEN_EXCEPT = {}


@functools.cache
def modules():
    """Return (name relative to the package, syntax tree) of every module."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found.append((".".join(parts), tree))
    return found


def imports(name, tree):
    """Yield the full names of all that a module imports."""
    is_package = (PACKAGE / name.replace(".", "/")).is_dir()
    own = ["astrovae", *name.split(".")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                level = node.level - is_package
                base = own[: len(own) - level]
                source = ".".join([*base, source] if source else base)
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "keras":
            # keras.src.layers after a plain "import keras"
            yield f"keras.{node.attr}"


def room_of(name):
    """Name the room of a module of this package."""
    return name.split(".")[0]


def is_inside(name, package):
    """Whether a dotted name is a package or lies inside it."""
    return name == package or name.startswith(f"{package}.")


def run_python(code, tmp_path):
    """Run code in a fresh interpreter and return the modules it loaded."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


def test_every_module_has_a_room():
    """A new top-level module needs a place in ALLOWED and in the package map."""
    rooms = {room_of(name) for name, _ in modules()}
    assert rooms - set(ALLOWED) == set()


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_arrows(room):
    """A room imports only what the arrows allow."""
    wrong = [
        f"astrovae.{name} imports {imported}"
        for name, tree in modules()
        if room_of(name) == room
        for imported in imports(name, tree)
        if is_inside(imported, "astrovae") and imported not in ROOT
        if room_of(imported.removeprefix("astrovae.")) not in ALLOWED[room] | {room}
    ]
    assert wrong == []


def test_halves_never_meet():
    """What ALLOWED says keeps the two halves apart, through any chain."""

    def reach(room):
        seen = set()
        rooms = {room}
        while rooms:
            seen |= rooms
            rooms = set().union(*(ALLOWED[room] for room in rooms)) - seen
        return seen

    for room in NUMPY_HALF:
        assert reach(room).isdisjoint(KERAS_HALF)
    for room in KERAS_HALF:
        assert reach(room).isdisjoint(NUMPY_HALF)


def test_only_cli_imports_leaves():
    """Leaves can be removed without touching anything but the command line."""
    within = {("quickstart", "plotting"), ("quickstart", "report")}
    found = {
        (room_of(name), room_of(imported.removeprefix("astrovae.")))
        for name, tree in modules()
        for imported in imports(name, tree)
        if is_inside(imported, "astrovae")
    }
    wrong = {
        (room, leaf)
        for room, leaf in found
        if leaf in LEAVES and room not in (leaf, "cli")
    }
    assert wrong <= within


def test_public_keras_only():
    """No module goes around the public interface of Keras."""
    wrong = [
        (name, imported)
        for name, tree in modules()
        for imported in imports(name, tree)
        if any(is_inside(imported, package) for package in FORBIDDEN)
        if (name, imported) not in FORBIDDEN_EXCEPT
    ]
    assert wrong == []


def test_no_keras_where_none_is_needed():
    """Preparing images and joining tables needs no Keras."""
    wrong = [
        (name, imported)
        for name, tree in modules()
        if room_of(name) in WITHOUT_KERAS
        for imported in imports(name, tree)
        if is_inside(imported, "keras")
    ]
    assert wrong == []


def test_import_is_light(tmp_path):
    """``import astrovae`` loads nothing heavy."""
    loaded = run_python("import astrovae", tmp_path)
    heavy = {"keras", "tensorflow", "matplotlib", "astropy.table"}
    assert "astrovae" in loaded
    assert loaded & heavy == set()


def test_images_and_catalog_leave_keras_out(tmp_path):
    """Preparing images and joining tables never waits for Keras."""
    loaded = run_python("import astrovae.images, astrovae.catalog", tmp_path)
    heavy = {"keras", "tensorflow", "jax", "torch", "matplotlib"}
    assert loaded & heavy == set()


@pytest.mark.parametrize("command", [None, "quickstart", "fit", "append", "info"])
def test_help_leaves_keras_out(command, tmp_path):
    """``--help`` answers at once."""
    arguments = ["--help"] if command is None else [command, "--help"]
    code = (
        "from astrovae.cli import main\n"
        f"try:\n    main({arguments!r})\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
    )
    loaded = run_python(code, tmp_path)
    assert loaded & {"keras", "tensorflow", "matplotlib"} == set()
