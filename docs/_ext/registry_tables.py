# Licensed under a 3-clause BSD style license - see LICENSE
"""
Tables of columns and flags, read from the registries when the page is built.

``.. columns-table::`` lists `astrovae.catalog.columns.COLUMNS`, and
``.. flags-table::`` the members of `astrovae.flags.Flag`.
"""

from sphinx.util.docutils import SphinxDirective

from astrovae.catalog.columns import COLUMNS
from astrovae.flags import Flag


def list_table(header, rows, widths):
    """Write a list-table in reStructuredText."""
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: " + " ".join(map(str, widths)),
        "",
    ]
    for row in (header, *rows):
        for index, cell in enumerate(row):
            lines.append(f"   {'*' if index == 0 else ' '} - {cell}")
    return "\n".join(lines)


def literal(text):
    """Mark a code; an empty one stays empty."""
    return f"``{text}``" if text else ""


class ColumnsTable(SphinxDirective):
    """The registry of columns."""

    def run(self):
        rows = [
            [
                literal(name),
                literal(f"({column.shape})" if column.shape else ""),
                literal(column.dtype),
                column.unit,
                literal(column.ucd),
                column.description,
            ]
            for name, column in COLUMNS.items()
        ]
        header = ["Name", "Shape", "Type", "Unit", "UCD", "Description"]
        return self.parse_text_to_nodes(
            list_table(header, rows, [22, 10, 9, 8, 18, 33])
        )


class FlagsTable(SphinxDirective):
    """The registry of flag bits."""

    def run(self):
        rows = [
            [
                str(flag.value.bit_length() - 1),
                str(flag.value),
                literal(flag.name.lower()),
                flag.description,
            ]
            for flag in Flag
        ]
        header = ["Bit", "Value", "Name", "Meaning"]
        return self.parse_text_to_nodes(list_table(header, rows, [6, 10, 28, 56]))


def setup(app):
    """Register the directives."""
    app.add_directive("columns-table", ColumnsTable)
    app.add_directive("flags-table", FlagsTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
