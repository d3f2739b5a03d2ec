"""Arrays too large for memory: written by rows into a file without a name, then mapped."""

import math
import tempfile

import numpy as np


class Spilled:
    """An array too large for memory, written by rows into a temporary file without a name, then memory-mapped.

    axis: which one counts the rows. The file lies where `tempfile` puts them (TMPDIR) and goes with the array.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, axis: int):
        self._shape, self._dtype, self._axis = shape, np.dtype(dtype), axis
        self._file = tempfile.TemporaryFile(prefix="zoo")  # noqa: SIM115 - the array keeps it open
        self._file.truncate(math.prod(shape) * self._dtype.itemsize)

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        """values: as the array, of these rows alone."""
        row = math.prod(self._shape[self._axis + 1 :]) * self._dtype.itemsize
        length = self._shape[self._axis]
        planes = np.ascontiguousarray(values, self._dtype).reshape(-1, *values.shape[self._axis :])
        for i, plane in enumerate(planes):
            self._file.seek((i * length + rows.start) * row)
            self._file.write(plane.data)

    def array(self) -> np.ndarray:
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r+", shape=self._shape)
