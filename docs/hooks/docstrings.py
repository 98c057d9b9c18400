"""Examples in docstrings become blocks of code, which Markdown would take for quotations."""

import re

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.M)


class Examples(griffe.Extension):
    """Puts a fence around each example; a blank line ends it, as in a doctest."""

    def on_object(self, *, obj, **arguments):
        """Changes the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value)


def fenced(found):
    """Returns an example between fences of its own indentation."""
    indent = found[1]
    return f"{indent}```pycon\n{found[0]}\n{indent}```"
