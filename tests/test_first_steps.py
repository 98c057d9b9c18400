"""A new user's first ten minutes, played from README.md; see `tests.first_steps`."""

import re

import pytest

from tests.first_steps import CHECKOUT, NewUser, command, link_environment, own_term

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
TERM = ["terms/sparse_code", "contribution/sparse_code", "weight/sparse_code"]
MINUTES = 10


def test_the_readme_says_all_that_is_played():
    assert command(README, "scripts/run")[1] == "experiments/vae_mnist.py"
    assert command(README, "scripts/tensorboard") == ["scripts/tensorboard"]
    code, use = own_term(README)
    assert re.match(r"class (\w+)\(vr\.LossTerm\)", code)[1] == use.partition("(")[0]
    with pytest.raises(TypeError):
        command(README.replace("scripts/tensorboard", "tensorboard"), "scripts/tensorboard")


@pytest.mark.slow
def test_from_clone_to_an_own_term_in_tensorboard(dataset, tmp_path):
    flags = [dataset, "--epochs=1", "--batch_size=19", "--hidden_units=8", "--latent_dim=2"]
    flags += ["--importance_samples=2", "--jit=off"]
    user = NewUser(tmp_path, flags, link_environment)
    tags = user.play()
    assert [tag for tag in TERM if tag not in tags] == []
    config = sorted((user.clone / "runs").glob("*/*/config.json"))
    assert len(config) == 2
    assert "SparseCode(weight=0.5)" in config[0].read_text()


@pytest.mark.soak
def test_the_first_ten_minutes_are_ten_minutes(tmp_path):
    """As a new user: pip installs all packages, and both runs train as the README has them."""
    user = NewUser(tmp_path, [])
    assert set(TERM) <= set(user.play())
    assert sum(user.seconds.values()) < 60 * MINUTES, user.seconds
