"""What ``info`` prints, what ``--report`` writes, and the examples of ``--help``."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import py4DSTEM
import pytest

from py4dstem_clustering import simulate_scan, simulate_series
from py4dstem_clustering.cli.info import _bytes, _time
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.cli.parser import make_parser


def run(*arguments):
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scan, calibrated in EMD and bare in NumPy."""
    path = tmp_path_factory.mktemp("files")
    scan = simulate_scan((24, 20), (48, 44), n_grains=3, electrons=2000, seed=2).datacube
    scan.name = "gold"
    py4DSTEM.save(str(path / "scan.h5"), scan)
    np.save(path / "scan.npy", scan.data.astype(np.uint16))
    return path


# --- info --------------------------------------------------------------------------------------


def facts(text):
    """The lines of ``info`` as a dict."""
    return dict(re.findall(r"^  (\S[\w ]*?)  +(.*)$", text, flags=re.M))


def test_info_of_a_calibrated_scan(folder, capsys):
    assert run("info", folder / "scan.h5") == 0
    text = capsys.readouterr().out
    found = facts(text)
    assert text.startswith("scan.h5\n")
    assert found["scan"] == "24 x 20 positions"
    assert found["detector"] == "48 x 44 pixels"
    assert found["scan step"] == "20 Å (field of view 480 x 400 Å)"
    assert re.fullmatch(r"0\.\d+ Å⁻¹ \(reaches 1\.\d+ Å⁻¹\)", found["detector pixel"])
    assert found["origin"] == "pixel 23.5, 21.5"
    assert re.match(r"about [\d.]+ (s|min) on this machine \(measured with 480", found["time"])
    assert re.match(r"about \d+ MB", found["memory"])
    assert found["averages"] == "8.45 kB for each cluster"
    assert "py4dstem-clustering cluster" in text.splitlines()[-1]


def test_info_of_a_bare_scan_says_how_to_calibrate(folder, capsys):
    assert run("info", folder / "scan.npy", "--quiet") == 0
    text = capsys.readouterr().out
    found = facts(text)
    assert found["scan step"] == "not known; state it with --step 2 nm"
    assert found["origin"].startswith("not known")
    assert "uint16, 2.03 MB" in found["data"]
    assert "Next:" not in text
    assert run("info", folder / "scan.npy", "--step", 2, "nm") == 0
    assert facts(capsys.readouterr().out)["scan step"] == "2 nm (field of view 48 x 40 nm)"


def test_info_of_results(folder, tmp_path, capsys):
    out = tmp_path / "clusters.h5"
    assert run("cluster", folder / "scan.h5", "--out", out, "--quiet") == 0
    capsys.readouterr()
    assert run("info", out) == 0
    text = capsys.readouterr().out
    assert facts(text)["clusters"] == "'clusters'"
    assert "3 clusters" in facts(text)["newest clusters"]
    assert "averages of clusters, no scan" in text
    assert facts(text)["scan step"] == "20 Å (field of view 480 x 400 Å)"
    assert text.splitlines()[-1].endswith("--to results")


def test_info_does_not_touch_the_file(folder, capsys):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert run("info", folder / "scan.npy") == 0
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


def test_info_of_what_is_no_scan(tmp_path, capsys):
    np.save(tmp_path / "image.npy", np.zeros((4, 5)))
    assert run("info", tmp_path / "image.npy") == 2
    assert "holds no scan" in capsys.readouterr().err
    assert run("info", tmp_path / "none.mib") == 2
    assert "is not a file" in capsys.readouterr().err
    assert run("info", tmp_path / "image.npy", "--step", 2, "parsec") == 2
    assert "has a unit that is not known" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.345, "0.34 s"), (42.4, "42 s"), (200, "3.3 min"), (9000, "2.5 h")]
)
def test_times(seconds, text):
    assert _time(seconds) == text


def test_sizes():
    assert [_bytes(n) for n in (12, 2_000, 3.5e6, 1.94e10)] == [
        "12 bytes",
        "2 kB",
        "3.5 MB",
        "19.4 GB",
    ]


# --- help --------------------------------------------------------------------------------------


def parsers():
    """Every command with its parser."""
    stack = [("", make_parser())]
    while stack:
        name, parser = stack.pop()
        yield name, parser
        for action in parser._actions:
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                stack += [(f"{name} {key}".strip(), one) for key, one in action.choices.items()]


def test_the_examples_of_every_command_are_commands():
    parser = make_parser()
    n = 0
    for name, one in parsers():
        text = one.format_help()
        assert "examples:\n" in text, name
        for line in re.findall(r"^  py4dstem-clustering ([^C].*)$", text, flags=re.M):
            words = shlex.split(line.split("   ")[0])
            if name:
                assert " ".join(words).startswith(name)
            parser.parse_args(words)
            n += 1
        assert max(map(len, text.splitlines())) <= 100
    assert n > 15


def test_the_commands_on_the_first_screen_of_the_readme():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m py4dstem_clustering (.*)$", text, flags=re.M)
    assert [line.split()[0] for line in lines[:3]] == ["demo", "info", "cluster"]
    for line in lines:
        make_parser().parse_args(shlex.split(line))
    assert len(text[: text.index("## In Python")].split()) < 300


# --- report ------------------------------------------------------------------------------------


