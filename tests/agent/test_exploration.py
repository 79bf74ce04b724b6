"""The exploration noise: its statistics, its schedule in frames, its memory."""

import json

import numpy as np
import pytest

from pixel_ddpg.agent.exploration import Exploration, scheduled_scale
from pixel_ddpg.config import Noise

OU = {"kind": "ou", "theta": 0.15, "sigma": 0.2}
SCHEDULE = {"start": 1.0, "end": 0.1, "frames": 1000}


def perturbations(exploration, steps, frame=0, action_dim=2):
    return np.array([exploration(np.zeros(action_dim), frame) for _ in range(steps)])


# --- Ornstein-Uhlenbeck ---


def test_ou_has_its_stationary_spread_and_memory():
    """White noise, or another pull: a spread of 0.38 and a memory of 0.85 are the paper's process."""
    noise = perturbations(Exploration(Noise(**OU), 20, 0), 6000, action_dim=20)[200:]
    assert noise.std() == pytest.approx(0.2 / (1 - 0.85**2) ** 0.5, rel=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1] == pytest.approx(0.85, abs=0.02)
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.2  # components are independent


def test_ou_starts_over_with_each_episode():
    """Noise carried over an episode's end: after a reset its spread is one step's, 0.2, not 0.38."""
    exploration = Exploration(Noise(**OU), 50, 0)
    perturbations(exploration, 100, action_dim=50)
    exploration.reset()
    assert perturbations(exploration, 1, action_dim=50).std() == pytest.approx(0.2, rel=0.25)
    exploration.reset()
    assert exploration.state_dict()["state"] == [0.0] * 50


def test_ou_without_sigma_is_the_policy():
    """The on-policy rung (sigma = 0) that explores after all."""
    exploration = Exploration(Noise(kind="ou", sigma=0.0), 2, 0)
    action = np.array([0.3, -0.7], np.float32)
    assert np.array_equal(exploration(action, 0), action)


# --- Gaussian ---


@pytest.mark.parametrize("frame, scale", [(0, 1.0), (500, 0.55), (999, 0.1009), (1000, 0.1), (10**7, 0.1)])
def test_8_the_schedule_counts_frames(frame, scale):
    """A schedule that ends early, late, or falls below its end."""
    assert scheduled_scale(Noise(**SCHEDULE), frame) == pytest.approx(scale)


@pytest.mark.parametrize("frame, std", [(0, 0.3), (500, 0.2), (1000, 0.1)])
def test_gaussian_noise_follows_its_schedule(frame, std):
    """Noise of another frame's scale, or with a memory."""
    exploration = Exploration(Noise(kind="gaussian", start=0.3, end=0.1, frames=1000), 10, 0)
    noise = perturbations(exploration, 2000, frame, action_dim=10)
    assert noise.std() == pytest.approx(std, rel=0.03)
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.03


# --- all ---


@pytest.mark.parametrize("kind", ["ou", "gaussian"])
def test_actions_stay_inside_their_range(kind):
    """Noise that leaves [-1, 1], and actions that are not float32 around the policy's."""
    exploration = Exploration(Noise(kind=kind, sigma=1.0, start=2.0), 100, 0)
    actions = np.array([exploration(np.full(100, 0.5, np.float32), 0) for _ in range(200)])
    assert actions.dtype == np.float32
    assert actions.min() == -1 and actions.max() == 1 and actions.mean() > 0


def test_the_policys_action_is_left_as_it_was():
    """Noise added in place."""
    action = np.full(3, 0.5, np.float32)
    Exploration(Noise(), 3, 0)(action, 0)
    assert np.array_equal(action, np.full(3, 0.5, np.float32))


def test_8_random_frames_count_frames():
    """The random phase ends at this frame, not a step later; 0 has none."""
    exploration = Exploration(Noise(random_frames=100), 1, 0)
    assert [exploration.is_random(frame) for frame in (0, 99, 100, 10**6)] == [True, True, False, False]
    assert not Exploration(Noise(random_frames=0), 1, 0).is_random(0)


