"""The planners' model against the environment itself, their optimum where it is known, and what planning is worth."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.linalg import solve_discrete_are
from small import call, command, work

from pixel_ddpg import baseline, config, files, play
from pixel_ddpg.envs import rendering, tasks
from pixel_ddpg.envs.environment import Environment
from pixel_ddpg.envs.episodes import run_episode
from pixel_ddpg.errors import UserError
from pixel_ddpg.planning import baselines

rendering.choose_backend()
import mujoco  # noqa: E402

from pixel_ddpg.planning.planner import ILQG, SEARCHES, Model  # noqa: E402

BASELINE = "pixel_ddpg.baseline"


def make(name: str, repeat: int, seed: int = 3) -> Environment:
    environment = Environment(tasks.find(name), "state", config.Env(action_repeat=repeat), seed)
    environment.reset()
    return environment


@pytest.mark.parametrize("name, repeat", [("pendulum", 2), ("cheetah-run", 4), ("hopper", 3), ("gripper", 1)])
def test_returns_of_plans_are_those_of_the_environment(name, repeat):
    """A model with other physics, a reward of another state, or one that still earns after a fall."""
    environment, steps = make(name, repeat), 30
    plans = np.random.default_rng(0).uniform(-1, 1, (3, steps, environment.task.action_dim))
    model = Model(environment)
    got = model.returns(model.roll(np.tile(model.state_of(model.physics), (3, 1)), plans), plans)
    for plan, value in zip(plans, got):
        environment, expected = make(name, repeat), 0.0
        for action in plan:
            for _ in range(repeat):
                time_step = environment.task_env.step(environment.to_task(action))
                if time_step.last():
                    break
            expected += repeat * time_step.reward
            if time_step.last():
                break
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("planner", list(baselines.SETTINGS))
def test_planning_leaves_the_environment_as_it_is(planner):
    """A planner that moves the simulation it plans for."""
    environment = make("cheetah", 4)
    policy = baselines.make_policy(environment, planner, 0, baselines.planner_settings(planner, "cheetah"))
    physics = environment.task_env.physics
    before = [physics.data.qpos.copy(), physics.data.qvel.copy(), physics.data.time, physics.data.ctrl.copy()]
    action = policy(None)
    after = [physics.data.qpos, physics.data.qvel, physics.data.time, physics.data.ctrl]
    assert all(np.array_equal(*pair) for pair in zip(before, after))
    assert action.shape == (6,) and np.abs(action).max() <= 1


@pytest.mark.parametrize("name", ["cheetah", "hyq", "quadruped-walk"])
def test_moves_and_differences_are_each_others_inverse(name):
    """A quaternion that is added like a number; an actuator's state that is left out."""
    environment = make(name, 1)
    model = Model(environment)
    state = model.roll(model.state_of(model.physics)[None], np.full((1, 3, environment.task.action_dim), 0.3))[0, -1]
    steps = 0.1 * np.random.default_rng(0).standard_normal((4, model.tangent))
    for step, moved in zip(steps, model.moved(state, steps)):
        assert np.allclose(model.difference(state, moved), step)


