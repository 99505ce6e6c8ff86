"""Small files laid out like those of a Dectris Arina or Eiger: a master file and chunk files."""

from __future__ import annotations

import h5py
import hdf5plugin
import numpy as np


def write_arina(
    folder,
    frames,
    *,
    prefix="scan",
    per_file=7,
    mask=None,
    links=True,
    facts=None,
    pixel_size=None,
    compression=None,
):
    """Write frames (n, Qx, Qy) as a master file and chunk files, bitshuffle/LZ4, a frame a chunk.

    Parameters
    ----------
    per_file : frames in one chunk file.
    mask : pixel mask (Qx, Qy), bits as in NeXus.
    links : whether the master file has the external links.
    facts : further datasets, named by their place below entry/instrument/detector.
    pixel_size : distance of scan positions in nm, in the file of the microscope.

    Returns
    -------
    Path of the master file.
    """
    compression = hdf5plugin.Bitshuffle(cname="lz4") if compression is None else compression
    master = folder / f"{prefix}_master.h5"
    facts = {
        "bit_depth_image": np.uint32(8 * frames.dtype.itemsize),
        "count_time": np.float32(1e-5),
        "description": "Dectris ARINA Si",
        "detectorSpecific/nimages": np.uint32(1),
        "detectorSpecific/ntrigger": np.uint32(len(frames)),
        "x_pixel_size": np.float32(1e-4),
        **(facts or {}),
    }
    with h5py.File(master, "w") as file:
        data = file.create_group("entry/data")
        detector = file.create_group("entry/instrument/detector")
        for name, value in facts.items():
            if value is not None:
                detector[name] = value
        detector["x_pixel_size"].attrs["units"] = "m"
        if mask is not None:
            detector["detectorSpecific/pixel_mask"] = mask.astype(np.uint32)
        for number, start in enumerate(range(0, len(frames), per_file), 1):
            name = f"data_{number:06d}"
            chunk = folder / f"{prefix}_{name}.h5"
            with h5py.File(chunk, "w") as target:
                target.create_dataset(
                    "entry/data/data",
                    data=frames[start : start + per_file],
                    chunks=(1, *frames.shape[1:]),
                    **compression,
                )
            if links:
                data[name] = h5py.ExternalLink(chunk.name, "/entry/data/data")
    if pixel_size is not None:
        with h5py.File(folder / f"{prefix}.h5", "w") as file:
            file.create_group("STEM Metadata").attrs["Pixel Size"] = [pixel_size, pixel_size]
    return master


def chunk_place(path, frame, dataset="entry/data/data"):
    """Offset and size in bytes of one frame in a chunk file."""
    with h5py.File(path, "r") as file:
        info = file[dataset].id.get_chunk_info(frame)
    return info.byte_offset, info.size


def overwrite(path, offset, content):
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(content)
