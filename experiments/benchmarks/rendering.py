"""Pictures: dm_control's own render beside this project's renderer at each quality; and how far they lie apart."""

import numpy as np
import torch

from experiments.benchmarks.timing import alternate, ratios
from pixel_ddpg import presets
from pixel_ddpg.config import Env
from pixel_ddpg.envs import rendering, tasks
from pixel_ddpg.envs.environment import Environment

TASKS = ("cartpole-swingup", "cheetah-run", "reacher-easy", "walker-walk", "humanoid-walk")
SIZES = (64, 84)
PICTURES = 20  # whose mean difference is reported
QUALITIES: dict[str, dict] = {
    **{f"render={name}": quality for name, (_, quality) in presets.RENDER.items()},
    "preset=fast": presets.FAST_PIXELS["env"],
    "default": {},
}
SHADOWS: dict[str, dict] = {  # how far exact could go with a smaller map: all of its triangles, less of its shadows
    f"exact, shadow map of {size}": presets.RENDER["exact"][1] | {"shadow_size": size} for size in (1024, 1)
}


class Scene:
    """A task that is played by random actions, always the same; counts the pictures it gave."""

    def __init__(self, name: str, size: int, quality: dict | None):
        self._task, self._size, self._count = tasks.find(name), size, 0
        fields = {key: value for key, value in (quality or {}).items() if key in ("shadow_size", "slices", "stacks")}
        self._environment = Environment(self._task, "state", Env(action_repeat=2, **fields), seed=0)
        self._environment.reset()
        self._renderer = self._environment.make_renderer(size) if quality is not None else None

    def render(self) -> np.ndarray:
        """uint8 (size, size, 3)."""
        if self._renderer is None:
            physics = self._environment.task_env.physics
            picture = physics.render(self._size, self._size, camera_id=self._task.camera)
        else:
            picture = self._renderer.render().transpose(1, 2, 0)
        self._count += 1
        return picture

    def count(self) -> int:
        """The pictures it gave."""
        return self._count

    def film(self) -> np.ndarray:
        """Some pictures of the same episode, whoever draws it."""
        random = np.random.default_rng(0)
        shape = (self._task.action_dim,)
        self._environment.seed(0)
        self._environment.reset()
        pictures = []
        for _ in range(PICTURES):
            self._environment.step(random.uniform(-1, 1, shape))
            pictures.append(self.render().astype(int))
        return np.stack(pictures)


def measure(name: str, size: int, rounds: int) -> dict:
    """One task and size: seconds a picture of each, times as fast as dm_control's, mean difference of 255."""
    scenes = {"dm_control": Scene(name, size, None)}
    scenes |= {label: Scene(name, size, quality) for label, quality in (QUALITIES | SHADOWS).items()}
    theirs = scenes["dm_control"].film()
    differences = {label: float(np.abs(scene.film() - theirs).mean()) for label, scene in scenes.items()}
    turns = alternate({label: (scene.render, scene.count) for label, scene in scenes.items()}, rounds)
    base = turns["dm_control"].seconds
    return {
        "task": name, "size": size, "threads": torch.get_num_threads(),
        "drawn_by": scenes["default"]._environment.drawn_by(), "backend": rendering.choose_backend(),
        "turns": {label: turn.as_json() for label, turn in turns.items()},
        "times_as_fast": {label: ratios(base, turn.seconds) for label, turn in turns.items() if label != "dm_control"},
        "difference": differences,
    }  # fmt: skip
