"""Times to an event in a study table: which are refused, and how they are cut at the study's horizon."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.errors import MappingError
from medfed.study import Study

FloatArray = NDArray[np.float64]


def refuse_times_off_grid(study: Study, name: str, times: FloatArray) -> None:
    """MappingError where one of ``times`` (n,) is negative or outside its range.

    Dropping those patients, as other values out of range are, would bias every estimate: they are who lived longest.
    """
    variable = study.variables[name]
    low, high = variable.range or (0.0, 0.0)
    negative = int((times < 0).sum())
    if negative:
        raise MappingError(
            f"study {study.name!r}, variable {name!r}: {negative} of {len(times)} times are negative: follow-up ends "
            "before it starts; correct the export or the mapping"
        )
    outside = int(((times < low) | (times > high)).sum())
    if outside:
        raise MappingError(
            f"study {study.name!r}, variable {name!r}: {outside} of {len(times)} times are off the grid, which the study "
            f"declares from {low:g} to {high:g} {variable.unit}; widen the range in the study (a horizon censors there), "
            "or correct the unit in the mapping"
        )


def cut_times(study: Study, times: FloatArray) -> FloatArray:
    """Times (n,), those beyond the horizon put at the horizon."""
    return np.minimum(times, study.variables[study.time or ""].last_time)


def codes_in_time(study: Study, times: FloatArray, codes: NDArray[Any]) -> NDArray[Any]:
    """Codes of the outcome (n,), that of no event where the event came after the horizon.

    So every question of a study counts the same events: two counts would differ by those few.
    """
    variable = study.variables[study.outcome]
    event = list(variable.codes or ()).index(variable.event or "")
    late = (codes == event) & (times > study.variables[study.time or ""].last_time)
    return np.where(late, 1 - event, codes)