@pytest.mark.parametrize("push", [0.2, 1.0, -1.0])
@pytest.mark.parametrize("name", ["cheetah", "reacher3daRandomTarget"])
def test_derivatives_are_mujocos(name, push):
    """Rows and columns mixed up; a step that is too large, or out of the box, where nothing changes.

    MuJoCo's own derivative covers one step of the simulation.
    """
    environment = make(name, 1)
    model = Model(environment)
    state, action = model.state_of(model.physics), np.full(environment.task.action_dim, push)
    by_state, by_action = model.linearised(state[None], action[None])
    expected, pushed = np.eye(model.tangent), np.zeros((model.tangent, len(action)))
    data = mujoco.MjData(model.model)
    mujoco.mj_setState(model.model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    data.ctrl[:] = action
    for _ in range(model.substeps):
        a, b = np.zeros((model.tangent,) * 2), np.zeros((model.tangent, len(action)))
        mujoco.mjd_transitionFD(model.model, data, 1e-6, True, a, b, None, None)
        expected, pushed = a @ expected, a @ pushed + b
        mujoco.mj_step(model.model, data)
    assert np.allclose(by_state[0], expected, atol=1e-3 * np.abs(expected).max())
    assert np.allclose(by_action[0], pushed, atol=1e-3 * np.abs(pushed).max())


def test_quadratics_are_expanded_exactly_and_made_convex():
    """A mixed derivative that is lost; a negative curvature that the backward pass would follow to infinity."""
    random = np.random.default_rng(0)
    root, slope = random.standard_normal((4, 4)), random.standard_normal(4)
    for hessian in (root @ root.T, -np.eye(4)):
        gradient, found = ILQG._differences(
            lambda points, hessian=hessian: [slope @ point + point @ hessian @ point / 2 for point in points], 4, 1e-3
        )
        assert np.allclose(gradient, slope, atol=1e-5)
        assert np.allclose(found, np.where(hessian[0, 0] > 0, hessian, 0), atol=1e-5)


def test_the_box_is_kept_and_its_bound_has_no_feedback():
    """An action that is clipped only after the others were chosen as if it were free."""
    quu, qu, qux = np.array([[2.0, 1], [1, 2]]), np.array([-4.0, 0]), np.ones((2, 3))
    forward, back = ILQG._solved(quu, qu, qux, np.full(2, -1), np.full(2, 1))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), -1).reshape(-1, 2)
    best = grid[(np.einsum("ni,ij,nj->n", grid, quu, grid) / 2 + grid @ qu).argmin()]
    assert np.allclose(forward, best, atol=0.01) and forward[0] == 1
    assert not back[0].any() and back[1].all()


@pytest.mark.parametrize("name", ["lqr-lqr_2_1", "lqr-lqr_6_2"])
def test_on_a_linear_quadratic_task_ilqg_is_optimal(name):
    """A wrong recursion, derivative or sign: more than 1% above the optimum of the Riccati equation.

    15 steps of the planner, and from there the optimal cost. (dm_control's own lqr_solver is no reference: its
    feedback costs more than this one.)
    """
    repeat = 10
    environment = make(name, repeat)
    physics, model = environment.task_env.physics, environment.task_env.physics.model.ptr
    physics.data.qpos[:] *= 0.1  # near enough that the optimum is not held by the box
    physics.forward()
    data, a, b = mujoco.MjData(model), np.zeros((2 * model.nv,) * 2), np.zeros((2 * model.nv, model.nu))
    mujoco.mjd_transitionFD(model, data, 1e-6, True, a, b, None, None)
    whole, pushed = np.eye(2 * model.nv), np.zeros_like(b)
    for _ in range(repeat):
        whole, pushed = a @ whole, a @ pushed + b
    weights = np.diag(np.r_[np.ones(model.nq), np.zeros(model.nv)])
    value = solve_discrete_are(whole, pushed, weights, environment.task_env.task._control_cost_coef * np.eye(model.nu))
    to_go = lambda state: state @ (value - weights) @ state / 2  # noqa: E731  a reward looks at the state after its step
    optimum, cost = to_go(physics.state()), 0.0
    planner = ILQG(environment, 0, horizon=0.3 * 120)
    for _ in range(15):
        action = planner.act()
        assert np.abs(action).max() < 1
        environment.step(action)
        cost += 1 - environment.task_env.task.get_reward(physics)
    assert 0.999 < (cost + to_go(physics.state())) / optimum < 1.01


@pytest.mark.parametrize("action", [1.0, -1.0, 0.3])
def test_the_rewards_derivatives_hold_at_the_bounds(action):
    """An action cost whose slope is halved, and its curvature lost, where the box ends."""
    environment = make("pendulum", 2)
    planner = ILQG(environment, 0, horizon=0.2)
    slope, curve = planner._expanded(planner.model.state_of(planner.physics), np.array([action]))
    assert slope[-1] == pytest.approx(2 * 0.01 * 2 * action, abs=1e-4)  # 2 frames of 0.01 a^2
    assert curve[-1, -1] == pytest.approx(2 * 0.01 * 2, rel=1e-3)


