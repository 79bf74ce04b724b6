"""Random crops of a batch on a CPU."""

import numpy as np
import torch
from torch import Tensor


def crops_by_slices(elements: Tensor, stacked: Tensor, shift: Tensor) -> Tensor:
    """`agent.replay.crops_by_index`, sample by sample: half of its time, as each copy is of whole blocks."""
    ring, stack = elements.numpy(), stacked.shape[1]
    pictures = np.empty((*stacked.shape, *ring.shape[1:]), np.uint8)
    for picture, slots, down, right in zip(pictures, stacked.tolist(), *shift.tolist()):
        in_a_row = slots[-1] - slots[0] == stack - 1
        _crop(ring[slots[0] : slots[-1] + 1] if in_a_row else ring[slots], picture, down, right)
    return torch.from_numpy(pictures)


def _crop(source: np.ndarray, target: np.ndarray, down: int, right: int) -> None:
    """target[..., y, x] = source[..., y + down, x + right], the edge where that lies outside (..., H, W)."""
    height, width = source.shape[-2:]
    top, bottom, left, end = max(0, -down), height - max(0, down), max(0, -right), width - max(0, right)
    target[..., top:bottom, left:end] = source[..., top + down : bottom + down, left + right : end + right]
    target[..., :left], target[..., end:] = target[..., left : left + 1], target[..., end - 1 : end]
    target[..., :top, :], target[..., bottom:, :] = target[..., top : top + 1, :], target[..., bottom - 1 : bottom, :]
