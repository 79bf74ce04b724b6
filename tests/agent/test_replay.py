"""The replay against a naive list of transitions, and each silent bug that a ring of frames invites."""

import json
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel_ddpg.agent.replay import Replay
from pixel_ddpg.config import Config
from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime.memory import element_bytes, place
from pixel_ddpg.training import checkpoint


def chisquare(counts):
    """scipy's, which a machine with no more than offline_pack lacks."""
    return pytest.importorskip("scipy.stats").chisquare(counts)


GAMMA = 0.5  # its powers are exact
PIXELS, STATE = (3, 5, 5), (2,)


# --- a naive reference and the streams that feed it ---


class Naive:
    """Whole episodes in Python lists; what the replay must know, straight from its docstrings."""

    def __init__(self, capacity, stack, n_step):
        self.capacity, self.stack, self.n_step = capacity, stack, n_step
        self.slots = 0  # elements seen so far
        self.steps = []  # (episode, time) of every transition

    def begin(self, element):
        if self.slots:
            self.episode["over"] = True
        self.episode = {"first": self.slots, "elements": [element], "steps": [], "over": False}
        self.slots += 1

    def add(self, element, action, reward, discount, last):
        self.steps.append((self.episode, len(self.episode["steps"])))
        self.episode["elements"].append(element)
        self.episode["steps"].append((action, reward, discount))
        self.episode["over"] = last
        self.slots += 1

    def whole(self):
        """The newest `capacity` transitions whose n steps are known and whose stack is still in the ring, in order."""
        ring = self.slots - Replay.slots_for(self.capacity, self.stack, self.n_step)
        for episode, time in self.steps[-self.capacity :]:
            known = episode["over"] or time + self.n_step <= len(episode["steps"])
            if known and episode["first"] + max(0, time - self.stack + 1) >= ring:
                yield self.transition(episode, time)

    def transition(self, episode, time):
        total, discount, end = 0.0, 1.0, time
        for _, reward, go_on in episode["steps"][time : time + self.n_step]:
            total, discount, end = total + discount * reward, discount * GAMMA * go_on, end + 1
        action = episode["steps"][time][0]
        return self.stacked(episode, time), action, total, discount, self.stacked(episode, end)

    def stacked(self, episode, time):
        return np.concatenate([episode["elements"][max(0, time - back)] for back in reversed(range(self.stack))])


def element(number, shape):
    """The element of a slot: unlike its neighbours' in every channel and pixel."""
    values = np.random.default_rng(number).integers(0, 256, shape)
    return values.astype(np.uint8) if len(shape) == 3 else values.astype(np.float32) + number * 256


def feed(memories, events, shape, number=0):
    """One event at a time, given to all memories alike; yields after each. The action is the transition's number."""
    for event in events:
        picture = element(number, shape)
        for memory in memories:
            if event == "begin":
                memory.begin(picture)
            else:
                memory.add(picture, np.array([number], np.float32), float(number % 7 - 2), *event)
        number += 1
        yield number


LENGTHS, ENDS = st.integers(0, 11), st.sampled_from([(0.0, True), (1.0, True), None])


@st.composite
def streams(draw):
    """Episodes of any length; each ends by termination, by truncation, or is abandoned (so may the last one be)."""
    events = []
    for length, end in draw(st.lists(st.tuples(LENGTHS, ENDS), min_size=1, max_size=12)):
        events += ["begin"] + [(1.0, False)] * length + ([end] if end else [])
    return events


@st.composite
def rings(draw):
    """Sizes of a small ring."""
    return {
        "capacity": draw(st.integers(1, 7)),
        "frame_stack": draw(st.integers(1, 4)),
        "n_step": draw(st.integers(1, 4)),
    }


def make(shape=STATE, capacity=50, frame_stack=1, n_step=1, **more):
    return Replay(shape, 1, capacity, frame_stack=frame_stack, n_step=n_step, discount=GAMMA, **more)


def filled(events, shape=STATE, **options):
    """A replay and the naive one after these events."""
    replay = make(shape, **options)
    naive = Naive(replay.capacity, options.get("frame_stack", 1), options.get("n_step", 1))
    for _ in feed([replay, naive], events, shape):
        pass
    return replay, naive


