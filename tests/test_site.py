"""The documentation site: built without network, and looked at in a browser without network.

The browser is that of test_tensorboard.py. Screenshots are kept in test-artefacts/.
"""

import contextlib
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import vae_research as vr
from tests.proofs import SOAK
from tests.test_tensorboard import SCREENSHOTS, browser  # noqa: F401 (a fixture)

CHECKOUT = Path(__file__).resolve().parents[1]
WITH_FORMULAS = {"numbers.html"}
# The pages that are opened every day; `--soak` opens all.
OPENED = ["index.html", "concepts.html", "experiments.html", "numbers.html", "api/losses.html"]

PAGE_OF_EXPERIMENTS = (CHECKOUT / "docs" / "experiments.md").read_text("utf-8")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site. A warning, such as one of a broken link, is an error."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"],
        cwd=CHECKOUT,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """The HTML of every page, by its name."""
    return {str(path.relative_to(site)): path.read_text("utf-8") for path in site.rglob("*.html")}


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_the_api_has_every_public_name(pages):
    found = set()
    for name, text in pages.items():
        if name.startswith("api/"):
            found |= set(re.findall(r'<h2 id="vae_research\.([\w.]+)"', text))
    public = set(vr.__all__) - set(vr._NAMESPACES) - {"__version__"}
    assert public <= found | {name.rpartition(".")[2] for name in found}
    assert {f"disentanglement.{name}" for name in vr.disentanglement.__all__} <= found
    methods = set(re.findall(r'<h3 id="vae_research\.VAE\.(\w+)"', pages["api/model.html"]))
    assert {"forward", "train_step", "finish_step", "fit", "evaluate", "save"} <= methods
    assert 'id="vae_research.data.Split.on_device"' in pages["api/data.html"]


def test_the_gallery_shows_what_each_header_says(pages):
    text = pages["experiments.html"]
    listed = re.findall(r"^\| `experiments/(\w+)\.py`", PAGE_OF_EXPERIMENTS, re.M)
    assert re.findall(r'<h3 id="(\w+)">', text) == listed
    assert len(listed) == text.count("<strong>Expect.</strong>") > 20
    assert '<img alt="vae_mnist" src="images/vae_mnist.png"' in text
    assert "--kl_warmup_steps</code>" in text


def test_the_flags_are_those_of_the_program(pages):
    shown = set(re.findall(r"<td><code>--(\w+)</code></td>", pages["flags.html"]))
    from vae_research.runs.cli.standard_flags import standard_names

    assert shown == standard_names()


def test_markdown_means_the_same_on_both_sides(pages):
    """A list or a table needs an empty line before it here, and none on GitHub."""
    for name, text in pages.items():
        prose = re.sub(r"<pre.*?</pre>", "", text, flags=re.S)
        assert not re.search(r"<p>[^<]*\n(?:- |\| |\d+\. |```)", prose), name
        assert "arithmatex" not in text, name


def test_pages_ask_for_nothing_from_elsewhere(pages):
    """Scripts, styles, fonts and pictures are files of the site; links to elsewhere are links."""
    loaded = re.compile(r'(?:\bsrc|\bsrcset|<link[^>]*\bhref)="((?:https?:)?//[^"]*)"')
    assert {name: found for name, text in pages.items() if (found := loaded.findall(text))} == {}


def test_pages_in_a_browser_without_network(browser, address, pages):  # noqa: F811
    """The browser of these tests finds no host but this one."""
    page = browser.new_page()
    asked, failed, said = [], [], []

    def note_failure(request):
        if request.failure != "net::ERR_ABORTED":  # its page was left
            failed.append(request.url)

    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", note_failure)
    page.on("response", lambda answer: answer.status >= 400 and failed.append(answer.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    with contextlib.closing(page):
        for name in sorted(pages) if SOAK else OPENED:
            page.goto(address + name)
            looks = page.evaluate(LOOKS)
            assert looks["empty_pictures"] == [], name
            assert looks["empty_formulas"] == [], name
            assert looks["formulas"] or name not in WITH_FORMULAS, name
            assert looks["wider_than_the_window"] <= 0, name
            SCREENSHOTS.mkdir(exist_ok=True)
            page.screenshot(path=SCREENSHOTS / f"site_{name.replace('/', '_')}.png")
        page.locator(".md-search__input").fill("GradientEstimator")
        page.locator(".md-search-result__item a").first.wait_for()
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert (failed, said) == ([], [])


# What is looked at on a page. A picture that has no size was not drawn, nor has a formula.
LOOKS = """() => ({
    empty_pictures: [...document.images]
        .filter(each => !(each.complete && each.naturalWidth > 1)).map(each => each.src),
    formulas: document.querySelectorAll("math").length,
    empty_formulas: [...document.querySelectorAll("math")]
        .filter(each => each.getBoundingClientRect().height < 8).map(each => each.textContent),
    wider_than_the_window:
        document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""
