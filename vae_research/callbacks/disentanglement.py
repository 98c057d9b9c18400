"""What single codes say about the known factors of the data, during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vae_research.arguments import checked_integer
from vae_research.callbacks.pictures import Pictures, one_hot_columns
from vae_research.callbacks.tensorboard.labelled import heat_table, labelled_rows
from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.evaluation.encoding import encode_data, some_rows
from vae_research.evaluation.factor_scores import FAST, FactorScores, factor_scores
from vae_research.model import VAE

# Rows of the heat map: those codes that say most about some factor.
_ROWS = 40
# With more codes, the only score after an epoch is MIG.
_CODES = 64

HEAT_MAP = (
    "Mutual information between codes (rows) and factors (columns) in nats, of codes in equally "
    "wide bins. H is the entropy of a factor, the most that a code can say about it."
)
TRAVERSALS = (
    "A row for each code, the one with the largest KL divergence on top: it moves from -3 to 3 "
    "standard deviations, or is each of its classes in turn, and the other codes stay those of the "
    "first image. Beside it is the factor with which its mutual information is largest."
)


class Disentanglement(keras.callbacks.Callback):
    """Compares the codes of validation data with the known factors of these data.

    The scores that are fast to compute, MIG, SAP and that of FactorVAE (of more than 64 codes MIG
    alone), are added to the logs of the epoch, as `val_disentanglement/mig` and so on: Keras'
    history, `Scalars` (tag `disentanglement/mig` under `validation`) and `MetricsFile` have them if
    they come later in the list of callbacks.

    Pictures in TensorBoard, under `validation`:

    - `disentanglement/mutual_information`: a heat map, in nats, a row for each code and a column
      for each factor; of more than 40 codes, those that say most about a factor.
    - `disentanglement/traversals`: the traversal of each code beside the factor that it says most
      about, if there is `pictures`.

    An evaluation encodes at most `examples` rows and has no state, so that it can be left out or
    made at other epochs without a change of what is trained.

    Args:
        log_dir: the run directory; None draws no pictures.
        data: what the model reads, arrays `[count, ...]` by name or what is indexed by rows as they
            are, such as `data.validation.tensors_by_block()`; `inputs` among them.
        factors: `[count, factors]` integers, the value of each factor of each row.
        names: of the factors; by default `factor_0`, `factor_1` and so on.
        every_epochs: interval in epochs.
        examples: rows that are compared, at most; of more, a random choice that is always the same.
        pictures: what decodes the traversals, over images of the same data; by default none are
            drawn.

    Attributes:
        scores: what was found last.

    Raises:
        ValueError: `every_epochs` or `examples` is not a positive integer.
    """

    def __init__(
        self,
        log_dir: str | Path | None,
        data: Mapping[str, Any],
        factors: Any,
        names: Sequence[str] | None = None,
        *,
        every_epochs: int = 1,
        examples: int = 10_000,
        pictures: Pictures | None = None,
    ) -> None:
        super().__init__()
        self.data = data
        self.every_epochs = checked_integer("every_epochs", every_epochs, 1)
        self.rows = some_rows(len(factors), checked_integer("examples", examples, 1))
        self.factors = np.asarray(factors[self.rows])
        columns = range(self.factors.shape[1])
        self.names = [f"factor_{at}" for at in columns] if names is None else list(names)
        self.pictures = pictures
        self.scores: FactorScores | None = None
        self._summaries = None if log_dir is None else Summaries(log_dir)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the scores to the logs and writes the pictures."""
        if (epoch + 1) % self.every_epochs:
            return
        model, step = self.model, self.model.step
        with model.averaging.averages():
            codes = encode_data(model, self.data, rows=self.rows).codes
        few = codes.shape[1] <= _CODES
        self.scores = found = factor_scores(
            codes,
            self.factors,
            model.code_layout.full_labels,
            self.names,
            metrics=FAST if few else {"mig": FAST["mig"]},
            repeats=1,
        )
        if logs is not None:
            logs |= {
                f"val_disentanglement/{name}": each.value for name, each in found.figures.items()
            }
        if self._summaries is None:
            return
        name = "disentanglement/mutual_information"
        self._summaries.image("validation", name, heat_map(found), step, HEAT_MAP)
        if self.pictures is not None:
            picture = factor_traversals(model, self.pictures, found)
            name = "disentanglement/traversals"
            self._summaries.image("validation", name, picture, step, TRAVERSALS)
        self._summaries.flush("validation")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event files."""
        if self._summaries is not None:
            self._summaries.close()


def heat_map(scores: FactorScores) -> np.ndarray:
    """Returns a picture of the mutual information of codes and factors, with names and a scale."""
    codes = scores.most_informative(_ROWS)
    labels = [scores.codes[code] for code in codes]
    return heat_table(scores.information[codes], labels, scores.heads, "nats")


def factor_traversals(model: VAE, pictures: Pictures, scores: FactorScores) -> np.ndarray:
    """Returns a picture: the traversal of each code beside the factor that it says most about."""
    rows, labels = traversals_and_labels(model, pictures, scores)
    return labelled_rows(rows, labels)


def traversals_and_labels(
    model: VAE, pictures: Pictures, scores: FactorScores
) -> tuple[list[np.ndarray], list[str]]:
    """Returns the images of each traversal, `[steps, height, width, channels]`, and its label."""
    images = pictures.images_of(model)
    rows, columns = [], []
    if "traversals" in images:
        rows += np.split(images["traversals"], len(pictures.traversed))
        columns += [[at] for at in pictures.traversed]
    if "classes" in images:
        variables = one_hot_columns(model)
        count = len(images["classes"]) // max(map(len, variables))
        rows += np.split(images["classes"], count)
        columns += [list(each) for each in variables[:count]]
    return rows, [scores.label(each) for each in columns]