def assert_same(replay, *naive):
    """Many draws show every transition of the naive lists, and only those, each with the same five parts."""
    expected = [transition for one in naive for transition in one.whole()]
    assert len(replay) == len(expected)
    if not expected:
        return
    batch = replay.sample(40 * len(expected))  # a transition stays unseen with probability e^-40
    row = {float(action[0]): index for index, (_, action, *_) in enumerate(expected)}
    drawn = [row[action] for action in batch.action[:, 0].tolist()]
    assert set(drawn) == set(row.values())
    for got, parts in zip(vars(batch).values(), zip(*expected)):
        np.testing.assert_array_equal(got, np.array(parts)[drawn])


@given(streams(), rings(), st.sampled_from([PIXELS, STATE]))
@settings(max_examples=150)
def test_any_stream_is_sampled_like_the_naive_list(events, ring, shape):
    """Any cut window, wrong stack, wrong return, or a transition too many or too few, after any event."""
    replay = make(shape, **ring)
    naive = Naive(replay.capacity, ring["frame_stack"], ring["n_step"])
    for _ in feed([replay, naive], events, shape):
        assert_same(replay, naive)


@pytest.mark.parametrize("shape", [PIXELS, STATE])
@pytest.mark.parametrize("capacity", [5, 16])
def test_many_wraps_are_sampled_like_the_naive_list(shape, capacity):
    """Numbers that grow past the ring many times, as in a long run."""
    random = np.random.default_rng(0)
    events = []
    for length in random.integers(0, 14, 60):
        events += ["begin"] + [(1.0, False)] * length + [(float(random.integers(2)), True)]
    replay = make(shape, capacity, frame_stack=3, n_step=3)
    naive = Naive(capacity, 3, 3)
    for number in feed([replay, naive], events, shape):
        if number % 3 == 0:
            assert_same(replay, naive)
    assert number > 15 * replay.slots


@given(st.lists(streams(), min_size=2, max_size=4), rings(), st.sampled_from([PIXELS, STATE]), st.data())
@settings(max_examples=60)
def test_several_streams_are_sampled_like_a_naive_list_each(events, ring, shape, data):
    """A stack, a window or a wrap that reaches into another environment's slots; a stream that is never drawn from."""
    replay, count = make(shape, **ring | {"capacity": ring["capacity"] * len(events)}, streams=len(events)), len(events)
    naive = [Naive(ring["capacity"], ring["frame_stack"], ring["n_step"]) for _ in events]
    writers = [feed([replay.streams[k], naive[k]], events[k], shape, 1000 * k) for k in range(count)]
    while writers:
        turn = data.draw(st.integers(0, len(writers) - 1))
        if next(writers[turn], None) is None:
            del writers[turn]
        elif data.draw(st.booleans()):
            assert_same(replay, *naive)
    assert_same(replay, *naive)


def test_streams_are_drawn_from_by_their_lengths():
    """An environment whose transitions count more than another's."""
    replay = make(streams=3, capacity=90)
    for stream, length in enumerate((20, 4, 0)):
        for _ in feed([replay.streams[stream]], ["begin"] + [(1.0, False)] * length, STATE, 100 * stream):
            pass
    counts = np.unique(replay.sample(12_000).action.numpy(), return_counts=True)[1]
    assert len(counts) == 24 and chisquare(counts).pvalue > 1e-3


def test_a_replay_smaller_than_its_n_step_window_is_empty():
    """replay.capacity=1 with n_step=3: the trainer asks `len(replay)` at each step."""
    replay, _ = filled(["begin"] + [(1.0, False)] * 2, capacity=1, n_step=3)
    assert len(replay) == 0


