"""Small scans in the files of cameras and programs, byte by byte.

No file was written by the program or the library that opens it again, and no file of a camera was
at hand. So these files do not show where a vendor deviates from its own description. Descriptions
are named with each format; where they leave something open (the attributes of EMD, the padding of a
Merlin's header, sizes in .dm4), the sources of ncempy, emdfile and py4DSTEM decided. Scans are
(Rx, Ry, Qx, Qy) throughout, Ry and Qy the fast axes.
"""

from __future__ import annotations

import struct

import h5py
import numpy as np

# --- Gatan DigitalMicrograph, .dm3 and .dm4 -------------------------------------------------------
# Gatan publishes nothing. This is the description that Chris Boothroyd made from many files,
# http://www.microscopy.cen.dtu.dk/~cbb/info/dmformat/ ; it covers tags, their types and ImageList.

_DM_TYPES = {"i2": 2, "i4": 3, "u2": 4, "u4": 5, "f4": 6, "f8": 7, "u1": 8, "i1": 9, "u8": 12}
_DM_PIXELS = {"i2": 1, "f4": 2, "u1": 6, "i4": 7, "i1": 9, "u2": 10, "u4": 11, "f8": 12}


class _Tags:
    """Tags as bytes, for version 3 or 4, which differ in the width of sizes."""

    def __init__(self, version):
        self.version, self.size = version, ">I" if version == 3 else ">Q"

    def sizes(self, *values):
        return b"".join(struct.pack(self.size, value) for value in values)

    def data(self, value):
        if isinstance(value, str):  # an array of UTF-16
            value = np.frombuffer(value.encode("utf-16-le"), "<u2")
        value = np.asarray(value)
        value = value.astype(value.dtype.newbyteorder("<"))
        kind = _DM_TYPES[value.dtype.str[1:]]
        info = (kind,) if value.ndim == 0 else (20, kind, value.size)
        return b"%%%%" + self.sizes(len(info), *info) + value.tobytes()

    def directory(self, content):
        """A group of tags: a dict by their names, or a list of tags without names."""
        named = isinstance(content, dict)
        items = content.items() if named else (("", value) for value in content)
        tags = [self.tag(name, value) for name, value in items]
        return b"\1\0" + self.sizes(len(tags)) + b"".join(tags)

    def tag(self, name, value):
        nested = isinstance(value, (dict, list))
        body = self.directory(value) if nested else self.data(value)
        head = bytes([20 if nested else 21]) + struct.pack(">H", len(name)) + name.encode()
        return head + (self.sizes(len(body)) if self.version == 4 else b"") + body


def _dm_image(data, scales, tags=None):
    """Tags of an array, dimensions from the last axis on; `scales`: (size, unit) of each axis."""
    dimensions = [
        {"Origin": np.float32(0), "Scale": np.float32(scale), "Units": unit}
        for scale, unit in reversed(scales)
    ]
    pixels = {
        "Calibrations": {
            "Brightness": {"Origin": np.float32(0), "Scale": np.float32(1), "Units": "e-"},
            "Dimension": dimensions,
            "DisplayCalibratedUnits": np.uint8(1),
        },
        "Data": data.ravel(),
        "DataType": np.uint32(_DM_PIXELS[data.dtype.str[1:]]),
        "Dimensions": [np.uint32(n) for n in reversed(data.shape)],
        "PixelDepth": np.uint32(data.itemsize),
    }
    return {"ImageData": pixels, "ImageTags": tags or {}, "Name": "scan"}


def write_dm(path, data, scales, *, version=4, thumbnail=True, tags=None):
    """An array of any dimension, usually beside a thumbnail in RGB."""
    images = [_dm_image(data, scales, tags)]
    if thumbnail:
        small = _dm_image(np.full((5, 6), 0x00808080, np.uint32), [(1, ""), (1, "")])
        small["ImageData"]["DataType"] = np.uint32(23)
        images.insert(0, small)
    tags = _Tags(version)
    root = tags.directory({"ApplicationBounds": np.arange(4, dtype="i4"), "ImageList": images})
    head = struct.pack(">I", version) + tags.sizes(len(root)) + struct.pack(">I", 1)
    path.write_bytes(head + root + bytes(8))
    return path


# --- EMPAD, .raw ----------------------------------------------------------------------------------
# Frames of 128 x 128 float32, each with two rows of 128 numbers about the frame (Tate et al.,
# Microsc. Microanal. 22 (2016) 237; read so by py4DSTEM, LiberTEM and RosettaSciIO). What stands in
# those rows is not published: here are numbers that would show if a reader took them for counts.


