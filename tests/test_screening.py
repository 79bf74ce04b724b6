"""The commands that look into what is learned and why not: undirected, latents, tandem, probe."""

import json

import numpy as np
import pytest
import torch
from small import call

from experiments import latents, probe, undirected


def test_undirected_exploration_has_the_noise_of_its_words(tmp_path):
    """Tries that all explore alike, or from other starts."""
    out = tmp_path / "undirected.json"
    tries = ["noise.random_frames=9", "noise.random_frames=9 noise.hold=2", "noise.random_frames=0 noise.start=0"]
    words = ("tasks=[reacher-easy]", "episodes=2", f"tries={json.dumps(tries)}", f"out={out}")
    assert call("experiments.undirected", *words)[0] == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["words"] for row in rows] == tries
    options = undirected.Undirected(episodes=2)
    for row in rows:
        assert undirected.returns("reacher-easy", row["words"], options) == row["returns"]
    assert len({tuple(row["returns"]) for row in rows}) > 1


def test_latents_that_hold_the_state_explain_it_and_noise_does_not():
    """Shares that are not of the held-out episodes, or of latents in another order."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(2000, 3, generator=draw)
    held_out = torch.arange(2000) >= 1500
    latent = torch.tanh(states @ torch.randn(3, 10, generator=draw))
    assert min(latents.explained(latent, states, held_out, 0)) > 0.95
    assert max(latents.explained(torch.randn(2000, 10, generator=draw), states, held_out, 0)) < 0.05
    constant = torch.cat([states, torch.ones(2000, 1)], 1)
    assert len(latents.explained(latent, constant, held_out, 0)) == 3


def test_latents_of_a_run_are_told_beside_a_new_agents(tmp_path, monkeypatch):
    """A run whose frame, latents or task is another's; what it cannot use is refused in one line."""
    small = ("task=cartpole-swingup", "frames=40", "wandb=off", "threads=1", "eval.episodes=1", "eval.video_size=0")
    small += ("env.size=16", "agent.random_shift=1", "agent.hidden=[8]")
    for obs in ("state", "pixels"):
        words = [*small, f"obs={obs}", f"run_dir={tmp_path / obs}"]
        assert call("pixel_ddpg.run", *words)[0] == 0
    out, state, pixels = tmp_path / "latents.json", tmp_path / "state", tmp_path / "pixels"
    words = (f"behaviour={state}", f"runs=[{pixels}]", "episodes=4", f"out={out}")
    monkeypatch.setattr(latents, "UPDATES", 5)
    assert call("experiments.latents", *words)[0] == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["run"], row["frame"], len(row["explained"])) == (str(pixels), 40, 5)
    for wrong in ((f"behaviour={pixels}", f"runs=[{pixels}]"), (f"behaviour={state}", f"runs=[{state}]"), ()):
        code, _, error = call("experiments.latents", *wrong)
        assert code == 2
        assert error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize("words", ["obs=state agent.hidden=[8]", "obs=pixels agent.hidden=[8]"])
def test_tandem_agents_learn_from_anothers_steps(words, tmp_path):
    """An agent that gets no steps of its kind, or rows without what an update tells."""
    out = tmp_path / "tandem.json"
    options = ("task=cartpole-swingup", "frames=1000", "updates=2", "every=1", "episodes=1", f"out={out}")
    assert call("experiments.tandem", *options, f'tries=["{words}"]')[0] == 0
    (result,) = json.loads(out.read_text())["tries"]
    assert [row["update"] for row in result["rows"]] == [1, 2]
    assert all(np.isfinite(row["td_error"]) and len(row["returns"]) == 1 for row in result["rows"])


def test_the_probe_measures_every_encoder(tmp_path):
    """An encoder that is fed another one's pictures."""
    out = tmp_path / "probe.json"
    words = ("tasks=[reacher-easy]", "episodes=4", "updates=2", "batch_size=4", f"out={out}")
    assert call("experiments.probe", *words)[0] == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["encoder"] for row in rows] == list(probe.ENCODERS)
    assert [row["features"] for row in rows] == [2048, 2048, 3872, 3872]
