"""Pages of the API from docstrings: one for each namespace, with every public name.

The names are those of the package's own table; mkdocstrings reads the sources and imports nothing.
"""

from mkdocs.structure.files import File

import vae_research
from vae_research import callbacks, disentanglement, runs

# Page and title, and the modules whose names it has: their first part decides.
PAGES = {
    "model": ("Model", ["model", "objective", "critics", "gradient_estimators", "tensors"]),
    "losses": ("Loss terms and likelihoods", ["losses"]),
    "schedules": ("Schedules and controllers", ["schedules", "controllers"]),
    "bottlenecks": ("Bottlenecks", ["bottlenecks"]),
    "priors": ("Priors", ["priors"]),
    "networks": ("Networks", ["networks"]),
    "distributions": ("Distributions of TensorFlow Probability", ["distributions"]),
    "callbacks": ("Callbacks", ["callbacks"]),
    "data": ("Data", ["data"]),
    "evaluation": ("Evaluation", ["evaluation", "plots"]),
    "disentanglement": ("Metrics of disentanglement", ["disentanglement"]),
    "runs": ("Runs", ["runs"]),
    "keras_losses": ("The KL loss in Keras' own models", ["keras_losses", "keras_inputs"]),
    "functions": ("Functions", []),  # and what has no page of its own
}


def names_of_pages():
    """Returns the public names of each page, as paths below the package."""
    page_of = {part: page for page, (_, parts) in PAGES.items() for part in parts}
    found = {page: [] for page in PAGES}
    for module, names in vae_research._MODULES.items():
        found[page_of.get(module.partition(".")[0], "functions")] += names
    found["callbacks"] = [f"callbacks.{name}" for name in callbacks.__all__]
    found["callbacks"] += ["decoded_plane"] if "decoded_plane" not in callbacks.__all__ else []
    found["disentanglement"] = [f"disentanglement.{name}" for name in disentanglement.__all__]
    found["runs"] += [f"runs.{name}" for name in runs.__all__ if name not in found["runs"]]
    return found


def on_files(files, config):
    """Adds the pages."""
    for page, names in names_of_pages().items():
        lines = [f"# {PAGES[page][0]}", ""]
        for name in names:
            lines += [f"::: vae_research.{name}", ""]
        files.append(File.generated(config, f"api/{page}.md", content="\n".join(lines)))
    return files


def on_page_markdown(text, page, config, files):
    """Adds the names to the page that introduces the API."""
    if page.file.src_uri != "api.md":
        return text
    lines = ["", "| page | names |", "| --- | --- |"]
    for name, members in names_of_pages().items():
        links = [
            f"[`{each.rpartition('.')[2]}`](api/{name}.md#vae_research.{each})" for each in members
        ]
        lines.append(f"| [{PAGES[name][0]}](api/{name}.md) | {', '.join(links)} |")
    return "\n".join([text.rstrip("\n"), *lines, ""])
