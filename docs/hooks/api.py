"""Pages of the API from docstrings: one for each namespace, with every public name.

The names are those of the package's own table; mkdocstrings reads the sources and imports nothing.
"""

import importlib

from mkdocs.structure.files import File

import vae_research
from vae_research import data, runs

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

# Methods that VAE inherits, and that people call or override; the others are called by Keras.
INHERITED = (
    *("compile", "fit", "evaluate", "train_on_batch", "test_on_batch", "save", "export"),
    *("load_checkpoint", "load_weights", "train_step", "test_step", "step_key", "scaled_loss"),
    *("updates_of_critics", "train_critics", "critic_losses", "update", "finish_step"),
    *("term_weights", "effective_beta", "set_steps_per_epoch", "step", "epoch_clock"),
)


def names_of_pages():
    """Returns the public names of each page, as paths below the package."""
    found = {page: [] for page in PAGES}
    for part in sorted({module.partition(".")[0] for module in vae_research._MODULES}, key=place):
        for module, names in vae_research._MODULES.items():
            if module.partition(".")[0] == part:
                found[page_of(part)] += names
    for part in vae_research._NAMESPACES:
        names = importlib.import_module(f"vae_research.{part}").__all__
        if set(names) - set(vae_research.__all__):  # it has more than the top level
            found[page_of(part)] = [f"{part}.{name}" for name in names]
    for part in (data, runs):
        page = part.__name__.rpartition(".")[2]
        found[page] += [f"{page}.{name}" for name in part.__all__ if name not in found[page]]
    return found


def page_of(part):
    """Returns the page of a part of the package."""
    return next((page for page, (_, parts) in PAGES.items() if part in parts), "functions")


def place(part):
    """Returns where a part stands on its page."""
    parts = PAGES[page_of(part)][1]
    return parts.index(part) if part in parts else len(parts)


def on_files(files, config):
    """Adds the pages."""
    for page, names in names_of_pages().items():
        lines = [f"# {PAGES[page][0]}", ""]
        for name in names:
            lines += [f"::: vae_research.{name}"]
            if name == "VAE":
                lines += ["    options:", f"      inherited_members: [{', '.join(INHERITED)}]"]
            lines += [""]
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