@pytest.mark.parametrize("speed", [3e3, 3e4, 3e5, 1e9])
def test_a_diverging_plan_is_worth_nothing(speed):
    """A simulation that has exploded and still earns: MuJoCo's reset, or the last state before it."""
    environment = make("cheetah-run", 2)
    model = Model(environment)
    state = model.state_of(environment.task_env.physics)
    wild = state.copy()
    wild[model.motion] = speed
    plans = np.zeros((3, 4, 6))
    plans[2, 1, 0] = np.nan
    returns = model.returns(model.roll(np.stack([state, wild, state]), plans), plans)
    assert np.isfinite(returns[0]) and list(returns[1:]) == [-np.inf, -np.inf]


@pytest.mark.parametrize("planner", list(baselines.SETTINGS))
@pytest.mark.parametrize("name", ["pendulum", "fixedReacher"])
def test_planners_beat_random_actions(name, planner):
    """Plans that are not better than noise."""
    returns = {}
    for policy in (planner, "random"):
        environment = make(name, 4, seed=1)
        environment.task_env._step_limit = 150
        settings = baselines.planner_settings(policy, name)
        returns[policy] = run_episode(environment, baselines.make_policy(environment, policy, 1, settings))[0]
    assert returns[planner] > 1.5 * max(returns["random"], 1)


@pytest.mark.parametrize("returns, times", [([0, 0], SEARCHES + 1), ([0, -np.inf], SEARCHES + 1), ([1, 0], 2)])
def test_sampling_searches_until_a_plan_earns_something(returns, times, monkeypatch):
    """One look at a sparse reward; a diverged plan taken for one that earns."""
    environment, calls = make("ball_in_cup-catch", 4), []
    policy = baselines.make_policy(
        environment, "sampling", 0, baselines.planner_settings("sampling", "ball_in_cup-catch")
    )
    model = policy.__self__.model
    monkeypatch.setattr(model, "roll", lambda states, plans: states)
    monkeypatch.setattr(model, "returns", lambda states, plans: calls.append(1) or np.resize(returns, len(plans)))
    policy(None)
    assert len(calls) == times


def test_ilqg_begins_with_the_plan_of_the_step_before(monkeypatch):
    """A plan that is a step late."""
    policy, rolled = ILQG(make("pendulum", 2), 0, horizon=0.4), []
    policy.act()
    expected, roll = np.vstack([policy._plan[1:], policy._plan[-1:]]), policy.model.roll
    monkeypatch.setattr(policy.model, "roll", lambda states, plans: rolled.append(plans) or roll(states, plans))
    policy.act()
    assert np.array_equal(rolled[0][0], expected)


def test_the_gripper_can_lift_its_object():
    """Fingers that cannot hold the ball, or a start from which the planner never grasps it."""
    environment = make("gripper", 4)
    act = baselines.make_policy(environment, "sampling", 0, baselines.planner_settings("sampling", "gripper"))
    for _ in range(20):
        environment.step(act(None))
    assert environment.task_env.physics.named.data.site_xpos["object", "z"] > 0.15


