"""The latents of a model: their names and shapes, and all of them side by side as columns."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

Codes: TypeAlias = "tf.Tensor | Mapping[str, tf.Tensor]"
"""A tensor, the code of the only latent, or tensors by name, among them those of all latents."""


@dataclasses.dataclass(frozen=True)
class CodeLayout:
    """Names and shapes of the latents of a model, in their order.

    Whatever looks at single numbers of codes flattens them here, into `[rows, size]`. A divergence
    has a shape of its own, and its values do not belong to these columns.

    Attributes:
        shapes: the shape of a code without its rows, by latent.

    >>> CodeLayout({"z": (3,)}).labels
    ['0', '1', '2']
    >>> CodeLayout({"z_1": (1, 2), "z_2": (1,)}).labels
    ['z_1[0,0]', 'z_1[0,1]', 'z_2[0]']
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, bottleneck: Any) -> CodeLayout:
        """Returns the layout that a bottleneck declares in `latents`.

        Raises:
            ValueError: a latent has no name or no shape that a tensor could have.
        """
        latents = getattr(bottleneck, "latents", None)
        if not isinstance(latents, Mapping) or not latents:
            raise ValueError(_declared(bottleneck, latents))
        for name, shape in latents.items():
            sizes = shape if isinstance(shape, (tuple, list)) else ()
            if not isinstance(name, str) or not name.isidentifier() or not sizes:
                raise ValueError(_declared(bottleneck, latents))
            if any(
                isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes
            ):
                raise ValueError(_declared(bottleneck, latents))
        return cls({name: tuple(shape) for name, shape in latents.items()})

    @property
    def only(self) -> str | None:
        """The name of the latent if there is a single one, otherwise None."""
        return next(iter(self.shapes)) if len(self.shapes) == 1 else None

    @property
    def size(self) -> int:
        """The number of columns."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def labels(self) -> list[str]:
        """The name of each column: the latent, unless it is the only one, and the indices in it."""
        found = []
        for name, shape in self.shapes.items():
            for index in itertools.product(*map(range, shape)):
                indices = ",".join(map(str, index))
                if self.only is None:
                    found.append(f"{name}[{indices}]")
                else:
                    found.append(indices if len(shape) == 1 else f"[{indices}]")
        return found

    @property
    def full_labels(self) -> list[str]:
        """The name of each column, always with that of its latent.

        >>> CodeLayout({"z": (2,)}).full_labels, CodeLayout({"z": (1, 2)}).full_labels
        (['z[0]', 'z[1]'], ['z[0,0]', 'z[0,1]'])
        """
        if self.only is None:
            return self.labels
        return [f"{self.only}[{label.strip('[]')}]" for label in self.labels]

    def named(self, giver: str, codes: Codes) -> dict[str, tf.Tensor]:
        """Returns codes as tensors by name; there may be tensors beside those of the latents.

        Args:
            giver: whose codes they are, for a message.
            codes: a tensor, if there is a single latent, or tensors by name.

        Raises:
            ValueError: a latent is missing.
        """
        if not isinstance(codes, Mapping):
            if self.only is None:
                raise ValueError(
                    f"{giver} gives one tensor of codes; the latents are {', '.join(self.shapes)}. "
                    "A dictionary with a tensor for each of them is needed."
                )
            codes = {self.only: codes}
        missing = [name for name in self.shapes if name not in codes]
        if missing:
            raise ValueError(
                f"{giver} gives {', '.join(sorted(codes)) or 'no tensor'}; the latents are "
                f"{', '.join(self.shapes)}, and {', '.join(missing)} is missing."
            )
        return {name: tf.convert_to_tensor(value) for name, value in codes.items()}

    def checked(self, giver: str, codes: Codes) -> dict[str, tf.Tensor]:
        """Returns `named(...)`, of which every latent has its shape.

        Raises:
            ValueError: a latent is missing or has another shape.
        """
        found = self.named(giver, codes)
        for name, shape in self.shapes.items():
            if not found[name].shape[1:].is_compatible_with(shape):
                raise ValueError(
                    f"{giver} gives {name!r} with the shape {found[name].shape}; a code has the "
                    f"shape {shape} for each row. A bottleneck declares other shapes as "
                    f"latents = {{{name!r}: {tuple(found[name].shape[1:])}}}."
                )
        return found

    def has_shapes(self, values: Mapping[str, tf.Tensor]) -> bool:
        """Returns whether there is a value for every number of a code, and for no others."""
        return values.keys() == self.shapes.keys() and all(
            values[name].shape[1:].as_list() == list(shape) for name, shape in self.shapes.items()
        )

    def given(self, tensors: Mapping[str, tf.Tensor]) -> Any:
        """Returns the code of the only latent as a tensor, or those of several by name."""
        if self.only is not None:
            return tensors[self.only]
        return {name: tensors[name] for name in self.shapes}

    def flatten(self, codes: Codes) -> tf.Tensor:
        """Returns codes as columns, `[rows, size]`; see `labels`."""
        found = self.named("flatten", codes)
        return columns([found[name] for name in self.shapes])

    def unflatten(self, flat: tf.Tensor) -> Any:
        """Returns the codes whose columns are given, as `given` does; undoes `flatten`."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = [flat] if len(sizes) == 1 else tf.split(flat, sizes, axis=1)
        return self.given(
            {
                name: part if len(shape) == 1 else tf.reshape(part, [-1, *shape])
                for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
            }
        )


def columns(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns all values of each row side by side, `[rows, values]`, of tensors of any shape."""
    flat = [
        each if each.shape.rank == 2 else tf.reshape(each, [tf.shape(each)[0], -1])
        for each in values
    ]
    return flat[0] if len(flat) == 1 else tf.concat(flat, axis=1)


def _declared(bottleneck: Any, latents: Any) -> str:
    return (
        f"{type(bottleneck).__name__} declares latents = {latents!r}. Names with the shape of a "
        'code are needed: {"z": (20,)}, or {"z_1": (7, 7, 16), "z_2": (8,)}.'
    )
