"""The table of files in the guide is what opening a file of each kind gives."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from arina import write_arina
from microscopes import (
    write_abtem,
    write_dm,
    write_emd,
    write_emd_berkeley,
    write_empad,
    write_py4dstem_0_12,
    write_py4dstem_0_13,
)

from py4dstem_clustering import ScanArray, open_scan

pytest.importorskip("rsciio")
pytest.importorskip("zarr")

import test_files as written

pytestmark = written.pytestmark

PAGE = Path(__file__).parents[2] / "tutorials" / "guide" / "files_of_microscopes.md"
HEAD = [
    "| file | read by | stays on disk | scan shape | calibration that it holds |",
    "| --- | --- | --- | --- | --- |",
]
SHAPE = (5, 4)
DATA = np.random.default_rng(0).integers(1, 99, (*SHAPE, 36, 36)).astype("u1")
NM, PER_NM, PER_A = [(3.03, "nm")] * 2, [(0.5, "1/nm")] * 2, [(0.05, "A^-1")] * 2


def by_rosettasciio(name):
    kind, writer, _ = written.FORMATS[name]
    return lambda folder: writer(folder / name, kind, DATA)


def numpy_file(folder):
    np.save(folder / "scan.npy", DATA)
    return folder / "scan.npy"


def numpy_archive(folder):
    np.savez(folder / "scan.npz", DATA)
    return folder / "scan.npz"


FILES = {
    "Dectris Arina, Eiger, `*_master.h5`": lambda folder: write_arina(
        folder, DATA.reshape(-1, 36, 36), pixel_size=3.03
    ),
    "EMD 1.0, py4DSTEM 0.14": lambda folder: write_emd(folder / "a.h5", DATA, NM + PER_A),
    "py4DSTEM 0.13": lambda folder: write_py4dstem_0_13(folder / "a.h5", DATA, NM + PER_A),
    "py4DSTEM 0.12": lambda folder: write_py4dstem_0_12(folder / "a.h5", DATA, NM + PER_A),
    "EMD 0.2": lambda folder: write_emd_berkeley(folder / "a.emd", DATA, NM + PER_NM),
    "abTEM 1.0 `.h5`": lambda folder: write_abtem(
        folder / "a.h5", DATA, [(0.4, "Å")] * 2 + [(1.5, "mrad")] * 2
    ),
    "abTEM `.zarr`": lambda folder: written.write_abtem_zarr(folder / "a.zarr", DATA),
    "DigitalMicrograph `.dm3`, `.dm4`": lambda folder: write_dm(
        folder / "a.dm4", DATA, NM + PER_NM
    ),
    "EMPAD `.raw`": lambda folder: write_empad(
        folder / "a.raw", np.zeros((*SHAPE, 128, 128), "f4")
    ),
    "Merlin `.mib` with `.hdr`": by_rosettasciio("scan.mib"),
    "HyperSpy, pyxem `.hspy`": by_rosettasciio("scan.hspy"),
    "HyperSpy, pyxem `.zspy`": by_rosettasciio("scan.zspy"),
    "NanoMEGAS `.blo`": by_rosettasciio("scan.blo"),
    "TVIPS `.tvips`": by_rosettasciio("scan_000.tvips"),
    "MRC `.mrc`": by_rosettasciio("scan.mrc"),
    "Panta Rhei `.prz`, packed": by_rosettasciio("scan.prz"),
    "NumPy `.npy`": numpy_file,
    "NumPy `.npz`": numpy_archive,
}


def row(name, folder):
    """One line of the table: a file of this kind is opened without any option, if that can be."""
    path = FILES[name](folder)
    shape = "in the file"
    try:
        cube = open_scan(path)
    except ValueError:
        cube, shape = open_scan(path, scan_shape=SHAPE), "`scan_shape=`"
    assert cube.data.shape[:2] == SHAPE
    lazy = "yes" if isinstance(cube.data, ScanArray) else "no"
    key = "file" if "file" in cube.metadata else "arina"
    reader = cube.metadata[key]["opened"]["reader"].partition(",")[0]
    reader = {"py4dstem_clustering": "this package"}.get(reader, reader.split(" 0.")[0])
    found, stated = cube.calibration, []
    if found.get_R_pixel_units() != "pixels":
        stated.append("step")
    if found.get_Q_pixel_units() != "pixels":
        stated.append("detector pixel")
    if found.get_origin() is not None:
        stated.append("origin")
    if isinstance(cube.data, ScanArray):
        cube.data.close()
    return f"| {name} | {reader} | {lazy} | {shape} | {', '.join(stated) or '-'} |"


def test_the_table_of_files_in_the_guide(tmp_path):
    """Where it differs, UPDATE_GUIDE=1 writes it."""
    lines = list(HEAD)
    for number, name in enumerate(FILES):
        folder = tmp_path / str(number)
        folder.mkdir()
        lines.append(row(name, folder))
    table = "\n".join(lines)
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("UPDATE_GUIDE") and HEAD[0] in text:
        start = text.index(HEAD[0])
        text = text[:start] + table + text[text.index("\n\n", start) :]
        PAGE.write_text(text, encoding="utf-8")
    assert table in text
