"""A ring of single images on the training device. Stacks, n-step returns and random shifts are gathered at sampling.

Each observation is one slot; its action, reward and discount lead to the next slot. An episode of L transitions takes
L + 1 slots (docs/algorithm.md draws them). A draw is O(batch).
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass
class Batch:
    """B transitions. `reward` is the n-step sum, `discount` gamma**k, or 0 after a termination."""

    observation: Tensor  # uint8 (B, C, H, W) or float32 (B, d)
    action: Tensor  # float32 (B, a)
    reward: Tensor  # float32 (B,)
    discount: Tensor  # float32 (B,)
    next_observation: Tensor
    actions: Tensor  # float32 (B, n_step, a): `action` and those after it
    rewards: Tensor  # float32 (B, n_step): of these steps
    whole: Tensor  # bool (B, n_step): no episode ends before the step; else its action and reward are meaningless
    following: Tensor  # float32 (B, n_step, d): the states these steps lead to, where the replay was asked for them
    unshifted: Tensor  # `observation` before its random shift, where the replay was asked for it; else `observation`


class Stream:
    """One environment's part of the ring: it writes the slots, and knows which transitions are whole.

    Slots and transitions are numbered from the stream's first and never renumbered; slot g lies at g modulo the number
    of slots. The transitions that may be sampled are always one range of numbers. A GPU is written to by fill_ and by
    copies that do not block: `table[slot] = number` would wait for all updates before it. What is copied is not pinned:
    for more than some 64 KB the driver may wait all the same.
    """

    def __init__(self, tables: dict[str, Tensor], slot_of: Tensor, capacity: int, frame_stack: int, n_step: int):
        self._tables, self._slot_of = tables, slot_of
        self._capacity, self._stack, self._n_step = capacity, frame_stack, n_step
        self.slots = len(slot_of)
        self._needs = np.zeros(self.slots, np.int64)  # transition -> number of the oldest slot its stack shows
        self.next_slot = 0  # number of the slot that is written next
        self.oldest = 0  # the oldest transition that may be sampled
        self._transitions = 0  # number of the transition that is added next
        self._age = 0  # steps of the current episode
        self._open = False

    def __len__(self) -> int:
        """How many transitions may be sampled now."""
        return max(0, self.end - self.oldest)

    @property
    def end(self) -> int:
        """The end of the range that may be sampled: n-step windows of a running episode must be complete."""
        return self._transitions - (min(self._n_step - 1, self._age) if self._open else 0)

    def begin(self, element: np.ndarray) -> None:
        """The first observation of an episode. An episode that was left unfinished counts as truncated."""
        if self._open:
            self._tables["lasts"][(self.next_slot - 1) % self.slots].fill_(True)
        self._age, self._open = 0, True
        self._write(element, last=False)

    def add(self, element: np.ndarray, action: np.ndarray, reward: float, discount: float, last: bool) -> None:
        """A step from the newest observation to `element`. `discount` is 0 only where the task terminated."""
        start = self.next_slot - 1
        at = start % self.slots
        self._tables["actions"][at].copy_(torch.as_tensor(action), non_blocking=True)
        self._tables["rewards"][at].fill_(reward)
        self._tables["discounts"][at].fill_(discount)
        transition = self._transitions % self.slots
        self._slot_of[transition].fill_(at)
        self._needs[transition] = start - min(self._age, self._stack - 1)
        self._transitions += 1
        self._age += 1
        self._open = not last
        self._write(element, last)
        self.oldest = max(self.oldest, self._transitions - self._capacity)

    def _write(self, element: np.ndarray, last: bool) -> None:
        at = self.next_slot % self.slots
        self._tables["elements"][at].copy_(torch.as_tensor(element), non_blocking=True)
        self._tables["lasts"][at].fill_(last)
        self._tables["ages"][at].fill_(self._age)
        overwritten = self.next_slot - self.slots
        self.next_slot += 1
        while self.oldest < self._transitions and self._needs[self.oldest % self.slots] <= overwritten:
            self.oldest += 1

    def state_dict(self) -> dict:
        """Counters, without the slots."""
        return {
            "next_slot": self.next_slot, "transitions": self._transitions, "oldest": self.oldest, "age": self._age,
            "open": self._open,
        }  # fmt: skip

    def slots_between(self, first: int, end: int) -> dict[str, Tensor]:
        """The tables' rows of the slots numbered `first` to `end` - 1, on the CPU."""
        index = torch.arange(first, end, device=self._slot_of.device) % self.slots
        return {name: table[index].cpu() for name, table in self._tables.items()}

    def load_slots(self, first: int, rows: dict[str, Tensor]) -> None:
        """Restore rows from `slots_between`, the newest if there are more than the ring holds."""
        more = max(0, len(rows["ages"]) - self.slots)
        first, rows = first + more, {name: table[more:] for name, table in rows.items()}
        index = torch.arange(first, first + len(rows["ages"]), device=self._slot_of.device) % self.slots
        for name, table in self._tables.items():
            table[index] = rows[name].to(table.device)

    def load_state_dict(self, state: dict) -> None:
        """Resume from a `state_dict`, after `load_slots`; transitions are numbered again from the slots."""
        self.next_slot, self.oldest = state["next_slot"], state["oldest"]
        self._age, self._open = state["age"], state["open"]
        self._transitions = state["transitions"]
        first, device = max(0, self.next_slot - self.slots), self._slot_of.device
        starts = torch.arange(first, max(first, self.next_slot - 1), device=device)  # none, before the first episode
        starts = starts[~self._tables["lasts"][starts % self.slots]]
        numbers = torch.arange(self._transitions - len(starts), self._transitions, device=device) % self.slots
        self._slot_of[numbers] = starts % self.slots
        needs = starts - self._tables["ages"][starts % self.slots].clamp(max=self._stack - 1)
        self._needs[numbers.cpu().numpy()] = needs.cpu().numpy()
        whole = int((needs >= first).sum())  # of a smaller ring than before, fewer than were
        self.oldest = max(self.oldest, self._transitions - min(whole, self._capacity))


