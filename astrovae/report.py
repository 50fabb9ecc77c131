# Licensed under a 3-clause BSD style license - see LICENSE
"""
Reports that are one file: text, tables and figures in a page of HTML.

The page needs nothing from elsewhere, neither network nor scripts, so it
can be mailed, archived and opened years later.
"""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from astropy.table import Table

from astrovae import __version__
from astrovae._files import atomic_file

__all__ = ["Section", "write_report"]

_PNG = b"\x89PNG\r\n\x1a\n"

_STYLE = """
:root {
  color-scheme: light dark;
  --text: #1c2128; --soft: #59636e; --page: #ffffff; --card: #f5f7f9;
  --line: #d7dde3; --accent: #0b5c9e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #dde3ea; --soft: #98a3af; --page: #14181d; --card: #1d232a;
    --line: #343c46; --accent: #7bbcf0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial,
    sans-serif;
}
main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
main > p, section > p { max-width: 44rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 3rem 0 1.5rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .5rem; }
p { margin: .75rem 0; }
code {
  font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--card); border-radius: .25rem; padding: .1em .3em;
}
dl {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: 1px; margin: 1.5rem 0; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; overflow: hidden;
}
dl div { box-shadow: 0 0 0 1px var(--line); padding: .7rem 1rem; }
dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
figure { margin: 1.5rem 0 2rem; }
figure img {
  display: block; max-width: 100%; height: auto; background: #fff; padding: .6rem;
  border: 1px solid var(--line); border-radius: .5rem;
}
figcaption { color: var(--soft); font-size: .88rem; margin-top: .6rem; }
.table { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { padding: .35rem .8rem; text-align: right; }
th { border-bottom: 2px solid var(--line); vertical-align: top; }
th small { display: block; color: var(--soft); font-weight: 400; }
td { border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
footer {
  color: var(--soft); font-size: .82rem; margin-top: 4rem;
  padding-top: 1rem; padding-bottom: 3rem; border-top: 1px solid var(--line);
}
@media print {
  :root {
    --text: #000; --soft: #444; --page: #fff; --card: #fff; --line: #bbb;
  }
  body { font-size: 10.5pt; }
  h1 { margin-top: 0; }
  h2 { break-after: avoid; }
  figure, dl, tr { break-inside: avoid; }
  figure img { border: 0; padding: 0; }
  .table { overflow: visible; }
  table { font-size: 7.5pt; }
}
"""


@dataclass(frozen=True)
class Section:
    """
    A part of a report.

    Parameters
    ----------
    heading : str
        Its heading.
    text : str, optional
        Paragraphs, separated by blank lines. ``**words**`` are strong and
        words between back quotes are code; all else is shown as it is.
    figures : sequence of (path-like or `~matplotlib.figure.Figure`, str), optional
        PNG files or figures, each with its caption.
    table : `~astropy.table.Table`, optional
        Shown in full: slice it first.
    """

    heading: str
    text: str = ""
    figures: Sequence = field(default_factory=tuple)
    table: Table | None = None


def write_report(path, *, title, summary=(), sections=()):
    """
    Write a report as one HTML file.

    Parameters
    ----------
    path : path-like
        The file. It is complete or absent: it is written under a temporary
        name and renamed. An existing file is replaced.
    title : str
        Title of the report.
    summary : sequence of (str, object), optional
        Labels and values of the numbers that stand at the top.
    sections : sequence of Section, optional
        The parts of the report.

    Returns
    -------
    path : `~pathlib.Path`
        The file.

    Raises
    ------
    FileNotFoundError
        If a figure, or the folder of the file, does not exist.
    ValueError
        If a figure is not a PNG file.

    Examples
    --------
    >>> from astrovae.report import Section, write_report
    >>> sections = [Section("Galaxies", "All of them are **round**.")]
    >>> path = write_report(
    ...     "report.html", title="A survey", summary=[("galaxies", 3)],
    ...     sections=sections,
    ... )  # doctest: +SKIP
    """
    path = Path(path)
    page = _page(title, summary, sections)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _page(title, summary, sections):
    title = html.escape(title)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{title}</h1>",
    ]
    if summary:
        items = (
            f"<div><dt>{html.escape(str(label))}</dt>"
            f"<dd>{html.escape(str(value))}</dd></div>"
            for label, value in summary
        )
        parts += ["<dl>", *items, "</dl>"]
    for section in sections:
        parts += ["<section>", *_section(section), "</section>"]
    parts += [
        "</main>",
        f"<footer>Made with astrovae {html.escape(__version__)}.</footer>",
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(parts)


def _section(section):
    yield f"<h2>{html.escape(section.heading)}</h2>"
    for paragraph in re.split(r"\n\s*\n", section.text.strip()):
        if paragraph:
            yield f"<p>{_markup(paragraph)}</p>"
    for figure, caption in section.figures:
        image = base64.b64encode(_png(figure)).decode("ascii")
        caption = _markup(caption)
        alt = html.escape(html.unescape(re.sub(r"<[^>]+>", "", caption)))
        yield (
            f'<figure><img src="data:image/png;base64,{image}" alt="{alt}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    if section.table is not None:
        yield _table(section.table)


def _markup(text):
    """Escape text, then mark what is strong and what is code."""
    text = html.escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _png(figure):
    """The bytes of a PNG file, or of a figure saved as one."""
    if hasattr(figure, "savefig"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()
    path = Path(figure)
    if not path.is_file():
        msg = f"There is no figure {path}."
        raise FileNotFoundError(msg)
    data = path.read_bytes()
    if not data.startswith(_PNG):
        msg = f"{path} is not a PNG file: figures are embedded as PNG."
        raise ValueError(msg)
    return data


def _table(table):
    """Render a table as astropy formats it; numbers without a format shortened."""
    table = table.copy()
    heads, columns = [], []
    for name in table.colnames:
        column = table[name]
        if getattr(column, "dtype", None) is not None and column.dtype.kind == "f":
            column.info.format = column.info.format or ".4g"
        unit = column.info.unit
        unit = f"<small>{html.escape(f'{unit:unicode}')}</small>" if unit else ""
        heads.append(f'<th scope="col">{html.escape(name)}{unit}</th>')
        values = column.info.iter_str_vals()
        columns.append([html.escape(value.strip()) for value in values])
    rows = (
        "<tr>" + "".join(f"<td>{value}</td>" for value in row) + "</tr>"
        for row in zip(*columns)
    )
    return "\n".join(
        [
            '<div class="table" tabindex="0"><table>',
            f"<thead><tr>{''.join(heads)}</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody></table></div>",
        ]
    )
