"""README.md stays short, and shows experiments, all pages and the parts of the package.

Its code is run by test_docs.py, like that of every page.
"""

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_every_experiment_is_on_its_page_and_the_readme_has_rows_of_it():
    page = (CHECKOUT / "docs/experiments.md").read_text(encoding="utf-8")
    found = {path.name for path in (CHECKOUT / "experiments").glob("[!_]*.py")}
    assert sorted(re.findall(r"^\| `experiments/(\w+\.py)`", page, re.MULTILINE)) == sorted(found)
    rows = re.findall(r"^\| `experiments/.*", README, re.MULTILINE)
    assert rows
    assert set(rows) <= set(page.splitlines())
    assert f"[All {len(found)} experiments](docs/experiments.md)" in README


def test_the_map_shows_every_part_of_the_package():
    drawn = README.partition("## Where things are")[2].partition("```\n")[2].partition("```")[0]
    package = CHECKOUT / "vae_research"
    parts = {path.name for path in package.glob("[!_]*.py")} - {"version.py"}
    parts |= {f"{path.name}/" for path in package.glob("[!_]*/")}
    assert [part for part in sorted(parts) if not re.search(rf"(?<!\S){part}(?!\S)", drawn)] == []


def test_every_page_is_linked():
    for page in (CHECKOUT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in README
