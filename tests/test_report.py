# Licensed under a 3-clause BSD style license - see LICENSE
"""A report is one complete HTML file that needs nothing else."""

import base64
import re
from html.parser import HTMLParser

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from matplotlib.figure import Figure

from astrovae.report import Section, write_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Reads a page; fails if tags are not closed in order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def attributes(self, tag):
        return [found for name, found in self.tags if name == tag]


@pytest.fixture
def figure():
    """A small figure."""
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return figure


@pytest.fixture
def png(figure, tmp_path):
    """A figure in a file."""
    path = tmp_path / "figure.png"
    figure.savefig(path)
    return path


def test_report_is_complete_and_alone(figure, png, tmp_path):
    """All is in the page, and nothing is fetched."""
    table = Table({"flux": [1.23456789, 2.0] * u.nJy, "name": ["a < b", "c"]})
    path = write_report(
        tmp_path / "report.html",
        title="A & B",
        summary=[("galaxies", 400), ("share", "50 %")],
        sections=[
            Section("One", "First.\n\nSecond.", [(png, "A file"), (figure, "Made")]),
            Section("Two", table=table),
        ],
    )
    assert path == tmp_path / "report.html"
    page = Page(path)
    assert "A & B galaxies400 share50 % One First. Second. A file Made" in page.text
    assert [a["alt"] for a in page.attributes("img")] == ["A file", "Made"]
    for image in page.attributes("img"):
        kind, data = image["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert base64.b64encode(png.read_bytes()).decode() in path.read_text("utf-8")
    assert len(page.attributes("p")) == 2
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in page.tags)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", re.sub('base64,[^"]*', "", text))


def test_text_is_escaped_and_marked(png, tmp_path):
    """Only the small markup is one."""
    text = "**n < 3** & `a*b*c <i>`, not 2 ** 3 ** 4, <script>alert('x')</script>"
    sections = [Section("<h>", text, [(png, 'A "quoted" <b> **caption**')])]
    page = Page(write_report(tmp_path / "r.html", title="<t>", sections=sections))
    assert "n < 3 & a*b*c <i>, not" in page.text
    assert "<script>alert('x')</script>" in page.text
    assert [tag for tag, _ in page.tags].count("code") == 1
    assert "script" not in dict(page.tags)
    assert page.attributes("img")[0]["alt"] == 'A "quoted" <b> caption'


def test_tables_of_all_kinds(tmp_path):
    """Masked values, vectors, units and formats appear; the table stays as it is."""
    table = Table({"id": np.array([2**62 + 1, 2])})
    table["x"] = MaskedColumn([1.23456789, 2.0], mask=[False, True], unit="pix")
    table["z"] = np.arange(6.0).reshape(2, 3) / 7
    table["y"] = [0.123456, 1.0] * u.nJy**2
    table["y"].info.format = ".2f"
    sections = [Section("Table", table=table)]
    page = Page(write_report(tmp_path / "r.html", title="T", sections=sections))
    assert "idxpixzynJy²" in page.text.replace(" ", "")
    assert "4611686018427387905" in page.text
    assert "1.235" in page.text
    assert "1.2345" not in page.text
    assert "--" in page.text
    assert "0.12" in page.text
    assert "0.1429" not in page.text  # vectors are shortened to first .. last
    assert table["x"].info.format is None
    assert len(page.attributes("tr")) == 3


def test_empty_report(tmp_path):
    """Nothing but a title is a page, too; so is an empty table."""
    sections = [Section("Empty", table=Table({"a": np.zeros(0)}))]
    page = Page(write_report(tmp_path / "r.html", title="T", sections=sections))
    assert page.text.startswith("T T Empty a")
    assert "dl" not in dict(page.tags)


def test_same_input_same_file(png, tmp_path):
    """A report has no date of its own."""
    for name in ("a.html", "b.html"):
        write_report(
            tmp_path / name, title="T", sections=[Section("S", "t", [(png, "c")])]
        )
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_failure_leaves_the_old_file(tmp_path):
    """A page is complete or not written."""
    path = tmp_path / "report.html"
    write_report(path, title="Old")
    old = path.read_bytes()
    (tmp_path / "figure.jpg").write_bytes(b"\xff\xd8\xff")
    for name, kind, message in (
        ("none.png", FileNotFoundError, "There is no figure .*none.png"),
        ("figure.jpg", ValueError, "not a PNG file"),
    ):
        with pytest.raises(kind, match=message):
            write_report(
                path, title="T", sections=[Section("S", "", [(tmp_path / name, "c")])]
            )
    assert path.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.jpg", "report.html"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_report(tmp_path / "none" / "report.html", title="T")
