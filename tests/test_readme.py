"""What the README shows is run as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_python_examples_run_in_their_order(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 5
    # The README trains on all of MNIST and reads a run of the experiment's command. Here both are
    # short: the run has one epoch, and everything else is as it stands.
    command = [sys.executable, str(CHECKOUT / "experiments/vae_mnist.py"), "--run_dir=runs/first"]
    short = ["--epochs=1", "--importance_samples=1", "--hidden_units=16"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([*command, *short], cwd=tmp_path, env=environment, check=True, timeout=600)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Estimate(value=-1" in done.stdout  # the ELBO of the first example
    assert "'kl', 'log_posterior', 'log_prior', 'logits'" in done.stdout


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+/[\w.-]+\.(?:py|txt))`", README))))
def test_files_that_are_named_exist(path):
    assert (CHECKOUT / path).is_file()


def test_public_names_that_are_named_exist():
    import vae_research as vr

    used = set(re.findall(r"\bvr\.(\w+)", README))
    assert used <= set(vr.__all__)
    assert len(used) > 10


def test_tests_that_are_named_exist():
    table = README.partition("## What happens when ...")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ") and "---" not in row][1:]
    assert len(rows) > 10
    for row in rows:
        held_by = row.split("|")[-2]
        assert "`tests/" in held_by, row
        for part in re.split(r"(?=`tests/)", held_by)[1:]:
            file, *names = re.findall(r"`([^`]+)`", part)
            source = (CHECKOUT / file).read_text(encoding="utf-8")
            assert [name for name in names if f"def {name}(" not in source] == []
