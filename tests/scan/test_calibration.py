"""Origins of patterns, as calibrations hold them."""

from __future__ import annotations

import numpy as np
import py4DSTEM

from py4dstem_clustering.scan.calibration import whole_shifts


def test_a_shift_is_at_most_half_the_detector():
    cube = py4DSTEM.DataCube(np.ones((3, 3, 8, 6), np.uint16))
    along = np.zeros((3, 3))
    along[0, 0] = 900.0  # as where the origin of one pattern was fitted wrongly
    cube.calibration.set_origin((along, np.zeros((3, 3))))
    shifts = whole_shifts(cube)
    assert shifts[0, 0].tolist() == [-4, 0]
    assert shifts[1, 1].tolist() == [4, 0]
