"""What griffe, which reads docstrings and signatures, cannot know of this package."""

import re

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.M)
SETTINGS = "vae_research.settings.Settings"


class Examples(griffe.Extension):
    """Puts a fence around each example, which Markdown would take for quotations.

    A blank line ends an example, as in a doctest.
    """

    def on_object(self, *, obj, **arguments):
        """Changes the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value)


class SettingsAreDataclasses(griffe.Extension):
    """Gives terms, schedules and controllers the decorator that their base applies to them."""

    def on_package(self, *, pkg, **arguments):
        """Changes all classes of the package."""
        base = pkg.modules_collection[SETTINGS]
        dataclass = next(each for each in base.decorators if "dataclasses" in str(each.value))
        for each in classes(pkg):
            if each is not base and SETTINGS in {parent.path for parent in each.mro()}:
                each.decorators.append(dataclass)


def classes(module):
    """Yields the classes of a module and of those below it."""
    for member in module.members.values():
        if member.is_alias:
            continue
        if member.is_module:
            yield from classes(member)
        elif member.is_class:
            yield member


def fenced(found):
    """Returns an example between fences of its own indentation."""
    indent = found[1]
    return f"{indent}```pycon\n{found[0]}\n{indent}```"