@pytest.mark.long
def test_the_command_writes_what_it_measured_and_continues(tmp_path):
    """A table that cannot say how its numbers were made; an episode run twice."""
    words = ["task=pendulum", "seed=3", f"out={tmp_path}"]
    code, out, _ = command(BASELINE, *words, "episodes=2")
    result = json.loads((tmp_path / "pendulum-random.json").read_text())
    assert code == 0 and out.startswith(f"{tmp_path}/pendulum-random.json: {result['return']:.1f} +- ")
    returns = [episode["return"] for episode in result["episodes"]]
    assert [(episode["seed"], episode["frames"]) for episode in result["episodes"]] == [(3, 1000), (4, 1000)]
    assert result["return"] == pytest.approx(np.mean(returns)) and result["action_repeat"] == 2
    assert baseline.measure("pendulum", "random", 2, {}, 4)["return"] == returns[1]

    code, _, err = command(BASELINE, *words, "episodes=3")
    assert code == 0 and "episodes to run: 1\n" in err
    more = json.loads((tmp_path / "pendulum-random.json").read_text())["episodes"]
    assert more[:2] == result["episodes"] and len(more) == 3

    code, _, err = call(BASELINE, *words, "episodes=3", "overwrite=true")
    assert code == 0 and "to run" not in err  # what fits stays
    code, _, err = call(BASELINE, *words, "action_repeat=4")
    assert code == 2 and "overwrite=true" in err and err.count("\n") == 1
    assert json.loads((tmp_path / "pendulum-random.json").read_text())["episodes"] == more
    (tmp_path / "pendulum-random.json").write_text("{")
    code, _, err = call(BASELINE, *words)
    assert code == 1 and "is no result of" in err and err.count("\n") == 1
    code, _, err = command(BASELINE, *words, "overwrite=true")
    assert code == 0 and baselines.read(tmp_path / "pendulum-random.json")["episodes"][0]["seed"] == 3


@pytest.mark.parametrize(
    "change",
    [{"episodes": [{}]}, {"episodes": [{"seed": 0}]}, {"episodes": 3}, {"episodes": []}, {"sd": None},
     {"return": np.nan}, {"episodes": [{"seed": 0, "return": np.nan, "frames": 1, "minutes": 1.0, "commit": None}]}],
    ids=str,
)  # fmt: skip
def test_a_damaged_result_is_told(change, tmp_path, monkeypatch):
    """A traceback, or a score measured by something that is not a number."""
    episode = {"seed": 0, "return": 1.0, "frames": 1, "minutes": 1.0, "commit": None}
    whole = {"task": "cart", "policy": "ilqg", "action_repeat": 4, "settings": {}, "return": 1.0, "sd": 0.0}
    monkeypatch.setattr(baselines, "MEASURED", tmp_path)
    path = tmp_path / "cart-ilqg.json"
    path.write_text(json.dumps(whole | {"episodes": [episode]}))
    assert baselines.read(path)["return"] == 1 and baselines.better_planner("cart") is None
    path.write_text(json.dumps(whole | {"episodes": [episode]} | change))
    with pytest.raises(UserError, match="is no result of"):
        baselines.better_planner("cart")


def assert_none_left(session: int) -> None:
    for _ in range(300):
        if not subprocess.run(["pgrep", "-s", str(session)], capture_output=True, text=True).stdout:
            return
        time.sleep(0.1)
    raise AssertionError("a process is left")


def test_jobs_that_fail_do_not_stop_the_others():
    """One task's mistake that ends all; a worker that was killed told as a traceback."""
    done = {job[0]: result for job, result in baseline.in_processes(work, [(number,) for number in range(4)])}
    assert isinstance(done.pop(1), UserError) and done == {0: 0, 2: 20, 3: 30}
    with pytest.raises(UserError, match="was killed"):
        list(baseline.in_processes(work, [(number,) for number in (-1, 0)]))


@pytest.mark.parametrize(
    "sent, seconds",
    [(signal.SIGINT, 4), (signal.SIGINT, 1.5), (signal.SIGTERM, 4), (signal.SIGKILL, 4), (signal.SIGKILL, 0.5)],
)
def test_ctrl_c_and_kill_leave_no_process(sent, seconds, tmp_path):
    """Tracebacks of the workers, or workers that plan on, also of a parent that ended before they started."""
    words = [sys.executable, "-m", BASELINE, "task=cheetah", "policy=planner", f"out={tmp_path}"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert "episodes to run" in process.stderr.readline()
    time.sleep(seconds)
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)  # as a terminal does
    else:
        process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    if sent == signal.SIGINT:
        assert (process.returncode, err) == (130, "pixel_ddpg: interrupted\n")
    assert_none_left(process.pid)


def test_two_commands_do_not_write_to_one_folder(tmp_path):
    """Two that overwrite each other's episodes."""
    with files.locked(tmp_path, "out"):
        code, _, err = command(BASELINE, "task=cart", f"out={tmp_path}")
    assert code == 1 and "another process writes" in err and err.count("\n") == 1


