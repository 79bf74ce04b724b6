"""Bytes: what a replay takes, what is free, and where the replay lives."""

import numpy as np
import psutil
import torch

from pixel_ddpg import container
from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime import machine

GPU_RESERVE = 3 * 2**30  # bytes


def element_bytes(element_shape: tuple[int, ...], action_dim: int) -> int:
    """Bytes that a slot takes in all tables of a replay."""
    element = int(np.prod(element_shape)) * (1 if len(element_shape) == 3 else 4)
    return element + 4 * action_dim + 4 + 4 + 1 + 8 + 8 + 8  # rewards, discounts, lasts, ages, _slot_of, _needs


def place(nbytes: int, device: torch.device, free_on_device: int, free_in_ram: int) -> tuple[torch.device, str]:
    """Where a replay of `nbytes` lives and why; UserError where it fits nowhere.

    A tenth is left free, and on a GPU at least 3 GiB for networks, batches and the copies that a checkpoint makes.
    """
    if device.type != "cpu" and nbytes <= min(0.9 * free_on_device, free_on_device - GPU_RESERVE):
        return device, "on the GPU"
    if nbytes > 0.9 * free_in_ram:
        raise UserError(
            f"the replay needs {nbytes / 2**30:.1f} GiB, {free_in_ram / 2**30:.1f} GiB of RAM are free: "
            "set a smaller replay.capacity or env.size"
        )
    if device.type == "cpu":
        return device, "in RAM"
    return torch.device("cpu"), f"in RAM, because the GPU has {free_on_device / 2**30:.1f} GiB free"


def free_memory(device: torch.device) -> int:
    """Free bytes of a GPU, or of RAM within the container's limit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps of a former run is free too
        return torch.cuda.mem_get_info(device)[0]
    machine.give_memory_back()
    return container.free_ram()


def memory_bytes(device: torch.device) -> int:
    """Memory this process holds: on the GPU where it trains there, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def format_bytes(count: int) -> str:
    """12 MiB, 21.2 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