def write_empad(path, data):
    """Frames (Rx, Ry, 128, 128), without the .xml that Thermo Fisher's software puts beside."""
    frames = np.full((*data.shape[:2], 130, 128), -1e6, "<f4")
    frames[..., :128, :] = data
    path.write_bytes(frames.tobytes())
    return path


# --- Merlin of Quantum Detectors, .mib and .hdr ---------------------------------------------------
# From the fields and examples of headers that LiberTEM has from Quantum Detectors
# (LiberTEM-live, test_merlin_headers.py): 384 bytes of text before each frame of one chip, the
# counts big-endian. Padded with zeros; neither a quad nor the R64 mode is written here.

_MERLIN = {"u1": ("U08", 6), "u2": ("U16", 12), "u4": ("U32", 24)}


def write_mib(path, data, hdr="ScanX"):
    """Frames (Rx, Ry, 256, 256); `hdr`: how its header file gives the scan, or None for no file."""
    kind, depth = _MERLIN[data.dtype.str[1:]]
    frames = data.reshape(-1, 256, 256)
    with path.open("wb") as file:
        for number, frame in enumerate(frames, 1):
            head = (
                f"MQ1,{number:06d},00384,01,0256,0256,{kind},   1x1,01,2020-05-18 16:51:49.971626,"
                "0.000555,0,0,0,1.200000E+2,5.110000E+2,0.000000E+0,0.000000E+0,0.000000E+0,"
                "0.000000E+0,0.000000E+0,0.000000E+0,3RX,175,511,000,000,000,000,000,000,125,255,"
                "125,125,100,100,082,100,087,030,128,004,255,129,128,176,168,511,511,"
                f"MQ1A,2020-05-18T14:51:49.971626178Z,555000ns,{depth},"
            )
            file.write(head.encode().ljust(384, b"\0"))
            file.write(frame.astype(frame.dtype.newbyteorder(">")).tobytes())
    if hdr is not None:
        lines = [
            "HDR,\t",
            "Time and Date Stamp (day, mnth, yr, hr, min, s):\t18/05/2020 16:51:49",
            "Assembly Size (NX1, 2X2):\t   1x1",
            f"Counter Depth (number):\t{depth}",
            f"Frames in Acquisition (Number):\t{len(frames)}",
            f"Frames per Trigger (Number):\t{data.shape[1]}",
        ]
        if hdr == "ScanX":
            lines += [f"ScanX:\t{data.shape[1]}", f"ScanY:\t{data.shape[0]}"]
        path.with_suffix(".hdr").write_text("\n".join([*lines, "End\t\n"]), encoding="utf-8")
    return path


# --- MRC, .mrc ------------------------------------------------------------------------------------
# MRC2014, https://www.ccpem.ac.uk/mrc_format/mrc2014.php : a header of 1024 bytes, then sections.

_MRC_MODES = {"i1": 0, "i2": 1, "f4": 2, "u2": 6}