@given(streams(), rings())
@settings(max_examples=60)
def test_windows_hold_the_actions_and_rewards_of_the_steps_that_follow(events, ring):
    """A window of another transition, or one called whole that an episode's end cuts."""
    replay = make(**ring, following=True)
    naive = Naive(replay.capacity, ring["frame_stack"], ring["n_step"])
    for _ in feed([replay, naive], events, STATE):
        pass
    if not len(replay):
        return
    batch, follow = replay.sample(64), {}
    for episode, time in naive.steps:
        follow[float(episode["steps"][time][0][0])] = (episode, time)
    assert torch.equal(batch.following[:, -1], batch.next_observation)
    for row, action in enumerate(batch.action[:, 0].tolist()):
        episode, time = follow[action]
        window = episode["steps"][time : time + ring["n_step"]]
        assert batch.whole[row].tolist() == [step < len(window) for step in range(ring["n_step"])]
        assert batch.actions[row, : len(window), 0].tolist() == [float(action[0]) for action, _, _ in window]
        assert batch.rewards[row, : len(window)].tolist() == [pytest.approx(float(reward)) for _, reward, _ in window]
        for step in range(len(window)):
            after = naive.stacked(episode, time + 1 + step)
            assert np.array_equal(batch.following[row, step].numpy(), after)


# --- docs/silent_bugs.md, by number ---


def all_of(replay):
    """Every transition once, by its action."""
    batch = replay.sample(400)
    first = [batch.action[:, 0].tolist().index(action) for action in sorted(set(batch.action[:, 0].tolist()))]
    return {name: tensor[first].tolist() for name, tensor in vars(batch).items()}


def test_a_batch_tells_the_observation_before_its_shift():
    """The shifted one, the next one, or shifts that are drawn once more and change the batches that follow."""
    shape, tries = (3, 12, 12), ((4, True), (4, False), (0, True))
    told, plain, still = (make(shape, frame_stack=2, random_shift=shift, unshifted=asked) for shift, asked in tries)
    for _ in feed([told, plain, still], ["begin"] + [(1.0, False)] * 20, shape):
        pass
    for _ in range(3):
        one, other, pictures = (replay.sample(16) for replay in (told, plain, still))
        assert torch.equal(one.observation, other.observation)
        assert torch.equal(one.next_observation, other.next_observation)
        assert torch.equal(one.unshifted, pictures.observation)
        assert not torch.equal(one.unshifted, one.observation)
        assert torch.equal(other.unshifted, other.observation)
        assert torch.equal(pictures.unshifted, pictures.observation)


def test_1_a_termination_has_discount_zero():
    """`discount or 1.0` makes a bootstrap of it."""
    replay, _ = filled(["begin", (1.0, False), (0.0, True)])
    assert all_of(replay)["discount"] == [GAMMA, 0.0]


def test_2_a_time_limit_is_bootstrapped_through():
    """A truncation taken for a termination forgets the future; so does an abandoned episode's end."""
    truncated, _ = filled(["begin", (1.0, False), (1.0, True)])
    abandoned, _ = filled(["begin", (1.0, False), (1.0, False), "begin"])
    assert all_of(truncated)["discount"] == all_of(abandoned)["discount"] == [GAMMA, GAMMA]


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_3_n_step_returns_stop_at_the_episodes_end(discount):
    """A window that runs on into the next episode, or a bootstrap with gamma**n after k < n rewards."""
    replay = make(n_step=3)
    elements = np.arange(10, dtype=np.float32).repeat(2).reshape(10, 2)
    for start in (0, 5):
        replay.begin(elements[start])
        for step in range(4):
            last = step == 3
            number = np.array([start + step], np.float32)
            replay.add(elements[start + step + 1], number, 2.0**step, discount if last else 1.0, last)
    seen = all_of(replay)
    assert seen["reward"] == 2 * [1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8]
    assert seen["discount"] == 2 * [1 / 8, discount / 8, discount / 4, discount / 2]
    assert [first for first, _ in seen["next_observation"]] == [3, 4, 4, 4, 8, 9, 9, 9]


def test_4_the_last_observation_is_a_next_observation_and_never_a_start():
    """A transition from an episode's last observation to the next episode's first."""
    replay, _ = filled(["begin", (1.0, False), (1.0, True), "begin", (1.0, True)], n_step=2)
    seen = all_of(replay)
    starts, nexts = ({second for _, second in seen[name]} for name in ("observation", "next_observation"))
    last = {float(element(number, STATE)[1]) for number in (2, 4)}
    assert not starts & last and nexts == last


