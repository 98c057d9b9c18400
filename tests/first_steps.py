"""Plays a new user's first ten minutes, from README.md alone, and prints what each step took.

The second column is the time of processors, which says more on a machine that does other things.

    python -m tests.first_steps                  as a new user: an environment is made by pip
    python -m tests.first_steps --links ...      with the packages of this Python, and no network

Further arguments are flags for both runs, to make them smaller. The commands and the loss term are
taken out of README.md: what it does not say is not done. The steps are those of a person who reads
it from above: clone, run the first experiment, write a term of one's own into a copy of it, run
that, and find the term in TensorBoard.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PATIENCE = 3600.0  # a guard against what hangs


class NewUser:
    """Somebody with a clone of this checkout who has read its README.

    Attributes:
        clone: the folder of the clone; `clone_checkout` makes it.
        seconds: what each step took, by its name.
    """

    def __init__(self, folder: Path, flags: list[str], make_environment: Callable | None = None):
        self.clone, self.flags = folder / "vae_research", flags
        self.make_environment = make_environment
        self.seconds: dict[str, float] = {}

    def play(self):
        """Does all steps; returns the tags that TensorBoard has of the run with the own term."""
        self.timed("clone", self.clone_checkout)
        if self.make_environment is not None:
            self.timed("environment", lambda: self.make_environment(self.clone))
        readme = (self.clone / "README.md").read_text(encoding="utf-8")
        first, watch = command(readme, "scripts/run"), command(readme, "scripts/tensorboard")
        path = next(part for part in first if part.endswith(".py"))
        self.timed("first run, with the installation", lambda: self.run([*first, *self.flags]))
        mine = str(Path(path).with_name("mine.py"))
        self.timed("own term", lambda: self.write_own_term(readme, path, mine))
        own = [mine if part == path else part for part in first]
        self.timed("second run", lambda: self.run([*own, *self.flags]))
        return self.timed("TensorBoard", lambda: self.tags(watch))

    def timed(self, name, step):
        """Does a step, and prints how long it took, by the clock and in seconds of processors."""
        begun, before = time.perf_counter(), os.times()
        done = step()
        self.seconds[name], after = time.perf_counter() - begun, os.times()
        processors = sum(after[:4]) - sum(before[:4])  # of this process and its children
        print(f"{self.seconds[name]:7.1f} s {processors:7.1f} s  {name}", flush=True)
        return done

    def clone_checkout(self):
        """What is committed; of a source distribution, all of it."""
        if (CHECKOUT / ".git").exists():
            clone = ["git", "clone", "--quiet", "--depth=1", f"file://{CHECKOUT}", str(self.clone)]
            subprocess.run(clone, check=True)
        else:
            made = shutil.ignore_patterns("__pycache__", ".venv*", "runs")
            shutil.copytree(CHECKOUT, self.clone, ignore=made)

    def run(self, arguments):
        """Runs a command of the README in the clone."""
        done = subprocess.run(
            arguments,
            cwd=self.clone,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(arguments)}: {done.stdout}{done.stderr}")

    def write_own_term(self, readme, path, mine):
        """Copies an experiment, and writes the class of the README and its use into the copy."""
        code, use = own_term(readme)
        source = (self.clone / path).read_text(encoding="utf-8")
        before, build, after = source.partition("\ndef build(")
        # `terms` is the list that ends with the KL divergence.
        changed, count = re.subn(r"(vr\.KLDivergence\(.*\))\]", rf"\1, {use}]", after)
        if not build or count != 1:
            raise RuntimeError(f"{path} has no build(), or not one list of terms.")
        (self.clone / mine).write_text(f"{before}\n{code}\n\n{build}{changed}", encoding="utf-8")

    def tags(self, arguments):
        """Starts TensorBoard on the newest run, and asks it for its curves until it has some."""
        process = subprocess.Popen(
            [*arguments, "--port=0"],
            cwd=self.clone,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            address = None
            while address is None:
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"{shlex.join(arguments)} ended with {process.wait()}.")
                address = re.search(r"http://\S+:\d+/", line)
            found = {}
            while not found:
                time.sleep(0.2)
                tags = f"{address[0]}data/plugin/scalars/tags"
                # A request that comes while TensorBoard starts may stay without an answer.
                with contextlib.suppress(OSError), urllib.request.urlopen(tags, None, 10) as answer:
                    found = json.load(answer)
            return sorted({tag for tags in found.values() for tag in tags})
        finally:
            process.terminate()  # what a shell starts in the background ignores Ctrl-C
            process.wait(PATIENCE)


def environment():
    """The environment of a user who has done nothing with this package before."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "TF_CPP_MIN_LOG_LEVEL")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def command(readme, program):
    """The first command of the README that starts with a program, without its comment."""
    found = re.search(rf"^{program}\b.*", readme, re.MULTILINE)
    return shlex.split(found[0], comments=True)


def own_term(readme):
    """The class below "Add a loss term", and how the sentence below it adds one to `terms`."""
    section = readme.partition("\n## Add a loss term\n")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    use = re.search(r"Then add `(.+?)` to `terms`", section)[1]
    return code, use


def link_environment(clone):
    """Makes the environment of a clone with links to the packages of this Python.

    scripts/run finds it made and up to date, as `scripts/environment.sh` describes it.
    """
    venv = clone / ".venv"
    make = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(make, check=True, env=environment())
    (packages,) = venv.glob("lib/python*/site-packages")
    places = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    # Lines of a .pth file are folders; the .pth files in those are not read, so that an editable
    # installation of this checkout is not seen.
    (packages / "packages.pth").write_text("\n".join([str(clone), *places]) + "\n")
    settings = [(clone / name).read_text() for name in ("setup.cfg", "pyproject.toml")]
    (venv / "installed_figures").write_text(
        "\n".join(text.rstrip("\n") for text in settings) + "\n"
    )
    python = (venv / "bin" / "python").resolve()
    (venv / "made_for").write_text(f"{clone}\n{python}\n")


def main(arguments):
    """Plays with the flags of the command line; returns an exit code."""
    links = "--links" in arguments
    flags = [each for each in arguments if each != "--links"]
    with tempfile.TemporaryDirectory() as folder:
        user = NewUser(Path(folder).resolve(), flags, link_environment if links else None)
        tags = user.play()
    print(f"{sum(user.seconds.values()):7.1f} s            all of it; TensorBoard has:")
    print("\n".join(f"  {tag}" for tag in tags if "sparse_code" in tag))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