class Replay:
    """The newest `capacity` transitions. Elements are what one step adds: uint8 (c, H, W) frames or float32 (d,).

    Each of `streams` environments writes its own equal part of the tables; batches are drawn from all.
    """

    TABLES = ("elements", "actions", "rewards", "discounts", "lasts", "ages")

    def __init__(
        self,
        element_shape: tuple[int, ...],
        action_dim: int,
        capacity: int,
        *,
        streams: int = 1,
        frame_stack: int = 1,
        n_step: int = 1,
        discount: float = 0.99,
        random_shift: int = 0,
        unshifted: bool = False,
        following: bool = False,
        compiled: Callable[[Callable], Callable] | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        self.capacity, self._stack, self._n_step, self._gamma = capacity, frame_stack, n_step, discount
        self._shift = random_shift if len(element_shape) == 3 else 0
        self._unshifted = unshifted and self._shift > 0
        self._following = following
        self.device = torch.device(device)
        self.slots = self.slots_for(capacity, frame_stack, n_step, streams)
        self._part = self.slots // streams

        def table(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(self.slots, *shape, dtype=dtype, device=self.device)

        kind = torch.uint8 if len(element_shape) == 3 else torch.float32
        # empty: the system gives memory as it is written, not all of it at once
        self.elements = torch.empty(self.slots, *element_shape, dtype=kind, device=self.device)
        self.actions, self.rewards, self.discounts = table(action_dim), table(), table()
        self.lasts = table(dtype=torch.bool)  # the slot is an episode's last observation
        self.ages = table(dtype=torch.int64)  # steps since the episode's first observation
        self._slot_of = table(dtype=torch.int64)  # transition -> slot, both within a stream
        if compiled:
            self._find_slots = compiled(self._find_slots)  # type: ignore[method-assign]
            self._collect = compiled(self._collect)  # type: ignore[method-assign]
        self.streams = [self._stream(slice(at, at + self._part)) for at in range(0, self.slots, self._part)]
        self.draws = torch.Generator(self.device).manual_seed(seed)
        self.shifts = torch.Generator(self.device).manual_seed(seed + 1)
        self._ranges = torch.zeros(2, streams, dtype=torch.int64, device=self.device)  # oldest and end of each stream
        self._offsets = torch.arange(frame_stack - 1, -1, -1, device=self.device)

    def _stream(self, part: slice) -> Stream:
        tables = {name: getattr(self, name)[part] for name in self.TABLES}
        capacity = self._part - self._stack - self._n_step
        return Stream(tables, self._slot_of[part], capacity, self._stack, self._n_step)

    @staticmethod
    def slots_for(capacity: int, frame_stack: int, n_step: int, streams: int = 1) -> int:
        """Slots that hold `capacity` transitions of one long episode a stream with their stacks and n-step windows."""
        return streams * (math.ceil(capacity / streams) + frame_stack + n_step)

    def __len__(self) -> int:
        """How many transitions may be sampled now."""
        return sum(map(len, self.streams))

    def begin(self, element: np.ndarray, stream: int = 0) -> None:
        """As Stream.begin."""
        self.streams[stream].begin(element)

    def add(
        self, element: np.ndarray, action: np.ndarray, reward: float, discount: float, last: bool, stream: int = 0
    ) -> None:
        """As Stream.add."""
        self.streams[stream].add(element, action, reward, discount, last)

    def sample(self, size: int) -> Batch:
        """Uniform draws with replacement from the transitions that are whole."""
        self.publish()
        return self.draw(size)

    def publish(self) -> None:
        """Let `draw` give every transition that is whole now."""
        oldest, end = zip(*((stream.oldest, max(stream.oldest, stream.end)) for stream in self.streams))
        self._ranges.copy_(torch.tensor([oldest, end]), non_blocking=True)

    def draw(self, size: int) -> Batch:
        """A batch of the transitions last published, sampled without reading a value back to the CPU."""
        number = torch.empty(size, dtype=torch.int64, device=self.device).random_(generator=self.draws)
        return self.gather(self._find_slots(number))

    def _find_slots(self, number: Tensor) -> Tensor:
        """Large random numbers to the slots at which transitions begin."""
        oldest, end = self._ranges
        ends = (end - oldest).cumsum(0)
        number = number % ends[-1]
        stream = torch.searchsorted(ends, number, right=True)
        transition = number + (end - ends)[stream]
        part = stream * self._part
        return part + self._slot_of[part + transition % self._part]

    def gather(self, slots: Tensor) -> Batch:
        """The transitions that start at these slots; see Batch."""
        return Batch(*self._collect(slots, *(self._draw_shifts(len(slots)) for _ in range(2))))

    def _draw_shifts(self, size: int) -> Tensor | None:
        """How far each picture of a batch is moved down and right, (2, B); None where none is."""
        if not self._shift:
            return None
        shifts = torch.empty(2, size, dtype=torch.int64, device=self.device)
        return shifts.random_(-self._shift, self._shift + 1, generator=self.shifts)

    def _collect(self, slots: Tensor, shifts: Tensor | None, next_shifts: Tensor | None) -> tuple[Tensor, ...]:
        reward, discount = self.rewards[slots], self._gamma * self.discounts[slots]
        end = self._moved(slots, 1)
        window, ends, whole = [slots], [end], [torch.ones_like(self.lasts[slots])]
        for _ in range(self._n_step - 1):
            continues = ~self.lasts[end]
            reward += torch.where(continues, discount * self.rewards[end], 0.0)
            window.append(end)
            whole.append(whole[-1] & continues)
            discount *= torch.where(continues, self._gamma * self.discounts[end], 1.0)
            end = self._moved(end, continues)
            ends.append(end)
        observation, next_observation = self._observations(slots, shifts), self._observations(end, next_shifts)
        steps = torch.stack(window, 1)
        actions, rewards = self.actions[steps], self.rewards[steps]
        following = next_observation[:, None]
        if self._following:
            following = self._observations(torch.cat(ends), None).unflatten(0, (len(ends), -1)).transpose(0, 1)
        unshifted = self._observations(slots, None) if self._unshifted else observation
        observed = observation, actions[:, 0], reward, discount, next_observation
        return *observed, actions, rewards, torch.stack(whole, 1), following, unshifted

    def _moved(self, slots: Tensor, by: Tensor | int) -> Tensor:
        """The slots `by` further on, each within its own stream's part of the ring."""
        return slots - slots % self._part + (slots + by) % self._part

    def _observations(self, slots: Tensor, shifts: Tensor | None) -> Tensor:
        """The stacks that end at these slots; within an episode's first steps its first element repeats.

        Of pictures uint8 (B, stack * c, H, W), each sample an integer crop of the edge-padded picture, by its own draw.
        """
        stacked = slots[:, None]
        if self._stack > 1:
            stacked = self._moved(stacked, -torch.minimum(self._offsets, self.ages[slots][:, None]))
        if shifts is None:  # elements[stacked] takes ten times as long
            return self.elements.index_select(0, stacked.flatten()).unflatten(0, stacked.shape).flatten(1, 2)
        return _crops(self.elements, stacked, shifts).flatten(1, 2)

    def state_dict(self) -> dict:
        """Counters and random streams, without the slots."""
        return {
            "streams": [stream.state_dict() for stream in self.streams],
            "draws": self.draws.get_state().tolist(), "shifts": self.shifts.get_state().tolist(),
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Resume from a `state_dict`, after each stream's `load_slots`."""
        for stream, own in zip(self.streams, state.get("streams", [state])):  # older ones hold one
            stream.load_state_dict(own)
        self.draws.set_state(torch.tensor(state["draws"], dtype=torch.uint8))
        self.shifts.set_state(torch.tensor(state["shifts"], dtype=torch.uint8))


def _crops(elements: Tensor, stacked: Tensor, shift: Tensor) -> Tensor:
    """The pictures in these slots (B, stack), each sample moved by its shift (2, B): uint8 (B, stack, c, H, W).

    Rows are copied whole from the ring, already in their shifted order; columns are then moved in each row.
    """
    _, channels, height, width = elements.shape
    rows = (torch.arange(height, device=shift.device) + shift[0, :, None]).clamp_(0, height - 1)
    planes = stacked[..., None] * channels + torch.arange(channels, device=shift.device)
    index = planes[..., None] * height + rows[:, None, None]
    pictures = elements.view(-1, width).index_select(0, index.view(-1)).view(*index.shape, width)
    columns = (torch.arange(width, device=shift.device) + shift[1, :, None]).clamp_(0, width - 1)
    return pictures.gather(4, columns[:, None, None, None].expand_as(pictures))