def test_5_a_stack_stays_in_its_episode():
    """An episode's first stacks that show the previous episode instead of the repeated first element."""
    replay, _ = filled(["begin", (1.0, False), (1.0, True), "begin", (1.0, False), (1.0, True)], frame_stack=3)
    numbers = {float(element(number, STATE)[1]): number for number in range(6)}
    seen = [[numbers[value] for value in stack[1::2]] for stack in all_of(replay)["observation"]]
    assert seen == [[0, 0, 0], [0, 0, 1], [3, 3, 3], [3, 3, 4]]


def test_6_slots_cut_by_the_write_pointer_are_not_sampled():
    """After a wrap: stacks that reach overwritten frames, windows that reach beyond the newest."""
    replay, _ = filled(["begin"] + [(1.0, False)] * 100, capacity=10, frame_stack=3, n_step=3)
    actions = [action for (action,) in all_of(replay)["action"]]
    assert actions == list(range(91, 99))  # 100 is the newest action; 99 and 100 lack their three rewards


@pytest.mark.parametrize("n_step", [1, 4])
def test_one_long_episode_fills_the_capacity(n_step):
    """A ring with too few slots for the oldest stack: fewer transitions than asked for."""
    replay, _ = filled(["begin"] + [(1.0, False)] * 50 + [(1.0, True)], capacity=10, frame_stack=4, n_step=n_step)
    assert len(replay) == 10


def test_6_many_short_episodes_push_their_old_stacks_out():
    """Last observations take slots too, so the ring may hold fewer than `capacity` transitions, all of them whole."""
    events = ["begin", (1.0, False), (1.0, True)] * 20
    replay, naive = filled(events, capacity=20, frame_stack=4, n_step=1)
    assert len(replay) < 20
    assert_same(replay, naive)


def test_16_pixels_are_stored_once_as_bytes():
    """Frames kept as floats, or once for each observation that shows them."""
    replay = make(PIXELS, frame_stack=3)
    assert replay.elements.dtype == torch.uint8 and replay.elements[0].shape == PIXELS
    replay, _ = filled(["begin", (1.0, True)], PIXELS, frame_stack=3)
    assert replay.sample(1).observation.dtype == torch.uint8


# --- random shift ---

SIDE, SHIFT, STACK = 12, 4, 3


@pytest.fixture(scope="module", params=[{}, {"capacity": 9}], ids=["a ring with room", "a ring that has wrapped"])
def shifted(request):
    """A batch of shifted stacks, the stacks as they were, and the (row, column) that explains each sample."""
    events, shape = (["begin"] + [(1.0, False)] * 9) * 3, (3, SIDE, SIDE)
    replay, _ = filled(events, shape, frame_stack=STACK, random_shift=SHIFT, **request.param)
    plain, _ = filled(events, shape, frame_stack=STACK, **request.param)
    batch, same = replay.sample(1500), plain.sample(1500)
    assert torch.equal(batch.action, same.action)
    names = ("observation", "next_observation")
    return {name: (vars(batch)[name], vars(same)[name], found(vars(batch)[name], vars(same)[name])) for name in names}


def crops(pictures):
    """Every integer crop of the edge-padded pictures, by (row, column) of its corner."""
    padded = np.pad(pictures.numpy(), [(0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)], mode="edge")
    corners = [(row, column) for row in range(2 * SHIFT + 1) for column in range(2 * SHIFT + 1)]
    return corners, [padded[:, :, row : row + SIDE, column : column + SIDE] for row, column in corners]


def found(shifted, plain):
    """The one crop of all channels together that equals each sample."""
    corners, candidates = crops(plain)
    match = np.stack([(crop == shifted.numpy()).all((1, 2, 3)) for crop in candidates], 1)
    assert (match.sum(1) == 1).all()
    return np.array(corners)[match.argmax(1)]