class Page(HTMLParser):
    """A page: what it loads, its headings, figures and tables."""

    EMPTY = ("img", "meta", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.images, self.headings = [], [], [], []
        self.rows, self.text = 0, ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.loads += [attrs[name] for name in ("src", "href", "action") if name in attrs]
        self.images += [attrs] if tag == "img" else []
        self.rows += tag == "tr"
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        self.text += data


def read(path):
    page = Page(path.read_text(encoding="utf-8"))
    assert all(one.startswith("data:image/png;base64,") for one in page.loads)  # nothing outside
    assert all(image["alt"] for image in page.images)
    return page


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    """The page of merging, and of growth at two thresholds."""
    path = tmp_path_factory.mktemp("report")
    for name, options in (
        ("merged", ()),
        ("grown", ("--threshold", 0.8, 0.9, "--sigma", 1, "--min-size", 5)),
    ):
        code = run(
            "cluster", folder / "scan.h5", "--out", path / f"{name}.h5", "--quiet",
            "--report", path / f"{name}.html", *options,
        )  # fmt: skip
        assert code == 0
    return path


def test_the_report_of_a_scan(report):
    clusters = py4DSTEM.read(str(report / "merged.h5")).clusters
    page = read(report / "merged.html")
    assert page.headings == [
        "Data", "Clusters 'clusters'", "Average patterns", "Properties", "Methods", "Settings",
        "Command",
    ]  # fmt: skip
    assert len(page.images) == 3  # map, sizes, averages
    for part in (
        clusters.describe().split("\n\n")[0],
        "[1] B. H. Savitzky",
        "24 x 20 positions",
        "20 Å (field of view 480 x 400 Å)",
        f"{clusters.settings['gain']:.6g}",
        "drop_background",
        "--report",
        "3 clusters over the virtual image.",
    ):
        assert part in page.text
    assert page.rows >= 10 + len(clusters)
    assert (report / "merged.html").stat().st_size < 1_000_000


def test_the_report_of_growth(report):
    page = read(report / "grown.html")
    assert [h for h in page.headings if "Clusters" in h] == [
        "Clusters 'clusters_0.8'", "Clusters 'clusters_0.9'",
    ]  # fmt: skip
    assert "To check" not in page.headings or "clusters_0" in page.text
    assert "Step of growth" in page.text


def test_the_report_of_a_series(tmp_path, capsys):
    movie = simulate_series((20, 18), (36, 32), n_frames=3, n_particles=2, electrons=4000, seed=2)
    for t, frame in enumerate(movie):
        np.save(tmp_path / f"frame_{t}.npy", frame.data.astype(np.uint16))
    files = sorted(tmp_path.glob("frame_*.npy"))
    files[1].write_bytes(files[1].read_bytes()[:2000])  # a broken copy
    path = tmp_path / "series.html"
    options = ("--out", tmp_path / "s.h5", "--report", path, "--time-step", 0.5, "s", "--quiet")
    assert run("series", *files, *options) == 0
    page = read(path)
    assert {"Tracks", "Frames that failed", "Some frames", "Events", "Settings"} <= set(
        page.headings
    )
    assert "frame 1" in page.text
    assert len(page.images) >= 4
    assert run("info", tmp_path / "s.h5") == 0
    assert "0 to 1 s" in capsys.readouterr().out


def test_names_of_files_are_text_in_a_report(folder, tmp_path):
    path = tmp_path / "<b>scan & co.npy"
    shutil.copy(folder / "scan.npy", path)
    options = ("--out", tmp_path / "c.h5", "--report", tmp_path / "r.html", "--quiet")
    assert run("cluster", path, *options) == 0
    assert "<b>scan & co.npy" in read(tmp_path / "r.html").text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("report.pdf", "must end in .html"),
        ("none/report.html", "none"),
    ],
)
@pytest.mark.parametrize("command", ["cluster", "series"])
def test_a_wrong_name_is_refused_before_any_work(
    folder, tmp_path, capsys, monkeypatch, command, name, text
):
    monkeypatch.setattr("py4dstem_clustering.cli.options.open_scan", None)
    options = ("--out", tmp_path / "c.h5", "--report", tmp_path / name, "--quiet")
    assert run(command, folder / "scan.npy", *options) == 2
    error = capsys.readouterr().err
    assert "--report" in error
    assert text in error


def test_no_report_is_left_when_a_figure_fails(folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr("py4dstem_clustering.exporting.report.plot_averages", fail)
    options = ("--out", tmp_path / "c.h5", "--report", tmp_path / "r.html", "--quiet")
    assert run("cluster", folder / "scan.npy", *options) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["c.h5"]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser Chromium")
def test_the_report_in_a_browser(report, tmp_path):
    """A browser lays it out: nothing is wider than a small window, and all pictures load."""
    script = (
        "<script>window.onload = () => { const images = [...document.images];"
        "document.title = [document.documentElement.scrollWidth, images.length,"
        "images.every(i => i.complete && i.naturalWidth > 100)].join(' '); }</script></head>"
    )
    page = (report / "merged.html").read_text(encoding="utf-8").replace("</head>", script)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=700,900",
         f"--user-data-dir={tmp_path / 'user'}", "--dump-dom", f"file://{tmp_path / 'page.html'}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    width, n_images, loaded = re.search(r"<title>(\d+) (\d+) (\w+)</title>", done.stdout).groups()
    assert int(width) <= 700
    assert (n_images, loaded) == ("3", "true")
