"""Open scans that stay on disk: master files of Dectris Arina and Eiger, and other HDF5 files.

Counts keep the type that they have in the file. A damaged frame raises an error that names the file
and the frame; it is never read as zeros.

Layout of the files (DECTRIS, "Header documentation: NeXus"): ``*_master.h5`` holds
``entry/data/data_000001`` and so on, each a link to a dataset (frames, Qx, Qy) in a file of its
own, and the settings of the detector in ``entry/instrument/detector``.
"""

from __future__ import annotations

from contextlib import suppress
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import emdfile
import numpy as np

from ..base.checks import check_choice, check_integer, check_name, check_path
from .array import ScanArray
from .detector import bad_map, largest_good_count, read_facts, scan_step_of_microscope
from .pieces import check_alike, find_pieces, master_pieces
from .scan_shape import find_scan_shape

if TYPE_CHECKING:
    from py4DSTEM import DataCube

NAME = "arina"
"""Name of the Metadata that `open_scan` adds to the datacube."""

BAD_PIXELS = ("fill", "missing", "keep")

SATURATED = ("raise", "missing", "keep")


def open_scan(
    path: str | PathLike[str],
    *,
    scan_shape: tuple[int, int] | None = None,
    skip_frames: int | tuple[int, int] = 0,
    flyback: int = 0,
    dataset: str | None = None,
    bad_pixels: Literal["fill", "missing", "keep"] = "fill",
    saturated: Literal["raise", "missing", "keep"] = "raise",
    name: str | None = None,
) -> DataCube:
    """Open a scan that stays on disk: Dectris Arina and Eiger, or plain HDF5.

    Frames are read when they are needed, with the counts of the file.
    ``py4DSTEM.import_file(..., filetype="arina")`` instead reads the whole scan into memory, and
    cuts 32-bit counts to 16 bits.

    Parameters
    ----------
    path : path
        The ``*_master.h5`` file, with its chunk files beside it; or, with `dataset`, another HDF5
        file.
    scan_shape : (Rx, Ry), optional
        Rows and columns of the scan, without flyback. By default they come from the file (a 4D
        dataset, or several triggers of several frames each); if it has none, the scan is a square.
    skip_frames : int or (int, int)
        Frames before the first row that are dropped; a pair also drops frames after the last row.
    flyback : int
        Frames at the end of each row that are dropped, because the beam moves back. The last row
        may lack them.
    dataset : str, optional
        Name of a dataset in the file, (frames, Qx, Qy) or (Rx, Ry, Qx, Qy); by default the chunks
        of a master file.
    bad_pixels : "fill", "missing" or "keep"
        How pixels are treated that the mask of the detector marks as bad (one of the lower 16 bits;
        any bit if the detector applied the mask). "fill" gives a bad pixel the median of the good
        pixels in the smallest square around it that holds three; the scan keeps its type, and disk
        detection works. "missing" makes bad pixels NaN and the scan floating point. "keep" leaves
        the recorded values, often the largest value of the type.
    saturated : "raise", "missing" or "keep"
        How saturated values in good pixels are treated. These are the largest value of an integer
        type, which the detector writes if it has no count, and values above the saturation value in
        the file. "raise" raises an error at the first one that is read, with its position; call
        ``datacube.get_dp_max()`` to read the whole scan. "missing" makes them NaN and the scan
        floating point; choose it after "raise" found some. "keep" leaves them; choose it for
        patterns that were rescaled to the full range of their type.
    name : str, optional
        Name of the datacube; by default that of the file, without ``_master``.

    Returns
    -------
    DataCube
        Its `data` are a `ScanArray`, (Rx, Ry, Qx, Qy), where Qx and Qy are the slow and the fast
        axis of the frames in the file. All methods of this package read it in blocks. Methods of
        py4DSTEM that work pattern by pattern read one pattern at a time.
        ``numpy.asarray(datacube.data)`` and ``py4DSTEM.save(path, datacube)`` read all of it into
        memory. The files stay open; ``datacube.data.close()`` closes them until the next read.

        ``datacube.metadata["arina"]`` holds the detector settings, with the names and units of the
        file. If the file has a pixel mask, it also holds ``"bad_pixels"``, a boolean map (Qx, Qy):
        ``q_mask & ~datacube.metadata["arina"]["bad_pixels"]`` leaves bad pixels out. As in
        py4DSTEM, the pixel size of the scan is set if the file ``<name>.h5`` of the microscope
        states it; nothing else is calibrated.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong, or the number of frames does not fit the scan; while data are read,
        if counts are saturated.
    OSError
        If a file is missing, damaged or cut short, needs a compression filter that is not
        installed, or links to a file outside its folder; while data are read, also if the file
        shrank or a frame cannot be decompressed. The error names the file and the frame.

    Notes
    -----
    Links are followed only to files in the folder of the master file. If a link has another path,
    a file of the same name in this folder is taken. If chunk files were renamed with the master
    file, ``<name>_data_000001.h5`` and so on are taken. Bitshuffle/LZ4 has no checksum, so a
    flipped bit is not noticed if the frame still decompresses.

    Examples
    --------
    >>> raw = open_scan("scan_master.h5", scan_shape=(512, 256), flyback=2)  # doctest: +SKIP
    >>> clusters = raw.cluster(threshold=0.9)  # doctest: +SKIP

    Any HDF5 file:

    >>> import h5py, numpy, os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "counts.h5")
    >>> with h5py.File(path, "w") as file:
    ...     file["frames"] = numpy.ones((12, 8, 6), dtype="uint16")
    >>> raw = open_scan(path, dataset="frames", scan_shape=(3, 4))
    >>> raw.shape
    (3, 4, 8, 6)
    >>> int(raw.data[1, 2].sum())
    48
    >>> raw.data.close(), folder.cleanup()
    (None, None)
    """
    from py4DSTEM import DataCube

    _load_filters()
    path = check_path("path", path).absolute()
    skip = _check_skip(skip_frames)
    flyback = check_integer("flyback", flyback, 0)
    check_choice("bad_pixels", bad_pixels, BAD_PIXELS)
    check_choice("saturated", saturated, SATURATED)
    if dataset is not None and not isinstance(dataset, str):
        raise TypeError(f"dataset={dataset!r} must be a string, the name of a dataset")
    prefix = path.stem.removesuffix("_master")
    name = _default_name(prefix) if name is None else check_name(name)

    facts, mask = read_facts(path, bad_pixels)
    pieces = master_pieces(path, prefix) if dataset is None else find_pieces(path, dataset)
    check_alike(pieces)
    n_frames = sum(piece.n_frames for piece in pieces)
    shape = find_scan_shape(n_frames, pieces[0], scan_shape, skip, flyback, facts)
    starts = skip[0] + (shape[1] + flyback) * np.arange(shape[0])
    index = starts[:, None] + np.arange(shape[1])

    bad = bad_map(mask, pieces[0].shape[-2:], facts, bad_pixels, path)
    data = ScanArray(
        pieces,
        index,
        path=path,
        bad=bad,
        limit=largest_good_count(pieces[0].dtype, facts),
        bad_pixels=bad_pixels,
        saturated=saturated,
    )

    cube = DataCube(data=data, name=name)
    if mask is not None:
        facts |= {"pixel_mask": mask, "bad_pixels": bad}
    settings = {"path": str(path), "dataset": dataset, "skip_frames": skip, "flyback": flyback}
    settings |= {"bad_pixels": bad_pixels, "saturated": saturated}
    cube.metadata = emdfile.Metadata(NAME, {**facts, "opened": settings})
    step = scan_step_of_microscope(path.with_name(f"{prefix}.h5"))
    if step is not None:
        cube.calibration.set_R_pixel_size(step)
        cube.calibration.set_R_pixel_units("A")
    return cube


def _load_filters() -> None:
    """Make bitshuffle and LZ4 known to HDF5 if hdf5plugin is installed."""
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401


def _check_skip(skip_frames: Any) -> tuple[int, int]:
    """Number of frames to drop before the first row, and after the last row."""
    pair = skip_frames if isinstance(skip_frames, (tuple, list)) else (skip_frames, 0)
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
