"""The environments that training plays in: one in this process, or several that each have their own.

A call of an environment is begun (`begin_reset`, `begin_step`) and its step taken later (`take`), so that several
environments, or an environment and the learner, work at the same time.
"""

import contextlib
import itertools
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from pixel_ddpg.config import Config
from pixel_ddpg.envs import rendering, tasks
from pixel_ddpg.envs.environment import Environment, Step, observation_dtype, observation_shape
from pixel_ddpg.errors import UserError, on_stop

REMOTE_BYTES = 2**28  # of memory that an environment's process takes
PATIENCE = 60  # seconds: an environment that takes longer for a step or a reset has hung
LONG_PATIENCE = 600  # the same of one that is started, or plays a saved episode again


@contextlib.contextmanager
def sigint_ignored_by_children() -> Iterator[None]:
    """Processes that are started in here ignore Ctrl-C; what this one was sent meanwhile is delivered at the end."""
    heard: list[int] = []
    try:
        with on_stop(lambda number, frame: heard.append(number)):
            resource_tracker.ensure_running()  # which would undo the mask
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        for each in heard:
            signal.raise_signal(each)


class Local:
    """An environment of this process, whose calls are made when their steps are taken."""

    def __init__(self, config: Config, seed: int):
        self._environment = Environment(tasks.find(config.task), config.obs, config.env, seed)
        self._action: np.ndarray | None = None

    def begin_reset(self) -> None:
        """Ask for a new episode."""
        self._action = None

    def begin_step(self, action: np.ndarray) -> None:
        """Ask for a step."""
        self._action = action

    def take(self) -> Step:
        """The step that was asked for."""
        return self._environment.reset() if self._action is None else self._environment.step(self._action)

    def state_dict(self) -> dict:
        """As Environment.state_dict."""
        return self._environment.state_dict()

    def load_state_dict(self, state: dict) -> Step:
        """As Environment.load_state_dict."""
        return self._environment.load_state_dict(state)

    def close(self) -> None:
        """As Environment.close."""
        self._environment.close()


class Remote:
    """An environment in a process of its own; observations come through memory that both share."""

    def __init__(self, config: Config, seed: int):
        self._shape = observation_shape(tasks.find(config.task), config.obs, config.env)
        self._dtype = np.dtype(observation_dtype(config.obs))
        self._elements = self._shape[0] // config.env.frame_stack
        context = multiprocessing.get_context("spawn")
        self._shared = context.RawArray("B", math.prod(self._shape) * self._dtype.itemsize)
        self._pipe, theirs = context.Pipe()
        self._patience = LONG_PATIENCE
        self._process = context.Process(target=_serve, args=(config, seed, theirs, self._shared), daemon=True)
        with sigint_ignored_by_children():
            self._process.start()
        theirs.close()
        self.close = util.Finalize(self, _end, (self._pipe, self._process), exitpriority=1)

    def begin_reset(self) -> None:
        """Ask for a new episode."""
        self._send("reset")

    def begin_step(self, action: np.ndarray) -> None:
        """Ask for a step."""
        self._send("step", action)

    def take(self) -> Step:
        """The step that was asked for; UserError where it failed or the process is gone."""
        reward, discount, last, frames = self._receive()
        self._patience = PATIENCE
        observation = np.frombuffer(self._shared, self._dtype).reshape(self._shape).copy()
        return Step(observation, observation[-self._elements :], reward, discount, last, frames)

    def state_dict(self) -> dict:
        """As Environment.state_dict."""
        self._send("state_dict")
        return self._receive()

    def load_state_dict(self, state: dict) -> Step:
        """As Environment.load_state_dict."""
        self._patience = LONG_PATIENCE
        self._send("load_state_dict", state)
        return self.take()

    def _send(self, method: str, *arguments: object) -> None:
        try:
            self._pipe.send((method, *arguments))
        except OSError:
            self._ended()

    def _receive(self) -> Any:
        try:
            waits = itertools.repeat(1, self._patience)  # short ones: no time passes where this process is stopped too
            if not any(self._pipe.poll(seconds) for seconds in waits):
                raise UserError(
                    f"an environment, process {self._process.pid}, has not answered for {self._patience} s; the same "
                    "command resumes from the last checkpoint, if there is one",
                    code=1,
                )
            failure, result = self._pipe.recv()
        except (EOFError, OSError):
            self._ended()
        if failure:
            message, code = failure
            raise UserError(message, code=code)
        return result

    def _ended(self) -> None:
        self._process.join(5)
        if self._process.exitcode == -signal.SIGTERM:  # sent to all, before it ignored it
            raise KeyboardInterrupt
        code = self._process.exitcode or 0
        how = f"killed by signal {-code}, out of memory?" if code < 0 else f"exit code {code}"
        raise UserError(
            f"the process of an environment has ended ({how}); the same command resumes from the last checkpoint, if "
            "there is one",
            code=1,
        )


def _end(pipe: Connection, process: BaseProcess) -> None:
    """End a worker, at the latest when Python exits: it ends when its pipe closes, and is killed if it hangs."""
    pipe.close()
    process.join(5)
    process.kill()
    process.join()


def _serve(config: Config, seed: int, pipe: Connection, shared) -> None:
    """The worker process: serve calls from the pipe until it closes."""
    # What `timeout` or a cluster sends is for the one that trains, which still needs this one to save
    os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["LP_NUM_THREADS"] = "1"
    rendering.choose_backend(1)
    environment, failure = None, None
    try:
        environment = Environment(tasks.find(config.task), config.obs, config.env, seed)
    except UserError as error:
        failure = (str(error), error.code)
    while True:
        try:
            method, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        result = None
        if environment:
            try:
                result, failure = getattr(environment, method)(*arguments), None
            except UserError as error:
                failure = (str(error), error.code)
        if isinstance(result, Step):
            np.frombuffer(shared, result.observation.dtype)[:] = result.observation.ravel()
            result = (result.reward, result.discount, result.last, result.frames)
        try:
            pipe.send((failure, result))
        except OSError:
            return