def test_10_a_shift_is_one_integer_crop_of_all_stacked_channels(shifted):
    """Channels that shift apart, wrapped or black edges: `found` in the fixture would match no crop, or two."""
    for _, _, corners in shifted.values():
        counts = np.zeros((2 * SHIFT + 1, 2 * SHIFT + 1), int)
        np.add.at(counts, tuple(corners.T), 1)
        assert chisquare(counts.ravel()).pvalue > 1e-3  # uniform, both ends included


def test_10_observation_and_next_observation_shift_apart(shifted):
    """One shift for both, or one for the whole batch."""
    here, there = (corners for _, _, corners in shifted.values())
    assert (here == there).all(1).mean() < 0.05  # 1/81 by chance
    for axis in (0, 1):
        assert abs(np.corrcoef(here[:, axis], there[:, axis])[0, 1]) < 0.1
    assert abs(np.corrcoef(here.T)[0, 1]) < 0.1


def random_shifts_aug(pictures, corners):
    """DrQ-v2's augmentation of float pictures (B, C, H, H), with these shifts: bilinear samples of the padded ones."""
    padded = F.pad(pictures, (SHIFT,) * 4, mode="replicate")
    side = padded.shape[-1]
    line = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)[:SIDE]
    grid = torch.stack([line.expand(SIDE, SIDE), line[:, None].expand(SIDE, SIDE)], -1)
    shift = torch.as_tensor(corners[:, None, None, ::-1].copy()) * (2.0 / side)
    return F.grid_sample(padded, grid + shift, padding_mode="zeros", align_corners=False)


def test_10_the_crop_equals_bilinear_sampling(shifted):
    """An off-by-half or transposed shift, against the paper's grid_sample."""
    for got, plain, corners in shifted.values():
        difference = random_shifts_aug(plain.float(), corners) - got.float()
        assert difference.abs().max() < 0.004  # of 255


def test_10_no_shift_is_the_identity():
    """Augmentation that cannot be switched off, or that moves state vectors."""
    replay, naive = filled(["begin"] + [(1.0, False)] * 9, PIXELS, frame_stack=3, random_shift=0)
    assert_same(replay, naive)
    replay, naive = filled(["begin"] + [(1.0, False)] * 9, STATE, frame_stack=3, random_shift=4)
    assert_same(replay, naive)


# --- sampling ---


def test_sampling_is_uniform():
    """Transitions at the ring's seam or an episode's end drawn more or less often than others."""
    events = (["begin"] + [(1.0, False)] * 6 + [(0.0, True)]) * 9 + ["begin"] + [(1.0, False)] * 5
    replay, _ = filled(events, capacity=20, frame_stack=2, n_step=2)
    _, counts = np.unique(replay.sample(40_000).action[:, 0], return_counts=True)
    assert len(counts) == len(replay)
    assert chisquare(counts).pvalue > 1e-3


def test_13_draws_follow_the_seed():
    """A stream that ignores its seed, or that the global one disturbs."""
    events = ["begin"] + [(1.0, False)] * 40
    same, again, other = (filled(events, seed=seed)[0] for seed in (1, 1, 2))
    first = same.sample(64).action
    torch.manual_seed(7)
    assert torch.equal(first, again.sample(64).action)
    assert not torch.equal(first, other.sample(64).action)


# --- saving and going on ---


def save_piece(replay, pieces, limit=2**28):
    """As checkpoint.save_checkpoint does, with {(first, end): rows} for files."""
    with mock.patch.object(checkpoint, "PIECE_BYTES", limit):
        slot_bytes = element_bytes(replay.elements.shape[1:], replay.actions.shape[1])
        now = checkpoint.next_pieces([list(key) for key in pieces], replay.streams[0], slot_bytes)
    written = {tuple(piece): pieces.get(tuple(piece)) for piece in now}
    return {piece: rows or replay.streams[0].slots_between(*piece) for piece, rows in written.items()}


def restore(replay, pieces, state):
    """As checkpoint.load_checkpoint does."""
    for (first, _), rows in pieces.items():
        replay.streams[0].load_slots(first, rows)
    replay.load_state_dict(json.loads(json.dumps(state)))


