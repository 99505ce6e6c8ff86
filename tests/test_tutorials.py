"""The notebooks: their form, and the cells for the reader's own data, without and with a file.

.ci/tutorials.py runs whole notebooks.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import py4DSTEM
import pytest

from py4dstem_clustering import (
    cluster_series,
    open_series,
    plot_areas,
    simulate_scan,
    simulate_series,
)

NOTEBOOKS = sorted((Path(__file__).parent.parent / "tutorials").glob("clustering_*.ipynb"))
TAG = "your-data"


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def own_data(path):
    return [
        "".join(c["source"]) for c in cells(path, "code") if TAG in c["metadata"].get("tags", [])
    ]


def name_of(path):
    return path.stem


def test_there_are_seven():
    assert [path.name[:13] for path in NOTEBOOKS] == [f"clustering_0{k}" for k in range(1, 8)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_the_form_of_a_notebook(path):
    texts = ["".join(cell["source"]) for cell in cells(path, "markdown")]
    first, last = texts[0], texts[-1]
    assert first.startswith(f"# Clustering {int(path.name[11:13])}: ")
    for part in ("**Authors.**", "**Acknowledgements.**", "**Data.**", "**References.**"):
        assert part in first
    assert re.search(
        r"\*\*Last updated\.\*\* \d+ \w+ 20\d\d, for py4dstem_clustering [\d.]+", first
    )
    for upstream in ("clustering_prefiltering_tutorial.ipynb", "clustering_tutorial.ipynb"):
        assert upstream in first
    assert "## References" in last
    assert "arXiv:2601.17262" in last
    assert "10.1017/S1431927621000477" in last
    assert "## Your own data" in "\n".join(texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_is_kept_as_it_ran(path):
    """Every figure is there, nothing failed, and the code opens files with `open_scan`."""
    code = cells(path, "code")
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert "import_file(" not in "".join("".join(cell["source"]) for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS[:-1], ids=name_of)
def test_without_a_file_the_cell_says_so(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = own_data(path)
    exec(code, {})  # noqa: S102
    assert re.search(r"^\S+ is not here\. Write the name of your f", capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []


def write_scan(path, data):
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data", data=data, chunks=(1, 1, *data.shape[2:]))


@pytest.mark.parametrize("number", [1, 2, 3, 6])
def test_with_a_file_the_cell_works(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth = simulate_scan((16, 14), (44, 40), n_grains=2, electrons=3000, seed=2)
    write_scan(Path("my_scan.h5"), truth.datacube.data)
    names = {"py4DSTEM": py4DSTEM, "print": lambda *_: None}
    names |= vars(py4DSTEM.process.calibration)  # what notebook 3 imports from there
    (code,) = own_data(NOTEBOOKS[number - 1])
    for _ in range(2):  # the second time, its results are there already
        exec(code, names)  # noqa: S102
    plt.close("all")
    if number == 1:
        assert names["filtered"].shape == truth.datacube.shape
    else:
        assert names["averages"].shape[0] == names["clusters"].n_clusters > 0
        assert Path("averages.h5").stat().st_size > 10_000


def test_with_a_folder_the_cell_of_a_series_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("today")
    folder.mkdir()
    movie = simulate_series((16, 14), (36, 32), n_frames=2, n_particles=2, electrons=4000, seed=2)
    for t, frame in enumerate(movie):
        write_scan(folder / f"frame_{t}.h5", frame.data)
    (code,) = own_data(NOTEBOOKS[4])
    quick = code.replace("settle=5, timeout=600", "settle=0.05, poll=0.02, timeout=0.3")
    assert quick != code
    names = {"cluster_series": cluster_series, "open_series": open_series, "plot_areas": plot_areas}
    exec(quick, names)  # noqa: S102
    plt.close("all")
    assert len(names["live"]) == 2
    assert names["live"][0].pixel_units == "nm"


def test_with_files_the_cell_of_orientations_works(tmp_path, monkeypatch):
    pytest.importorskip("pymatgen")
    monkeypatch.chdir(tmp_path)
    truth = simulate_scan((6, 5), (44, 40), n_grains=1, electrons=3000, seed=2)
    write_scan(Path("my_scan.h5"), truth.datacube.data)
    empty = simulate_scan((4, 5), (44, 40), n_grains=0, electrons=3000, seed=2)
    write_scan(Path("my_vacuum.h5"), empty.datacube.data)
    cell = "\n".join(
        f"_cell_{name} {value}"
        for name, value in zip(
            ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"),
            (4.0782, 4.0782, 4.0782, 90, 90, 90),
            strict=True,
        )
    )
    sites = "\n".join(
        f"Au{k} Au {x} {y} {z} 1"
        for k, (x, y, z) in enumerate([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])
    )
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy")
    head = "\n".join(f"_atom_site_{name}" for name in columns)
    group = "_symmetry_space_group_name_H-M 'P 1'\n_symmetry_Int_Tables_number 1"
    Path("my_crystal.cif").write_text(f"data_Au\n{cell}\n{group}\nloop_\n{head}\n{sites}\n")
    names = {"py4DSTEM": py4DSTEM}
    (code,) = own_data(NOTEBOOKS[3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pymatgen
        exec(code, names)  # noqa: S102
    plt.close("all")
    assert names["probe"].kernel.shape == (44, 40)
    assert len(names["crystal"].positions) == 4


def test_your_own_data_in_the_seventh_is_its_second_cell():
    code = ["".join(cell["source"]) for cell in cells(NOTEBOOKS[-1], "code")]
    assert code[1].startswith('path = Path("my_scan.raw")')
    assert "if not path.exists():" in code[1]
    assert "open_scan(path)" in "\n".join(code)
