"""Estimated against observed returns."""

import numpy as np
import pytest
import torch
from small import STATE, rows, train

from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.config import Agent, Noise
from pixel_ddpg.envs.environment import Step
from pixel_ddpg.envs.episodes import run_episodes
from pixel_ddpg.training import build
from pixel_ddpg.training.values import POINTS, TAIL, Values, observed_returns


def naive(rewards: list[float], discount: float) -> list[float]:
    """The sums written out."""
    return [sum(discount**k * reward for k, reward in enumerate(rewards[i:])) for i in range(len(rewards))]


def test_returns_of_an_episode_that_terminates_are_all_known():
    rewards = np.random.default_rng(0).normal(size=30).tolist()
    assert observed_returns(rewards, 0.9, True) == pytest.approx(naive(rewards, 0.9))


def test_a_truncated_return_counts_where_little_is_missing():
    rewards = [1.0] * 100
    kept = observed_returns(rewards, 0.95, False)
    missing = [0.95 ** (100 - i) for i in range(100)]
    assert len(kept) == sum(share <= TAIL for share in missing) == 100 - 44
    assert kept == pytest.approx(naive(rewards, 0.95)[: len(kept)])
    assert observed_returns(rewards, 1.0, False) == []


def test_pairs_belong_to_the_same_step():
    agent = DDPG((3,), 1, Agent(hidden=[8], discount=0.5), Noise())
    observations = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
    recorded = Values(agent, agent.act)
    for episode in observations:
        recorded.watch(Step(episode[0], episode[0], 0.0, 1.0, False, 0))
        for i in range(8):
            recorded.act(episode[i])
            recorded.watch(Step(episode[i + 1], episode[i + 1], float(i), float(i < 7), i == 7, i + 1))
    expected = [agent.value(o, agent.act(o)) for episode in observations for o in episode[:8]]
    assert recorded.q == expected
    assert recorded.observed == pytest.approx(2 * naive([float(i) for i in range(8)], 0.5))


def test_value_is_the_smallest_critic():
    agent = DDPG((3,), 2, Agent(hidden=[8], critics=2), Noise())
    observation, action = np.ones(3, np.float32), np.zeros(2, np.float32)
    both = agent.critic(torch.ones(1, 3), torch.zeros(1, 2))
    assert both.numel() == 2
    assert agent.value(observation, action) == both.min().item()


def test_no_more_than_so_many_points():
    recorded = Values(DDPG((3,), 1, Agent(hidden=[8]), Noise()), None)
    recorded.q = [1.234567 * i for i in range(10 * POINTS)]
    recorded.observed = [-each for each in recorded.q]
    row = recorded.pairs()
    assert len(row["q"]) == POINTS and row["observed"] == [-each for each in row["q"]]
    assert np.diff(row["q"]) == pytest.approx(np.mean(np.diff(row["q"])), rel=0.2)
    assert row["q"][-1] == pytest.approx(recorded.q[-1], rel=1e-4) and row["q"][0] == 0


def test_a_run_ends_with_them(tmp_path):
    """Once, at the last evaluation; its returns are what they would be without."""
    run = train([*STATE, "eval.episodes=2"], tmp_path)
    last = rows(tmp_path)[-1]
    assert [row["kind"] for row in rows(tmp_path)].count("values") == 1 and last["kind"] == "values"
    assert last["frame"] == run.frame and 0 < len(last["q"]) == len(last["observed"])
    run.evaluation.seed(build.evaluation_seed(0, run.frame))
    assert rows(tmp_path)[-2]["returns"] == run_episodes(run.evaluation, run.agent.act, 2)[0]