def assert_twins(one, other):
    """The same draws and shifts from both, now and as saved."""
    assert len(one) == len(other)
    if len(one):
        for mine, yours in zip(vars(one.sample(16)).values(), vars(other.sample(16)).values()):
            assert torch.equal(mine, yours)
    assert one.state_dict() == other.state_dict()


@given(streams(), rings(), st.sampled_from([PIXELS, STATE]), st.sets(st.integers(1, 60), max_size=4), st.data())
@settings(max_examples=100)
def test_13_a_restored_replay_continues_as_if_nothing_had_happened(events, ring, shape, saves, data):
    """A lost action of the last slot, a lost episode end, a wrong number after a wrap, another random stream."""
    replay, fresh = (make(shape, **ring, random_shift=2, seed=seed) for seed in (3, 4))
    stop, pieces, limit = data.draw(st.integers(1, len(events))), {}, data.draw(st.sampled_from([1, 1000, 2**28]))
    for number in feed([replay], events[:stop], shape):
        if number in saves or number == stop:
            pieces = save_piece(replay, pieces, limit)
            if len(replay):
                replay.sample(1)  # the streams move on between saves
    restore(fresh, pieces, replay.state_dict())
    assert_twins(replay, fresh)
    for _ in feed([replay, fresh], events[stop:], shape, stop):
        assert_twins(replay, fresh)


@given(streams(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 30), st.data())
@settings(max_examples=60)
def test_a_larger_ring_takes_over_one_that_has_not_wrapped(events, frame_stack, n_step, more, data):
    """A run resumed with a larger budget: the slots lie elsewhere when numbers pass the old size."""
    replay = make(PIXELS, len(events), frame_stack, n_step)
    larger = make(PIXELS, len(events) + more, frame_stack, n_step)
    stop = data.draw(st.integers(1, len(events)))
    for _ in feed([replay], events[:stop], PIXELS):
        pass
    restore(larger, save_piece(replay, {}), replay.state_dict())
    assert_twins(replay, larger)
    for _ in feed([replay, larger], events[stop:], PIXELS, stop):
        assert_twins(replay, larger)
    naive = Naive(larger.capacity, frame_stack, n_step)
    for _ in feed([naive], events, PIXELS):
        pass
    for number in feed([larger, naive], (["begin"] + [(1.0, False)] * 9) * 6, PIXELS, len(events)):
        if number % 5 == 0:  # and on, until the larger one has wrapped too
            assert_same(larger, naive)


@given(streams(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 30))
@settings(max_examples=60)
def test_a_smaller_ring_takes_over_the_newest(events, frame_stack, n_step, capacity):
    """A run resumed with a smaller budget: slots that were overwritten, counted as if they were there."""
    capacity = max(capacity, n_step)
    replay, smaller = (make(PIXELS, size, frame_stack, n_step) for size in (len(events) + capacity, capacity))
    naive = Naive(capacity, frame_stack, n_step)
    for _ in feed([replay, naive], events, PIXELS):
        pass
    restore(smaller, save_piece(replay, {}), replay.state_dict())
    assert_same(smaller, naive)
    for _ in feed([smaller, naive], (["begin"] + [(1.0, False)] * 9) * 3, PIXELS, len(events)):
        assert_same(smaller, naive)


def test_several_streams_are_saved_and_continue(tmp_path):
    """One stream's piece under another's name, or a counter of the first for all."""
    replay, fresh = (make(PIXELS, 40, 3, 3, streams=2, seed=seed) for seed in (3, 4))
    for round in range(4):
        for stream in (0, 1):
            events = ["begin"] + [(1.0, False)] * (3 + 5 * stream + round)
            for _ in feed([replay.streams[stream]], events, PIXELS, 1000 * stream + 100 * round):
                pass
        checkpoint.save_checkpoint(tmp_path, round, {}, {"device": "cpu"}, replay)
    checkpoint.load_checkpoint(tmp_path, Config(), fresh)
    assert_twins(replay, fresh)
    more = ["begin"] + [(1.0, False)] * 30
    for _ in feed([replay.streams[1], fresh.streams[1]], more, PIXELS, 5000):
        assert_twins(replay, fresh)


