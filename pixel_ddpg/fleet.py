"""The environments that training plays in: one in this process, or several that each have their own."""

import contextlib
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

import dm_env
import numpy as np

from pixel_ddpg import rendering, tasks
from pixel_ddpg.config import Config, UserError
from pixel_ddpg.environment import Environment, observation_shape

REMOTE_BYTES = 2**28  # of memory that an environment's process takes
ANSWER_SECONDS = 600  # an environment that says nothing for so long has hung


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started in here never hear Ctrl-C; the one that starts them does when it has done so."""
    heard: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in signals}
    resource_tracker.ensure_running()  # which would undo the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in heard:
            signal.raise_signal(number)


class Local:
    """An environment of this process, whose calls are made when their results are asked for."""

    def __init__(self, config: Config, seed: int):
        self.environment = Environment(tasks.CATALOGUE[config.task], config.obs, config.env, seed)
        self._call: tuple = ()

    def send(self, method: str, *arguments) -> None:
        """Ask for a call of a method of the environment."""
        self._call = (method, *arguments)

    def receive(self):
        """What the call gave."""
        method, *arguments = self._call
        return getattr(self.environment, method)(*arguments)

    @property
    def element(self) -> np.ndarray:
        """The newest step's part of the observation."""
        return self.environment.element

    @property
    def frames(self) -> int:
        """Of the current episode."""
        return self.environment.frames


class Remote:
    """An environment in a process of its own; observations come through memory that both share."""

    def __init__(self, config: Config, seed: int):
        task = tasks.CATALOGUE[config.task]
        self._shape = observation_shape(task, config.obs, config.env)
        self._dtype = np.dtype(np.uint8 if config.obs == "pixels" else np.float32)
        self._elements = self._shape[0] // config.env.frame_stack
        context = multiprocessing.get_context("spawn")
        self._shared = context.RawArray("B", math.prod(self._shape) * self._dtype.itemsize)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(config, seed, theirs, self._shared), daemon=True)
        with deaf_children():
            self._process.start()
        theirs.close()
        self.frames = 0

    def send(self, method: str, *arguments) -> None:
        """Begin a call of a method of the environment."""
        try:
            self._pipe.send((method, *arguments))
        except OSError:
            self._ended()

    def receive(self):
        """What the call gave, when it is done; UserError where it failed or the process is gone."""
        try:
            if not self._pipe.poll(ANSWER_SECONDS):
                raise UserError(f"an environment has not answered for {ANSWER_SECONDS} s; the same command goes on", 1)
            failure, result, self.frames = self._pipe.recv()
        except (EOFError, OSError):
            self._ended()
        if failure:
            raise UserError(*failure)
        if isinstance(result, dm_env.TimeStep):
            whole = np.frombuffer(self._shared, self._dtype).reshape(self._shape).copy()
            self.element = whole[-self._elements :]
            return result._replace(observation=whole)
        return result

    def _ended(self) -> None:
        self._process.join(5)
        if self._process.exitcode == -signal.SIGTERM:  # sent to all, before it had a group of its own
            raise KeyboardInterrupt
        raise UserError(
            f"the process of an environment has ended (exit code {self._process.exitcode}; killed, or out of memory?); "
            "the same command goes on from the last checkpoint",
            1,
        )


def _serve(config: Config, seed: int, pipe: Connection, shared) -> None:
    """The other process: calls come, results go, until nobody asks any more."""
    os.setpgrp()  # what `timeout` sends is for the one that trains, which still needs this one to save
    os.environ["LP_NUM_THREADS"] = "1"
    rendering.choose_backend(1)
    try:
        environment = Environment(tasks.CATALOGUE[config.task], config.obs, config.env, seed)
        broken = None
    except UserError as error:
        environment, broken = None, (str(error), error.code)
    while True:
        try:
            method, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result, failure = None, broken
            if environment:
                result = getattr(environment, method)(*arguments)
        except UserError as error:
            failure = (str(error), error.code)
        if isinstance(result, dm_env.TimeStep):
            observation = result.observation
            np.frombuffer(shared, observation.dtype)[:] = observation.ravel()
            result = result._replace(observation=None)
        try:
            pipe.send((failure, result, environment.frames if environment else 0))
        except OSError:
            return


def seeds_of(seed: int, number: int) -> tuple[int, int]:
    """Of the environment and of the exploration of every player after the first."""
    environment, exploration = np.random.SeedSequence((seed, 0, number)).generate_state(2).tolist()
    return environment, exploration