def test_a_lock_leaves_no_empty_folder(tmp_path):
    """A folder where a command was refused, and that looks as if a run were there; what was there before stays."""
    for folder, left in ((tmp_path / "runs/seed0", []), (tmp_path, [".lock"])):
        with pytest.raises(UserError), files.locked(folder, "out"):
            raise UserError("no")
        assert [path.name for path in tmp_path.iterdir()] == left
    with files.locked(tmp_path / "runs/seed0", "out"):
        (tmp_path / "runs/seed0/written").touch()
    assert (tmp_path / "runs/seed0/written").exists()


def test_a_lock_is_not_of_a_deleted_file(tmp_path, monkeypatch):
    """Two processes that write to one folder: one locked the file that the one before it was about to delete."""
    lock, deleted = fcntl.flock, []

    def delete_first(file, how):
        if not deleted:
            deleted.append(os.unlink(file.name))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", delete_first)
    refused = pytest.raises(UserError, match="another process")
    with files.locked(tmp_path, "out"), refused, files.locked(tmp_path, "out"):
        pass


def test_a_hard_linked_copy_has_a_lock_of_its_own_once_its_source_is_free(tmp_path):
    """A backup by cp -al of a folder that is being written to: the same command once more, beside the first."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    with files.locked(source, "out"):
        os.link(source / ".lock", copy / ".lock")
        for folder in (source, copy):
            with pytest.raises(UserError, match="another process writes to"), files.locked(folder, "out"):
                pass
        assert (source / ".lock").stat().st_nlink == 2
    with files.locked(source, "out"), files.locked(copy, "out"):
        assert (source / ".lock").stat().st_nlink == 1


@pytest.mark.parametrize(
    "words, part",
    [
        (["task=cart", "policy=planer"], "did you mean planner"), (["task=cart", "episodes=0"], "at least 1"),
        (["task=cart", "seed=-1"], "at least 0"), (["task=cart", "horizon=nan"], "a finite number"),
        (["task=cart", "policy=ilqg", "horizon=1e9"], "at most"),
        (["task=cart", "policy=sampling", "samples=5"], "at least 16"),
        (["task=cart", "samples=50"], "are a planner's"),
        (["task=cart", "policy=ilqg", "samples=50"], "sampling planner's"),
        (["task=torcs", "policy=planner"], "not a MuJoCo task"),
        (["task=cart-pole"], "cartpole"), ([], "name a task= or a tag="), (["tag=table2"], "did you mean table1"),
        (["tag=table1", "task=cart"], "name a task= or a tag="),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(words, part):
    """A traceback, or a table made with another policy."""
    code, _, err = call(BASELINE, *words)
    assert code == 2 and err.startswith("pixel_ddpg: ") and err.count("\n") == 1 and part in err


@pytest.mark.parametrize("name", ["cartpole-swingup", "cheetah-run", "walker-walk"])
def test_a_planner_plays_with_the_action_repeat_that_it_was_measured_with(name):
    """A film of another planner than the score's."""
    environment, _ = play.make_agent(play.Play(task=name, agent="planner"))
    measured = baselines.read(baselines.MEASURED / f"{name}-{baselines.better_planner(name)}.json")
    assert environment.action_repeat == measured["action_repeat"]


@pytest.mark.long
def test_a_planner_plays(tmp_path):
    """`agent=planner` that plays something else."""
    said = [command("pixel_ddpg.play", "task=cart", f"agent={agent}", "seed=1", "size=64", "window=off",
                    f"out={tmp_path}/{agent}.mp4")[1] for agent in ("planner", "random")]  # fmt: skip
    planned, random = (float(line.split("return ")[1].split()[0]) for line in said)
    assert planned > 800 > 1.2 * random and (tmp_path / "planner.mp4").stat().st_size > 1000
    code, _, err = call("pixel_ddpg.play", "task=torcs", "agent=planner", f"out={tmp_path}/a.mp4")
    assert code == 2 and "not a MuJoCo task" in err and err.count("\n") == 1