# --- bytes and places ---


@pytest.mark.parametrize("shape", [(3, 8, 8), (9, 5, 5), (17,)])
def test_nbytes_is_what_is_announced(shape):
    """A table that element_bytes forgets: the plan printed before a run would be wrong."""
    replay = Replay(shape, 6, 100, frame_stack=3, n_step=3)
    everything = [*vars(replay).values(), *vars(replay.streams[0]).values()]
    tables = [value for value in everything if isinstance(value, torch.Tensor | np.ndarray)]
    assert sum(
        table.nbytes for table in tables if table.shape[:1] == (replay.slots,)
    ) - replay._slot_of.nbytes == replay.slots * element_bytes(shape, 6)


@pytest.mark.parametrize("side, gigabytes", [(84, 21.2), (64, 12.3)])
def test_a_million_steps_fit_in_memory(side, gigabytes):
    """Frames stored more than once, or as floats."""
    slots = Replay.slots_for(1_000_000, 3, 3)
    assert slots * element_bytes((3, side, side), 1) / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_place_prefers_the_gpu_and_falls_back_to_ram():
    """A replay that overflows the GPU, or leaves it without saying why."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    gib = 2**30
    assert place(8 * gib, cuda, 12 * gib, 0) == (cuda, "on the GPU")
    device, why = place(8 * gib, cuda, 10 * gib, 10 * gib)  # networks and batches need room too
    assert device == cpu and "because the GPU has 10.0 GiB free" in why
    assert place(8 * gib, cpu, 0, 10 * gib) == (cpu, "in RAM")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_place_refuses_what_fits_nowhere(device):
    """A run that the kernel kills hours later instead of one line now."""
    with pytest.raises(UserError, match=r"needs 8\.0 GiB, 8\.5 GiB of RAM are free: .*replay.capacity"):
        place(8 * 2**30, torch.device(device), 2**30, int(8.5 * 2**30))


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [PIXELS, STATE])
def test_cuda_gathers_what_the_cpu_gathers(shape):
    """An index or a generator left on the other device."""
    events = (["begin"] + [(1.0, False)] * 6 + [(0.0, True)]) * 9
    on_cpu, on_gpu = (filled(events, shape, capacity=20, frame_stack=3, n_step=3, device=d)[0] for d in ("cpu", "cuda"))
    slots = torch.arange(on_cpu.slots)
    for mine, yours in zip(vars(on_cpu.gather(slots)).values(), vars(on_gpu.gather(slots.cuda())).values()):
        assert yours.device.type == "cuda" and torch.equal(mine, yours.cpu())
    assert on_gpu.sample(8).observation.device.type == "cuda"


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler here")
def test_a_compiled_gather_is_the_plain_one():
    """Another crop, another draw; a break of the graph. A CPU's kernels stand for a GPU's."""
    events = (["begin"] + [(1.0, False)] * 6 + [(0.0, True)]) * 9
    options = {"capacity": 20, "frame_stack": 3, "n_step": 3, "random_shift": 2, "streams": 2}
    plain = filled(events, PIXELS, **options)[0]
    compiled = filled(events, PIXELS, **options, compiled=lambda part: torch.compile(part, dynamic=False))[0]
    torch._dynamo.utils.counters.clear()
    for _ in range(3):
        for mine, yours in zip(vars(plain.sample(8)).values(), vars(compiled.sample(8)).values()):
            assert torch.equal(mine, yours)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_ring_takes_memory_as_it_is_filled():
    """21 GiB for the first step of a long run: killed on a machine where the run's own frames would have fitted."""
    code = """if True:
        import psutil, numpy
        from pixel_ddpg.runtime import machine
        from pixel_ddpg.agent.replay import Replay
        machine.prepare_cpu(1)
        before = psutil.Process().memory_info().rss
        replay = Replay((3, 84, 84), 6, 100_000)
        replay.begin(numpy.zeros((3, 84, 84), numpy.uint8))
        print(psutil.Process().memory_info().rss - before)"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(result.stdout) < 2**26, result.stderr  # of 2 GB