def test_random_actions_are_uniform():
    """Random actions that avoid the edges or one half."""
    exploration = Exploration(Noise(), 4, 0)
    actions = np.array([exploration.random_action() for _ in range(3000)])
    assert actions.dtype == np.float32 and actions.shape == (3000, 4)
    counts, _ = np.histogram(actions, bins=10, range=(-1, 1))
    assert counts.sum() == 12_000 and abs(counts / 1200 - 1).max() < 0.12


# --- bursts of random actions ---


def runs_of(flags):
    """Lengths of the runs of True."""
    edges = np.diff(np.r_[0, flags.astype(int), 0])
    return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_bursts_take_their_share_and_hold_one_action_for_four_steps(share):
    """Another share, bursts that never end, actions that change within one, or favour a side."""
    exploration = Exploration(Noise(bursts=share, start=0, end=0), 3, 0)
    actions = perturbations(exploration, 60_000, action_dim=3)
    burst = (actions != 0).any(1)
    assert actions.dtype == np.float32 and burst.mean() == pytest.approx(share, rel=0.1)
    lengths = runs_of(burst)
    assert lengths.mean() == pytest.approx(4, rel=0.1) and lengths.std() == pytest.approx(12**0.5, rel=0.15)
    new = burst & np.r_[True, (actions[1:] != actions[:-1]).any(1)]
    assert new.sum() == len(lengths)
    counts, _ = np.histogram(actions[new], bins=10, range=(-1, 1))
    assert abs(counts / counts.mean() - 1).max() < 0.15


def test_between_bursts_there_is_the_policys_action_with_noise():
    """Bursts that replace the noise, or shift it."""
    noise = perturbations(Exploration(Noise(bursts=0.1, start=0.1, end=0.1), 10, 0), 5000, action_dim=10)
    small = noise[np.abs(noise).max(1) < 0.6]
    assert small.std() == pytest.approx(0.1, rel=0.05) and len(small) == pytest.approx(4500, rel=0.1)


def test_no_burst_outlasts_its_episode():
    """A random action at the first step of an episode that was drawn in the one before."""
    exploration = Exploration(Noise(bursts=0.5, start=0, end=0), 2, 0)
    kept = 0
    for _ in range(200):
        while not (before := exploration(np.zeros(2), 0)).any():
            pass
        exploration.reset()
        kept += np.array_equal(exploration(np.zeros(2), 0), before)
    assert kept == 0


def test_without_bursts_no_random_number_is_spent_on_them():
    """Runs of the other presets that change."""
    plain = np.random.default_rng(0)
    noise = perturbations(Exploration(Noise(start=0.1, end=0.1), 2, 0), 50)
    assert np.allclose(noise, np.clip(0.1 * plain.standard_normal((50, 2)), -1, 1).astype(np.float32))


# --- resuming ---


def all_kinds_of_actions(exploration):
    actions = [*(exploration(np.zeros(2), 0) for _ in range(3)), *(exploration.random_action() for _ in range(5))]
    exploration.reset()
    return np.array([*actions, exploration(np.zeros(2), 0), exploration.random_action()])


@pytest.mark.parametrize(
    "noise",
    [Noise(kind="ou"), Noise(kind="gaussian"), Noise(bursts=0.8)],
)
def test_13_a_restored_noise_continues_exactly(noise):
    """A resumed run that explores elsewhere: the process, its random stream or a burst is lost through JSON."""
    exploration, fresh = (Exploration(noise, 2, seed) for seed in (1, 2))
    perturbations(exploration, 60)
    fresh.load_state_dict(json.loads(json.dumps(exploration.state_dict())))
    assert np.array_equal(all_kinds_of_actions(exploration), all_kinds_of_actions(fresh))


def test_13_noise_follows_its_seed_alone():
    """A stream that the global generator moves, or that ignores its seed."""
    one, same, other = (Exploration(Noise(), 2, seed) for seed in (1, 1, 2))
    first = perturbations(one, 5)
    np.random.seed(3)
    assert np.array_equal(first, perturbations(same, 5))
    assert not np.array_equal(first, perturbations(other, 5))
