"""Open a scan from any file: one function for all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import emdfile
import h5py
import numpy as np
from numpy.typing import NDArray

from ..base.checks import (
    check_choice,
    check_data,
    check_integer,
    check_mask,
    check_name,
    check_path,
)
from ..kernels.virtual import SAMPLED_ROWS, sample_mean
from .array import ScanArray
from .axes import set_calibration
from .camera_files import open_dm, open_empad
from .detector import bad_map, largest_good_count, load_filters
from .found import Found
from .hdf5_files import open_hdf5
from .numpy_files import open_numpy
from .pixels import find_hot_pixels
from .rosetta import READERS, open_with_rosettasciio
from .scan_shape import find_scan_shape
from .zarr_files import is_zarr, open_zarr

if TYPE_CHECKING:
    from py4DSTEM import DataCube

NAME = "arina"
"""Name of the Metadata of a file that Dectris wrote, or of plain HDF5."""

FILE = "file"
"""Name of the Metadata of all other files."""

BAD_PIXELS = ("fill", "missing", "keep")

SATURATED = ("raise", "missing", "keep")


def open_scan(
    path: str | PathLike[str],
    *,
    dataset: str | None = None,
    scan_shape: tuple[int, int] | None = None,
    skip_frames: int | tuple[int, int] = 0,
    flyback: int = 0,
    hot_pixels: Literal["auto"] | NDArray[np.bool_] | None = None,
    bad_pixels: Literal["fill", "missing", "keep"] = "fill",
    saturated: Literal["raise", "missing", "keep"] | None = None,
    name: str | None = None,
) -> DataCube:
    """Open a scan in a file of any microscope or program.

    It opens files of Dectris Arina and Eiger, EMD and py4DSTEM of any version, DigitalMicrograph,
    EMPAD, NumPy, abTEM and plain HDF5. With the extra ``files``, which is
    ``pip install rosettasciio zarr "numpy<2"``, it also opens ``.hspy`` and ``.zspy`` of HyperSpy
    and pyxem, ``.mib`` of Merlin, ``.blo`` and ``.app5`` of NanoMEGAS, ``.tvips``, ``.ser``,
    ``.mrc`` of Direct Electron, ``.prz``, ``.emd`` of Velox and zarr. Patterns stay on disk and are
    read when they are needed, except those of ``.npz``, ``.app5``, packed ``.prz`` and py4DSTEM
    0.13, which are read at once.

    Parameters
    ----------
    path : path
        The file; a folder for zarr. Of Dectris the ``*_master.h5``, with its chunk files beside it;
        of a Merlin the ``.mib``, with its ``.hdr``; of an EMPAD the ``.raw``, or its ``.xml``.
    dataset : str, optional
        Name of the scan in a file that holds several: an array of ``.npz`` or zarr, an HDF5
        dataset, a group of EMD, the title of a signal of HyperSpy. By default the only one with
        four axes, or else the only one with three; the error lists them.
    scan_shape : (Rx, Ry), optional
        Rows and columns of the scan, without flyback. By default they come from the file. A file
        that does not have them is an error that lists the possible shapes, except for Dectris,
        EMPAD and plain HDF5, where the scan is a square if the number of frames is one.
    skip_frames : int or (int, int)
        Frames before the first row that are dropped; a pair also drops frames after the last row.
    flyback : int
        Frames at the end of each row that are dropped, because the beam moves back. The last row
        may lack them.
    hot_pixels : "auto" or (Qx, Qy) of bool, optional
        Hot and dead pixels of the detector, True where a pixel is wrong. They are treated as
        `bad_pixels` says wherever the scan is read. "auto" looks for single pixels that are 5 times
        as bright as the second brightest of their neighbours, and for dead ones, in the sum of
        eight rows of the scan. Give a mask where Bragg peaks are a single pixel wide.
    bad_pixels : "fill", "missing" or "keep"
        How pixels are treated that the mask of a Dectris detector marks as bad (one of the lower 16
        bits; any bit if the detector applied the mask), and `hot_pixels`. "fill" gives a bad pixel
        the median of the good pixels in the smallest square around it that holds three; the scan
        keeps its type, and disk detection works. "missing" makes bad pixels NaN and the scan
        floating point. "keep" leaves the recorded values, often the largest value of the type.
    saturated : "raise", "missing" or "keep", optional
        How saturated values in good pixels are treated. These are the largest value of an integer
        type, which detectors of Dectris write if they have no count, and values above the
        saturation value in the file. "raise" raises an error at the first one that is read, with
        its position; call ``datacube.get_dp_max()`` to read the whole scan. "missing" makes them
        NaN and the scan floating point; choose it after "raise" found some. "keep" leaves them.
        By default "raise" for files of Dectris, and "keep" for all others.
    name : str, optional
        Name of the datacube; by default that of the file, without ``_master``, or that in EMD.

    Returns
    -------
    DataCube
        Its `data` are a `ScanArray`, (Rx, Ry, Qx, Qy), or a NumPy array if the file was read at
        once. All methods of this package read a `ScanArray` in blocks. Methods of py4DSTEM that
        work pattern by pattern read one pattern at a time. ``numpy.asarray(datacube.data)`` and
        ``py4DSTEM.save(path, datacube)`` read all of it into memory. The files stay open;
        ``datacube.data.close()`` closes them until the next read.

        The calibration holds the scan step, the size of detector pixels (A^-1 or mrad) and the
        origin where the file states them; what it does not state stays unset. EMD files keep their
        whole calibration, metadata, and the results in their tree.

        ``datacube.metadata["arina"]`` (Dectris and plain HDF5) or ``["file"]`` (all others) holds
        what else the file says, with the names and units of the file, the options in ``"opened"``,
        and in ``"notes"`` what was not stated or has no place. With bad or hot pixels it also holds
        ``"bad_pixels"``, a boolean map (Qx, Qy).

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong, no reader knows the file, an extra is missing, or the number of
        frames does not fit the scan; while data are read, if counts are saturated.
    OSError
        If a file is missing, damaged or cut short, needs a compression filter that is not
        installed, or links to a file outside its folder; while data are read, also if the file
        shrank or a frame cannot be read. The error names the file and the frame.

    Notes
    -----
    RosettaSciIO mirrors the frames of a Merlin along Qx, so that they appear as on the screen of
    the camera; ``py4DSTEM.import_file`` does not.

    Links of Dectris are followed only to files in the folder of the master file. If a link has
    another path, a file of the same name in this folder is taken. If chunk files were renamed with
    the master file, ``<name>_data_000001.h5`` and so on are taken. Bitshuffle/LZ4 has no checksum,
    so a flipped bit is not noticed if the frame still decompresses.

    Examples
    --------
    >>> raw = open_scan("scan_master.h5", scan_shape=(512, 256), flyback=2)  # doctest: +SKIP
    >>> raw = open_scan("scan.mib", scan_shape=(256, 256), hot_pixels="auto")  # doctest: +SKIP
    >>> clusters = raw.cluster()  # doctest: +SKIP

    Any HDF5 file:

    >>> import h5py, numpy, os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "counts.h5")
    >>> with h5py.File(path, "w") as file:
    ...     file["frames"] = numpy.ones((12, 8, 6), dtype="uint16")
    >>> raw = open_scan(path, scan_shape=(3, 4))
    >>> raw.shape
    (3, 4, 8, 6)
    >>> int(raw.data[1, 2].sum())
    48
    >>> raw.data.close(), folder.cleanup()
    (None, None)
    """
    from py4DSTEM import DataCube

    load_filters()
    file = check_path("path", path).absolute()
    skip = _check_skip(skip_frames)
    flyback = check_integer("flyback", flyback, 0)
    check_choice("bad_pixels", bad_pixels, BAD_PIXELS)
    if saturated is not None:
        check_choice("saturated", saturated, SATURATED)
    if dataset is not None and not isinstance(dataset, str):
        raise TypeError(f"dataset={dataset!r} must be a string, the name of a dataset")
    if isinstance(hot_pixels, str) and hot_pixels != "auto":
        raise ValueError(f"hot_pixels={hot_pixels!r} must be 'auto' or a boolean map (Qx, Qy)")
    if name is not None:
        check_name(name)

    found = _find(file, dataset, bad_pixels)
    pieces = found.pieces
    n_frames = sum(piece.n_frames for piece in pieces)
    try:
        shape = find_scan_shape(
            n_frames, found.scan, scan_shape, skip, flyback, found.facts, square=found.square
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    starts = skip[0] + (shape[1] + flyback) * np.arange(shape[0])
    index = starts[:, None] + np.arange(shape[1])

    saturated = saturated or ("raise" if found.is_dectris else "keep")
    detector = (pieces[0].shape[-2], pieces[0].shape[-1])
    bad = bad_map(found.mask, detector, found.facts, bad_pixels, file)
    if isinstance(hot_pixels, str):
        plain = ScanArray(
            pieces, index, path=file, bad=bad, limit=None, bad_pixels="fill", saturated="keep"
        )
        patterns = min(SAMPLED_ROWS, shape[0]) * shape[1]
        bad |= find_hot_pixels(sample_mean(plain) * patterns)
    elif hot_pixels is not None:
        bad |= check_mask("hot_pixels", hot_pixels, detector, "wrong pixels")
    data: Any = ScanArray(
        pieces,
        index,
        path=file,
        bad=bad,
        limit=None if saturated == "keep" else largest_good_count(pieces[0].dtype, found.facts),
        bad_pixels=bad_pixels,
        saturated=saturated,
    )
    if found.in_memory:
        data = np.asarray(data)
    try:
        check_data(data)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{file} holds no scan: {error}") from error

    cube = found.cube
    if cube is None:
        own = _default_name(file.name.partition(".")[0].removesuffix("_master"))
        cube = DataCube(data=data, name=own if name is None else name)
    else:
        cube.data = data
        if name is not None:
            cube.name = name
    notes = list(found.notes)
    if found.axes is not None:
        notes += set_calibration(cube, found.axes)
    cube.calibrate()
    key = FILE if _is_other(found) else NAME
    # A scan that was opened before, and saved as EMD, keeps what its first file said.
    kept = cube.metadata[key]._params if key in cube.metadata else {}
    facts = kept | found.facts
    if found.mask is not None:
        facts["pixel_mask"] = found.mask
    if found.mask is not None or hot_pixels is not None:
        facts["bad_pixels"] = bad
    settings = {"path": str(file), "dataset": dataset, "skip_frames": skip, "flyback": flyback}
    settings |= {"bad_pixels": bad_pixels, "saturated": saturated, "reader": found.reader}
    facts |= {"opened": settings, "notes": "; ".join(notes) or kept.get("notes", "")}
    cube.metadata = emdfile.Metadata(key, facts)
    return cube


def _is_other(found: Found) -> bool:
    return found.reader != "py4dstem_clustering"


def notes_of(cube: Any) -> list[str]:
    """What the file of an opened scan did not state, or py4DSTEM has no place for."""
    for name in (NAME, FILE):
        if name in cube.metadata:
            text = cube.metadata[name]._params.get("notes")
            return text.split("; ") if isinstance(text, str) and text else []
    return []


_DM = (".dm", ".dm3", ".dm4")


def _find(path: Path, dataset: str | None, bad_pixels: str) -> Found:
    """Find the scan in a file, by the reader for its kind."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not a file; check the path")
    if is_zarr(path) and path.suffix.lower() != ".zspy":
        return open_zarr(path, dataset)
    suffix = path.suffix.lower()
    if path.is_dir():
        if suffix == ".zspy":
            return open_with_rosettasciio(path, dataset)
        raise ValueError(f"{path} is a folder; give a file in it, or a zarr folder")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except PermissionError as error:
        raise PermissionError(
            f"{path} may not be read; ask its owner for the permission"
        ) from error
    if empty:
        raise ValueError(f"{path} is empty; copy it again")
    if suffix in (".npy", ".npz"):
        return open_numpy(path, dataset)
    if suffix in _DM:
        return open_dm(path)
    if suffix == ".raw":
        return _open_raw(path, dataset)
    is_hdf5 = h5py.is_hdf5(path)
    hdf5_suffix = suffix in (".h5", ".hdf5", ".py4dstem", ".emd", ".nxs")
    if suffix in READERS and not (is_hdf5 and hdf5_suffix):
        if suffix == ".emd":
            raise OSError(f"{path} is no HDF5 file, or its beginning is damaged; copy it again")
        return open_with_rosettasciio(path, dataset)
    if is_hdf5 or hdf5_suffix:
        return open_hdf5(path, dataset, bad_pixels)
    endings = sorted({*READERS, *_DM, ".npy", ".npz", ".raw", ".h5", ".emd", ".zarr"})
    raise ValueError(
        f"{path} is of no kind that is known; give a file that ends in {', '.join(endings)}, or "
        "any HDF5 file"
    )


def _open_raw(path: Path, dataset: str | None) -> Found:
    """A file of an EMPAD, by its .xml file if that lies beside it."""
    xml = path.with_suffix(".xml")
    if xml.is_file() and path.name in xml.read_text(encoding="utf-8", errors="replace"):
        return open_with_rosettasciio(xml, dataset)
    return open_empad(path)


def _check_skip(skip_frames: Any) -> tuple[int, int]:
    """Number of frames to drop before the first row, and after the last row."""
    pair: Sequence[Any] = (
        skip_frames if isinstance(skip_frames, (tuple, list)) else (skip_frames, 0)
    )
    if len(pair) != 2:
        raise ValueError(
            f"skip_frames={skip_frames!r} must be a number, or two: before the first row and after "
            "the last"
        )
    first, last = (check_integer("skip_frames", n, 0) for n in pair)
    return first, last


def _default_name(prefix: str) -> str:
    """The name of the file if a datacube can have this name, else "scan"."""
    try:
        return check_name(prefix)
    except ValueError:
        return "scan"
