"""What the documentation shows runs as it stands, and its links lead somewhere."""

from __future__ import annotations

import doctest
import glob
import importlib
import inspect
import re
import shlex
import warnings
from pathlib import Path
from urllib.parse import urlparse

import pytest
from py4DSTEM import DataCube
from test_layers import MODULES

import py4dstem_clustering
from py4dstem_clustering import metrics, simulate_scan
from py4dstem_clustering.cli.main import main

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "tutorials" / "guide"
PAGES = [ROOT / "README.md", *sorted(GUIDE.glob("*.md"))]
WARNING = {"orientation_and_strain", "overlaps", "phases", "series"}
"""Pages on which py4DSTEM or distributed warn; this project cannot change that."""

LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?:python -m py4dstem_clustering|py4dstem-clustering) +(.*)$", flags=re.M)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, language):
    """Code blocks of a page, also those inside a list."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, flags=re.M | re.S)
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, code in found]


def prose(page):
    """A page without its code."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("[", " ").replace("(", " "), text)


def anchors(page):
    """Anchors of the headings of a page, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def expanded(command):
    """The words of a command, with wildcards replaced by files as a shell does."""
    words = shlex.split(command)
    return [found for word in words for found in (sorted(glob.glob(word)) or [word])]


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("__")])
def test_examples_in_docstrings(module, tmp_path):
    module = importlib.import_module(f"py4dstem_clustering.{module}".removesuffix(".__init__"))
    scan = simulate_scan((8, 10), (32, 30), n_grains=1, electrons=20_000, speckle=0, seed=1)
    failed, _ = doctest.testmod(module, extraglobs={"datacube": scan.datacube, "folder": tmp_path})
    assert failed == 0


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with warnings.catch_warnings():
        if page.stem in WARNING:
            warnings.simplefilter("ignore")
        for code in blocks(page, "python"):
            exec(compile(code, name_of(page), "exec"), names)  # noqa: S102
        for command in COMMAND.findall("\n".join(blocks(page, "sh"))):
            assert main([*expanded(command), "--quiet"]) == 0, command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page(page):
    links = LINK.findall(prose(page))
    for link in links:
        if "://" in link:
            url = urlparse(link)
            assert url.scheme == "https", link
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", url.netloc), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("notebook", sorted(GUIDE.parent.glob("*.ipynb")), ids=name_of)
def test_the_links_of_a_notebook_to_the_guide(notebook):
    for link in re.findall(r"\]\((guide/[^)\s]+)\)", notebook.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        assert (notebook.parent / path).exists(), link
        assert not anchor or anchor in anchors(notebook.parent / path), link


def test_the_index_and_the_readme_name_every_page():
    pages = {page.name for page in GUIDE.glob("*.md")} - {"README.md"}
    assert set(LINK.findall(prose(GUIDE / "README.md"))) >= pages
    assert set(LINK.findall(prose(ROOT / "README.md"))) >= {f"tutorials/guide/{p}" for p in pages}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


@pytest.mark.parametrize("part", ["py4dstem_clustering demo", "pytest"])
def test_the_readme_has_the_two_commands(part):
    """The file .ci/run takes the commands from the README."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert sum("python3 -m venv .venv" in line and part in line for line in lines) == 1


def test_all_public_names_are_listed():
    public = {*py4dstem_clustering.__all__} - {"__version__"}
    for cls in (getattr(py4dstem_clustering, name) for name in tuple(public)):
        if inspect.isclass(cls):
            public |= {*vars(cls), *getattr(cls, "__dataclass_fields__", ())}
    ours = "py4dstem_clustering"
    for name, value in vars(DataCube).items():
        value = value.fget if isinstance(value, property) else value
        if str(getattr(value, "__module__", "")).startswith(ours):
            public.add(name)
    public |= set(metrics.__all__)
    listed = set(re.findall(r"\w+", (GUIDE / "names.md").read_text(encoding="utf-8")))
    assert {"cluster", "get_clusters", "panoptic_quality", "purity"} <= public
    assert sorted(name for name in public - listed if not name.startswith("_")) == []


def test_the_version_is_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{py4dstem_clustering.__version__}]" in changelog
