"""Planning with full access to the dynamics: what a perfect model is worth, the 1 of the normalised score.

Both planners are model-predictive control with the true model and state: at each step of the agent they improve the
plan of the step before, and only its first action is taken.
"""

import mujoco
import numpy as np
from mujoco import rollout
from scipy.interpolate import PchipInterpolator

from pixel_ddpg.container import available_threads
from pixel_ddpg.envs.environment import Environment

FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS
SEARCHES = 32  # times that new plans are drawn while none earns anything
LEAST_SPREAD = 0.04  # of new plans around the mean of the best


class Model:
    """A task's dynamics and reward for many plans at once: physics on `threads`, the reward as the task defines it.

    A state is a vector of MuJoCo's full physics; a plan is actions (steps, a) in [-1, 1], one for each agent step.
    """

    def __init__(self, environment: Environment, threads: int = 0):
        self.task, self.repeat = environment.task_env.task, environment.action_repeat
        self.to_task, self.actions = environment.to_task, environment.task.action_dim
        self.physics = environment.task_env.physics.copy(share_model=True)
        self.model, self.data = self.physics.model.ptr, self.physics.data.ptr
        self.step_seconds = environment.step_seconds
        self.substeps = round(self.step_seconds / self.model.opt.timestep)
        self._size = mujoco.mj_stateSize(self.model, FULL)
        threads = threads or available_threads()
        self._pool = rollout.Rollout(nthread=threads)
        self._scratch = [mujoco.MjData(self.model) for _ in range(threads)]
        self.position = slice(1, 1 + self.model.nq)  # the state begins with the time
        self.motion = slice(1 + self.model.nq, 1 + self.model.nq + self.model.nv + self.model.na)
        self.tangent = 2 * self.model.nv + self.model.na

    def state_of(self, physics) -> np.ndarray:
        """Everything that the simulation continues from."""
        state = np.empty(self._size)
        mujoco.mj_getState(self.model, physics.data.ptr, state, FULL)
        return state

    def roll(self, states: np.ndarray, plans: np.ndarray) -> np.ndarray:
        """States (n, steps, s) after each step of plans (n, steps, a) that begin in states (n, s)."""
        control = np.repeat(self.to_task(plans), self.substeps, axis=1)
        all_states, _ = self._pool.rollout(self.model, self._scratch, states, control)
        return all_states[:, self.substeps - 1 :: self.substeps]

    def returns(self, states: np.ndarray, plans: np.ndarray) -> np.ndarray:
        """Sums of rewards (n,) of plans (n, steps, a) and the states (n, steps, s) they lead to.

        A step's reward is the one of its last frame times the action repeat; nothing is earned after a termination.
        A plan that is not finite, or whose simulation diverges, with which its time stops, is worth -inf.
        """
        end = states[:, 0, 0].max() + (plans.shape[1] - 1) * self.step_seconds
        healthy = np.isfinite(plans).all((1, 2)) & (np.abs(states[:, -1, 0] - end) < self.model.opt.timestep / 2)
        returns = np.zeros(len(plans))
        for plan in np.flatnonzero(healthy):
            for place, action in zip(states[plan], plans[plan]):
                returns[plan] += self.reward(place, action)
                if self.task.get_termination(self.physics) == 0.0:
                    break
        return np.where(healthy, returns, -np.inf)

    def reward(self, state: np.ndarray, action: np.ndarray) -> float:
        """What a step earns that ends in this state."""
        mujoco.mj_setState(self.model, self.data, state, FULL)
        self.data.ctrl[:] = self.to_task(action)
        mujoco.mj_step1(self.model, self.data)
        return self.repeat * float(self.task.get_reward(self.physics))

    def moved(self, state: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """The state after each small step (n, tangent): of positions along their tangents, velocities, activations."""
        states, nv = np.tile(state, (len(directions), 1)), self.model.nv
        for place, direction in zip(states, directions):
            mujoco.mj_integratePos(self.model, place[self.position], direction[:nv], 1)
        states[:, self.motion] += directions[:, nv:]
        return states

    def difference(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The step (tangent,) that moves the first state to the second."""
        step = np.empty(self.model.nv)
        mujoco.mj_differentiatePos(self.model, step, 1, first[self.position], second[self.position])
        return np.concatenate([step, second[self.motion] - first[self.motion]])

    def linearised(self, states: np.ndarray, plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of each step's outcome: by the state it begins in (steps, t, t), by its action (steps, t, a).

        One-sided differences over the whole step, of actions towards the middle of the box. `mjd_transitionFD`
        differentiates one step of the simulation, and none of the Runge-Kutta ones that the cart-poles are made with.
        """
        size, (steps, actions) = 1e-6, plan.shape
        moves = np.vstack([np.zeros((actions + 1, self.tangent)), size * np.eye(self.tangent)])
        pushes, inwards = np.zeros((len(moves), actions)), np.where(plan > 0, -1, 1)
        pushes[1 : actions + 1] = size * np.eye(actions)
        starts = np.concatenate([self.moved(state, moves) for state in states])
        pushed = (plan[:, None] + inwards[:, None] * pushes).reshape(-1, 1, actions)
        ends = self.roll(starts, pushed).reshape(steps, len(moves), -1)
        slopes = np.array([[self.difference(end[0], other) for other in end[1:]] for end in ends]) / size
        by_state, by_action = slopes[:, actions:], slopes[:, :actions] * inwards[:, :, None]
        return by_state.swapaxes(1, 2), by_action.swapaxes(1, 2)


class Sampling:
    """The cross-entropy method, warm-started from the shifted elites.

    Plans are the mean plus noise whose knots are joined by splines: of each `knots` equally many, from slow swings to
    ones that differ at each step.
    """

    def __init__(
        self,
        environment: Environment,
        seed: int,
        threads: int = 0,
        *,
        horizon: float,
        knots: tuple[int, ...],
        samples: int,
        iterations: int,
        elites: int,
        spread: float,
    ):
        self.model, self.physics = Model(environment, threads), environment.task_env.physics
        self.samples, self.iterations, self.spread = samples, iterations, spread
        steps = steps_ahead(environment, horizon)
        self.knots = [min(number or steps, steps) for number in knots]
        self._draws = np.random.default_rng(seed)
        self._elites = np.zeros((elites, steps, self.model.actions))

    def act(self, observation: np.ndarray | None = None) -> np.ndarray:
        """The action for the environment's current state; what the agent sees of it is not needed."""
        state = np.tile(self.model.state_of(self.physics), (self.samples, 1))
        elites = np.concatenate([self._elites[:, 1:], self._elites[:, -1:]], axis=1)
        mean, deviation, iterations, searches = elites.mean(0), self.spread, 0, 0
        while iterations < self.iterations:
            drawn = mean + deviation * self._noise(self.samples - len(elites) - 1, mean.shape)
            plans = np.concatenate([elites, mean[None], drawn.clip(-1, 1)])
            returns = self.model.returns(self.model.roll(state, plans), plans)
            found = (returns[returns > -np.inf] != 0).any()
            best = np.argsort(-returns, kind="stable") if found else self._draws.permutation(self.samples)
            elites = plans[best[: len(elites)]]
            searches += 1
            if not found and searches < SEARCHES:
                continue
            iterations += 1
            mean, deviation = elites.mean(0), elites.std(0) + LEAST_SPREAD
        self._elites = elites
        return elites[0, 0]

    def _noise(self, count: int, shape: tuple[int, int]) -> np.ndarray:
        """Standard normal at the knots: (count, *shape)."""
        drawn = []
        for knots, part in zip(self.knots, np.diff(np.linspace(0, count, len(self.knots) + 1).astype(int))):
            values = self._draws.standard_normal((knots, part, shape[1]))
            spline = PchipInterpolator(np.linspace(0, shape[0] - 1, knots), values)
            drawn.append(spline(np.arange(shape[0])).swapaxes(0, 1))
        return np.concatenate(drawn)


class ILQG:
    """Iterative LQG (Tassa et al., 2012): one iteration a step of the agent, warm-started from the shifted plan.

    Local linear dynamics and a local quadratic reward give feedforward and feedback; of several regularisations and
    step sizes, rolled out at once, the plan with the best return is kept, which may be the old one.
    """

    DAMPING = 10.0 ** np.arange(-6, 3, 2)  # added to the second derivative by the action
    SCALES = np.array([1, 0.5, 0.2, 0.05])  # step sizes of the line search
    STEP = 1e-3  # of the reward's finite differences

    def __init__(self, environment: Environment, seed: int, threads: int = 0, *, horizon: float):
        self.model, self.physics = Model(environment, threads), environment.task_env.physics
        shape = steps_ahead(environment, horizon), self.model.actions
        self._plan = np.random.default_rng(seed).uniform(-0.1, 0.1, shape)  # off a symmetric start

    def act(self, observation: np.ndarray | None = None) -> np.ndarray:
        """The action for the environment's current state; what the agent sees of it is not needed."""
        state = self.model.state_of(self.physics)
        plan = np.vstack([self._plan[1:], self._plan[-1:]])
        path = np.vstack([state[None], self.model.roll(state[None], plan[None])[0]])
        slopes = self.model.linearised(path[:-1], plan)
        curves = [self._expanded(place, action) for place, action in zip(path[1:], plan)]
        gains = [self._backward(plan, *slopes, curves, damping) for damping in self.DAMPING]
        plans, paths = self._follow(path, plan, gains)
        self._plan = plans[self.model.returns(paths, plans).argmax()]
        return self._plan[0]

    def _expanded(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cost -r around a state and an action: gradient and (positive semidefinite) Hessian by both."""
        action = action.clip(self.STEP - 1, 1 - self.STEP)  # a step beyond the box would change nothing

        def cost(moves: np.ndarray) -> list[float]:
            states = self.model.moved(state, moves[:, : self.model.tangent])
            return [-self.model.reward(*pair) for pair in zip(states, action + moves[:, self.model.tangent :])]

        return self._differences(cost, self.model.tangent + self.model.actions, self.STEP)

    @staticmethod
    def _differences(function, size: int, step: float) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and Hessian at 0 of a function that takes many points (n, size)."""
        axes, (first, second) = step * np.eye(size), np.triu_indices(size, 1)
        values = function(np.vstack([np.zeros(size), axes, -axes, axes[first] + axes[second]]))
        (middle,), up, down, both = np.split(np.array(values), np.cumsum([1, size, size]))
        hessian = np.diag(up + down - 2 * middle)
        hessian[first, second] = both - up[first] - up[second] + middle
        hessian[second, first] = hessian[first, second]
        curvature, vectors = np.linalg.eigh(hessian / step**2)
        return (up - down) / (2 * step), (vectors * curvature.clip(0)) @ vectors.T

    def _backward(self, plan, by_state, by_action, curves, damping) -> list[tuple[np.ndarray, np.ndarray]]:
        """Feedforward and feedback of each step, from the last to the first: the Riccati recursion."""
        gradient, hessian, gains = np.zeros(self.model.tangent), np.zeros((self.model.tangent,) * 2), []
        size = self.model.tangent
        for action, a, b, (slope, curve) in reversed(list(zip(plan, by_state, by_action, curves))):
            gradient, hessian, mixed = gradient + slope[:size], hessian + curve[:size, :size], curve[size:, :size]
            qx, qu = a.T @ gradient, b.T @ gradient + slope[size:]
            qxx, qux = a.T @ hessian @ a, b.T @ hessian @ a + mixed @ a
            quu = b.T @ hessian @ b + mixed @ b + b.T @ mixed.T + curve[size:, size:]
            added = damping + 1e-9 * quu.trace()  # the second keeps it from being singular where contact is stiff
            forward, back = self._solved(quu + added * np.eye(len(qu)), qu, qux, -1 - action, 1 - action)
            gains.append((forward, back))
            gradient = qx + back.T @ (quu @ forward + qu) + qux.T @ forward
            hessian = qxx + back.T @ quu @ back + back.T @ qux + qux.T @ back
            hessian = (hessian + hessian.T) / 2
        return gains[::-1]

    @staticmethod
    def _solved(quu, qu, qux, low, high) -> tuple[np.ndarray, np.ndarray]:
        """The minimum of the quadratic within the box, by projected Newton steps; no feedback at a bound."""
        value = lambda forward: forward @ (quu @ forward / 2 + qu)  # noqa: E731
        forward, back = -np.linalg.solve(quu, qu), np.zeros_like(qux)
        forward = forward.clip(low, high)
        for _ in range(10):
            slope = quu @ forward + qu
            free = ~((forward <= low) & (slope > 0) | (forward >= high) & (slope < 0))
            if not free.any() or np.abs(slope[free]).max() < 1e-8:
                break
            step = np.zeros_like(qu)
            step[free] = -np.linalg.solve(quu[np.ix_(free, free)], slope[free])
            tried = [(forward + scale * step).clip(low, high) for scale in (1, 0.3, 0.1, 0.01)]
            best = min(tried, key=value)
            if value(best) >= value(forward):
                break
            forward = best
        back[free] = -np.linalg.solve(quu[np.ix_(free, free)], qux[free])
        return forward, back

    def _follow(self, path, plan, gains) -> tuple[np.ndarray, np.ndarray]:
        """The old plan, and a new one for each damping and scale: actions and states."""
        forward = np.array([[step[0] for step in each] for each in gains])
        back = np.array([[step[1] for step in each] for each in gains])
        forward = np.concatenate([np.zeros_like(forward[:1])] + [scale * forward for scale in self.SCALES])
        back = np.concatenate([np.zeros_like(back[:1])] + [back] * len(self.SCALES))
        states, plans, paths = np.tile(path[0], (len(forward), 1)), [], []
        for step, action in enumerate(plan):
            off = np.array([self.model.difference(path[step], state) for state in states])
            actions = action + forward[:, step] + np.einsum("nat,nt->na", back[:, step], off)
            plans.append(actions.clip(-1, 1))
            states = self.model.roll(states, plans[-1][:, None])[:, 0]
            paths.append(states)
        return np.stack(plans, 1), np.stack(paths, 1)


PLANNERS = {"sampling": Sampling, "ilqg": ILQG}


def steps_ahead(environment: Environment, horizon: float) -> int:
    """Agent steps in this many seconds."""
    return max(2, round(horizon / environment.step_seconds))
