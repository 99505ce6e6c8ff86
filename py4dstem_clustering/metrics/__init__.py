"""How well labels match known grains, and tracks of many frames match known particles."""

from .grains import (
    PanopticQuality,
    adapted_rand_error,
    adjusted_rand_index,
    border_f_score,
    panoptic_quality,
    variation_of_information,
)
from .tracks import TrackQuality, track_quality

__all__ = [
    "PanopticQuality",
    "TrackQuality",
    "adapted_rand_error",
    "adjusted_rand_index",
    "border_f_score",
    "panoptic_quality",
    "track_quality",
    "variation_of_information",
]