def write_mrc(path, stack, *, order="<"):
    """A stack (n, Qx, Qy); MRC has no fourth axis. `order`: of the bytes, also of the header."""
    nz, ny, nx = stack.shape
    mode = _MRC_MODES[stack.dtype.str[1:]]
    head = struct.pack(f"{order}10i", nx, ny, nz, mode, 0, 0, 0, nx, ny, nz)
    head += struct.pack(f"{order}6f", nx, ny, nz, 90, 90, 90)  # cell, Angstrom and degrees
    head += struct.pack(f"{order}3i3f", 1, 2, 3, stack.min(), stack.max(), stack.mean())
    head = head.ljust(208, b"\0") + b"MAP " + (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    path.write_bytes(
        head.ljust(1024, b"\0") + stack.astype(stack.dtype.newbyteorder(order)).tobytes()
    )
    return path


# --- HDF5 -----------------------------------------------------------------------------------------


def write_emd_berkeley(path, data, scales):
    """EMD 0.2 of the NCEM, https://emdatasets.com/format/ ; `scales`: (size, unit) of each axis."""
    with h5py.File(path, "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group("data/scan")
        group.attrs["emd_group_type"] = 1
        group["data"] = data
        for k, (n, name, (size, unit)) in enumerate(
            zip(data.shape, ("Rx", "Ry", "Qx", "Qy"), scales, strict=True), 1
        ):
            group[f"dim{k}"] = np.arange(n) * size
            group[f"dim{k}"].attrs["name"], group[f"dim{k}"].attrs["units"] = name, unit
        for name in ("microscope", "sample", "user", "comments"):
            file.create_group(name)
    return path


def _write_metadata(group, name, values, kind, attributes):
    node = group.create_group(name)
    node.attrs["emd_group_type"] = kind
    node.attrs.update(attributes)
    for key, value in values.items():
        node[key] = np.bytes_(value) if isinstance(value, str) else value
        node[key].attrs["type"] = np.bytes_("string" if isinstance(value, str) else "number")


def _calibration(scales):
    (step, step_unit), _, (pixel, pixel_unit), _ = scales
    return {
        "R_pixel_size": step,
        "R_pixel_units": step_unit,
        "Q_pixel_size": pixel,
        "Q_pixel_units": pixel_unit,
    }


def _write_array(group, data, scales):
    group["data"] = data
    group["data"].attrs["units"] = "counts"
    for k, (name, (size, unit)) in enumerate(zip(("Rx", "Ry", "Qx", "Qy"), scales, strict=True)):
        group[f"dim{k}"] = [0, size]
        group[f"dim{k}"].attrs["name"], group[f"dim{k}"].attrs["units"] = name, unit


def write_emd(path, data, scales):
    """EMD 1.0, https://emdatasets.com/format/ , with the classes of py4DSTEM 0.14."""
    with h5py.File(path, "w") as file:
        file.attrs.update(
            {
                "emd_group_type": "file",
                "version_major": 1,
                "version_minor": 0,
                "UUID": "0",
                "authoring_program": "tests",
                "authoring_user": "",
            }
        )
        root = file.create_group("root")
        root.attrs.update({"emd_group_type": "root", "python_class": "Root"})
        bundle = root.create_group("metadatabundle")
        bundle.attrs["emd_group_type"] = "metadatabundle"
        attributes = {"python_class": "Calibration"}
        _write_metadata(bundle, "calibration", _calibration(scales), "metadata", attributes)
        cube = root.create_group("scan")
        cube.attrs.update({"emd_group_type": "array", "python_class": "DataCube"})
        _write_array(cube, data, scales)
    return path


def write_py4dstem_0_13(path, data, scales):
    """As py4DSTEM 0.13 wrote; there is no description but its code, kept in py4DSTEM.io.legacy."""
    with h5py.File(path, "w") as file:
        root = file.create_group("root")
        root.attrs.update({"emd_group_type": "root", "version_major": 0, "version_minor": 13})
        cube = root.create_group("scan")
        cube.attrs.update({"emd_group_type": 1, "py4dstem_class": "DataCube"})
        _write_array(cube, data, scales)
        attributes = {"py4dstem_class": "Calibration"}
        _write_metadata(cube, "calibration", _calibration(scales), 0, attributes)
    return path


def write_py4dstem_0_12(path, data, scales, names=("scan",)):
    """As py4DSTEM 0.12 wrote: EMD 0.2 with groups of its own, inferred from what py4DSTEM reads."""
    kinds = ("datacubes", "counted_datacubes", "diffractionslices", "realslices", "pointlists")
    with h5py.File(path, "w") as file:
        top = file.create_group("4DSTEM_experiment")
        top.attrs.update(
            {"emd_group_type": 2, "version_major": 0, "version_minor": 12, "version_release": 6}
        )
        for kind in (*kinds, "pointlistarrays", "coordinates"):
            top.create_group(f"data/{kind}")
        for name in names:
            cube = top.create_group(f"data/datacubes/{name}")
            cube.attrs["emd_group_type"] = 1
            cube["data"] = data
            for k, (n, (size, unit)) in enumerate(zip(data.shape, scales, strict=True), 1):
                cube[f"dim{k}"] = np.arange(n) * size
                cube[f"dim{k}"].attrs["units"] = np.bytes_(unit)
    return path


def write_abtem(path, data, scales):
    """As Measurement.write of abTEM 1.0, https://github.com/abTEM/abTEM , does."""
    with h5py.File(path, "w") as file:
        file["array"] = data
        file["offset"] = np.zeros(4)
        file["sampling"] = [size for size, _ in scales]
        units = [unit.encode() for _, unit in scales]
        file.create_dataset("units", (4,), "S10", units)
        file.create_dataset("name", (4,), "S10", [b"x", b"y", b"alpha_x", b"alpha_y"])
        file["is_none"] = np.zeros(4, dtype=bool)
    return path
