"""Files of NumPy: whole, damaged and hostile ones."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from stored import lines_of

from py4dstem_clustering.cli.main import main
from py4dstem_clustering.scan.opening import open_scan


def header(shape, descr="'<u2'", version=b"\x01\x00"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


NPY = {
    "huge": header((2**20, 2**20, 2**10, 2**10)),
    "negative": header((-1, 2, 3, 4)) + bytes(48),
    "objects": header((1, 1, 2, 2), "'|O'") + bytes(32),
    "records": header((1, 1, 2, 2), "[('a', '<u2'), ('b', '<u2')]") + bytes(16),
    "code": header("__import__('os').system('false')") + bytes(64),
    "cut": header((4, 3, 6, 5))[:40],
    "flat": header((720,)) + bytes(1440),
    "version": header((4, 3, 6, 5), version=b"\x09\x00") + bytes(720),
    "pickle": b"\x80\x04cos\nsystem\n(S'false'\ntR.",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", NPY)
def test_a_hostile_npy(tmp_path, kind):
    path = tmp_path / "x.npy"
    path.write_bytes(NPY[kind])
    with pytest.raises((ValueError, TypeError), match=r"x.npy") as error:
        open_scan(path)
    assert len(lines_of(error)) == 1


def test_a_command_on_a_hostile_npy(tmp_path, capsys):
    path = tmp_path / "x.npy"
    path.write_bytes(NPY["objects"])
    assert main(["cluster", str(path), "--out", str(tmp_path / "out.h5")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "kind", ["huge", "objects", "cut", "version", "nothing", "packed", "bz2", "foreign", "two"]
)
def test_a_hostile_npz(tmp_path, kind):
    path = tmp_path / "x.npz"
    packing = zipfile.ZIP_BZIP2 if kind == "bz2" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", packing) as archive:
        if kind == "foreign":
            archive.writestr("../../x.txt", "text")
        elif kind == "packed":
            archive.writestr("a.npy", header((1, 1, 2**12, 2**12)) + bytes(1000))
        elif kind == "bz2":
            archive.writestr("a.npy", header((4, 3, 6, 5)) + bytes(720))
        else:
            archive.writestr("a.npy", NPY.get(kind, b""))
        if kind == "two":
            archive.writestr("b.npy", b"")
    with pytest.raises((ValueError, TypeError), match=r"x.npz") as error:
        open_scan(path)
    assert len(lines_of(error)) == 1


def test_npz_files_are_read(tmp_path):
    scan = np.arange(360, dtype=np.uint16).reshape(4, 3, 6, 5)
    for save in (np.savez, np.savez_compressed):
        save(
            tmp_path / "a.npz", scan=scan, zeros=np.zeros((9, 9, 30, 30)), f=np.asfortranarray(scan)
        )
        for key in ("scan", "f"):
            np.testing.assert_array_equal(open_scan(tmp_path / "a.npz", dataset=key).data, scan)
        assert not open_scan(tmp_path / "a.npz", dataset="zeros").data.any()
        with pytest.raises(
            ValueError, match=r"3 scans; name one with dataset: 'scan' .*'zeros' .*'f' "
        ):
            open_scan(tmp_path / "a.npz")
