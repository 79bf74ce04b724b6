"""torcs: Gymnasium's CarRacing-v3 as a stand-in for the paper's racing game; its returns do not compare with theirs."""

import types
import warnings
from typing import Any

import dm_env
import gymnasium
import numpy as np
from dm_env import specs

from pixel_ddpg.envs.video import opencv
from pixel_ddpg.errors import UserError

FRAMES = 1000
AHEAD = (0, 5, 10, 20)  # tiles


class Pictures:
    """The game's own 96x96 view, resized."""

    def __init__(self, racing: "Racing", size: int):
        opencv()  # UserError at once where it is missing
        self._racing, self._size = racing, size

    def render(self) -> np.ndarray:
        """uint8 (3, size, size); ResetNeeded before the first episode."""
        if self._racing._track is None:
            raise gymnasium.error.ResetNeeded("there is no track yet: call reset() before render()")
        cv2, picture = opencv(), self._racing._game.state
        way = cv2.INTER_AREA if self._size < picture.shape[0] else cv2.INTER_NEAREST
        resized = cv2.resize(picture, (self._size, self._size), interpolation=way)
        return np.ascontiguousarray(resized.transpose(2, 0, 1))


class Racing(dm_env.Environment):
    """Drive along a random track: steer, gas, brake, at 50 frames a second.

    r = 1000 / N for each of the N track tiles visited for the first time, - 0.1 a frame; -100 for leaving the
    field, which ends the episode, as a lap of more than 95% of its tiles does: CarRacing-v3's own reward. The state
    is the speed along and across the car, its turning rate, the angle of the front wheels, and where the track is
    now and 5, 10 and 20 tiles ahead: metres along and across the car, sine and cosine of its direction to the
    car's.
    """

    def __init__(self):
        self._game = _make_game()
        self.task = types.SimpleNamespace(random=np.random.RandomState(0))
        self._step_limit = FRAMES
        self._track: int | None = None  # the seed of this episode's, which has had these actions
        self._actions: list[np.ndarray] = []

    def __getstate__(self) -> dict[str, Any]:
        """All but the game, which Box2D cannot copy: `__setstate__` plays the episode again in a new one."""
        return {name: value for name, value in self.__dict__.items() if name != "_game"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._game = _make_game()
        self.__dict__.update(state)
        if self._track is not None:
            self._game.reset(seed=self._track)
            for action in self._actions:
                self._game.step(action)

    def reset(self) -> dm_env.TimeStep:
        """A new track."""
        self._track, self._actions = int(self.task.random.randint(2**31)), []
        self._game.reset(seed=self._track)
        return dm_env.restart(self._observation())

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """One frame."""
        self._actions.append(np.array(action))
        _, reward, terminated, _, _ = self._game.step(self._actions[-1])
        if terminated:
            return dm_env.termination(float(reward), self._observation())
        if len(self._actions) >= self._step_limit:
            return dm_env.truncation(float(reward), self._observation(), 1.0)
        return dm_env.transition(float(reward), self._observation())

    def _observation(self) -> dict[str, np.ndarray]:
        hull, track = self._game.car.hull, np.array(self._game.track)
        forward = np.array(hull.GetWorldVector((0, 1)))
        side = np.array([forward[1], -forward[0]])
        axes = np.stack([forward, side])
        offsets = track[:, 2:] - np.array(hull.position)
        tiles = (np.square(offsets).sum(1).argmin() + np.array(AHEAD)) % len(track)
        turn = track[tiles, 1] - hull.angle
        car = [*axes @ np.array(hull.linearVelocity), hull.angularVelocity, self._game.car.wheels[0].joint.angle]
        places = (offsets[tiles] @ axes.T).ravel()
        return {"car": np.array(car), "track": np.concatenate([places, np.sin(turn), np.cos(turn)])}

    def make_renderer(self, size: int) -> Pictures:
        """Pictures of this game."""
        return Pictures(self, size)

    def action_spec(self) -> specs.BoundedArray:
        """Steering in [-1, 1], gas and brake in [0, 1]."""
        return specs.BoundedArray((3,), np.float32, [-1, 0, 0], [1, 1, 1], name="action")

    def observation_spec(self) -> dict[str, specs.Array]:
        """The state; pixels come from `make_renderer`."""
        return {"car": specs.Array((4,), np.float64), "track": specs.Array((4 * len(AHEAD),), np.float64)}


def _make_game() -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # one of Box2D's crashes Python where warnings are errors
            return gymnasium.make("CarRacing-v3").unwrapped
    except gymnasium.error.DependencyNotInstalled:
        raise UserError("task=torcs needs Box2D: `.venv/bin/python -m pip install box2d pygame`", code=1) from None


TASKS = {"torcs": Racing}
