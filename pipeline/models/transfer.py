"""Numbers on their way to the device and back.

On a GPU nothing here waits: copies go through pinned memory in the order of the device's work, so that the host packs
and starts the next step while the device is at the last one. On a CPU a copy is done when it is asked for.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def to_device(values: npt.NDArray[Any] | list[int], device: torch.device) -> torch.Tensor:
    """Integers on a device, int64."""
    tensor = torch.as_tensor(values, dtype=torch.int64)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Coming:
    """The values of a tensor, float64, that its device may still be computing; on a GPU they are copied meanwhile."""

    def __init__(self, values: torch.Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._host = values.double()
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=torch.float64, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def numpy(self) -> npt.NDArray[np.float64]:
        """The values, once they are there."""
        if self._done is not None:
            self._done.synchronize()
        found: npt.NDArray[np.float64] = self._host.numpy()
        return found
