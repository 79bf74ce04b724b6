"""Other people's code at the same work: it is imported, not copied, and left out where it is not installed."""

import atexit
import importlib
import pathlib
import random
import shutil
import sys
import tempfile
import types
import warnings
from collections.abc import Callable

import gymnasium
import numpy as np

from pixel_ddpg.agent.replay import Replay
from pixel_ddpg.config import Config
from pixel_ddpg.errors import UserError, first_line

Peer = tuple[Callable[[], None], Callable[[], int]]  # one update, and how many it has made by its own count


class _Spaces(gymnasium.Env):
    """What Stable-Baselines3 wants to know of an environment; it is never stepped."""

    def __init__(self, observations: int, actions: int):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observations,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (actions,), np.float32)


def stable_baselines3(settings: Config, replay: Replay) -> Peer | None:
    """Stable-Baselines3's DDPG with these networks, rates and batch, on the same transitions; None without it."""
    try:
        from stable_baselines3 import DDPG
        from stable_baselines3.common.logger import Logger
    except ImportError:
        return None
    observations, actions = replay.elements.shape[1], replay.actions.shape[1]
    model = DDPG(
        "MlpPolicy", _Spaces(observations, actions), learning_rate=settings.agent.critic_lr,
        buffer_size=len(replay), batch_size=settings.replay.batch_size, tau=settings.agent.tau,
        gamma=settings.agent.discount, policy_kwargs={"net_arch": list(settings.agent.hidden)}, device="cpu", seed=0,
    )  # fmt: skip
    model.set_logger(Logger(folder=None, output_formats=[]))
    assert model.replay_buffer is not None  # it is made with the model
    drawn = replay.sample(len(replay))
    fields = (drawn.observation, drawn.next_observation, drawn.action, drawn.reward)
    for number in range(len(replay)):
        here, there, action, reward = (field[number : number + 1].numpy() for field in fields)
        model.replay_buffer.add(here, there, action, reward, np.zeros(1), [{}])
    return lambda: model.train(1, settings.replay.batch_size), lambda: model._n_updates


def import_drqv2(path: str) -> tuple[types.ModuleType, types.ModuleType]:
    """Its modules drqv2 and replay_buffer; UserError where the folder does not have them."""
    folder = pathlib.Path(path)
    sys.path.insert(0, str(folder))
    try:
        theirs, buffers = importlib.import_module("drqv2"), importlib.import_module("replay_buffer")
        for module, name in ((theirs, "DrQV2Agent"), (buffers, "make_replay_loader")):
            if not hasattr(module, name):
                raise ImportError(f"no {name}")
    except Exception as error:  # whatever that code does
        why = first_line(error)
        raise UserError(f"drqv2={path} ({why}): name a checkout of github.com/facebookresearch/drqv2") from None
    finally:
        sys.path.remove(str(folder))
    return theirs, buffers


def drqv2(path: str, settings: Config, replay: Replay) -> Peer:
    """DrQ-v2's agent and replay from a checkout of its repository, on pictures of the same size.

    One thing of it is mended: numpy's integers, with which it seeds its workers, are no seeds since Python 3.11.
    """
    theirs, buffers = import_drqv2(path)
    warnings.filterwarnings("ignore", module="torch.utils.data")  # four workers, and pinned memory, without a GPU
    vars(buffers)["_worker_init_fn"] = _seed_worker
    size, stack, agent = settings.env.size, settings.env.frame_stack, settings.agent
    actions = replay.actions.shape[1]
    episodes = pathlib.Path(tempfile.mkdtemp(prefix="drqv2-"))
    atexit.register(shutil.rmtree, episodes, ignore_errors=True)
    draws, length = np.random.default_rng(0), 500
    for number in range(len(replay) // length):
        rows = length + 1
        buffers.save_episode(
            {
                "observation": draws.integers(0, 256, (rows, 3 * stack, size, size), np.uint8),
                "action": draws.uniform(-1, 1, (rows, actions)).astype(np.float32),
                "reward": draws.random((rows, 1), np.float32), "discount": np.ones((rows, 1), np.float32),
            },
            episodes / f"20200101T000000_{number}_{length}.npz",
        )  # fmt: skip
    loader = buffers.make_replay_loader(
        episodes, 10**6, settings.replay.batch_size, 4, True, settings.replay.n_step, agent.discount
    )
    batches = iter(loader)
    learner = theirs.DrQV2Agent(
        (3 * stack, size, size), (actions,), "cpu", agent.critic_lr, agent.feature_dim, agent.hidden[0], agent.tau,
        2000, 1, "linear(1.0,0.1,100000)", settings.noise.target_clip, False,
    )  # fmt: skip

    def updates() -> int:
        state = learner.critic_opt.state
        return int(next(iter(state.values()))["step"]) if state else 0

    return lambda: learner.update(batches, 0), updates


def _seed_worker(worker: int) -> None:
    random.seed(worker)
    np.random.seed(worker)
