"""Use of the latent space after every epoch, with a diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vae_research.callbacks.inference import Inference
from vae_research.callbacks.tensorboard import event_protos
from vae_research.callbacks.tensorboard.drawing import framed, over_time
from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.evaluation.diagnosis import (
    Diagnosis,
    WarmUp,
    diagnose,
    information_of_densities,
    mutual_information,
    permuted_code_gap,
)
from vae_research.evaluation.estimates import active_units
from vae_research.model import VAE
from vae_research.schedules import Schedule, unsettled, value_at

_KL_FILE = "kl_per_dimension.tsv"
_DIAGNOSIS_FILE = "diagnosis.txt"
_KL_OVER_TIME = "KL divergence of each latent dimension, a column for each epoch."


class Latents(keras.callbacks.Callback):
    """Writes figures, pictures and a diagnosis of the latent space after every epoch.

    Under `validation`, in nats per example:

    - `latent/active_units`: number of dimensions whose posterior mean has a variance above 0.01
      (Burda et al. 2016, arXiv:1509.00519, section 5.2).
    - `latent/kl_total`, if `fit` validates: the mean KL divergence of the validation data; and
      `latent/kl/NAME`, its part of each of several latents.
    - `latent/permuted_code_gap`: log p(x|z) with the example's own code minus that with the code
      of another example.
    - `latent/mutual_information`, for a bottleneck with a density `log_prob`: a lower bound of the
      mutual information between x and all latents, at most log(500) = 6.2; `latent/kl_total` is
      an upper bound.
    - `latent/kl_per_dimension`: a histogram; `latent/kl_over_time`: a picture with dimension 0 on
      top and a column for each epoch. The numbers are in `validation/kl_per_dimension.tsv`.
    - `latent/posterior_mean`, `latent/posterior_std`: histograms over examples and dimensions.
    - `latent/diagnosis`: text; see `vae_research.diagnose`. The last one is also in
      `validation/diagnosis.txt`.

    Args:
        log_dir: the run directory.
        data: `[count, ...]` validation data, or a dictionary of such arrays, of which the first
            500 examples are used; or an `Inference`.

    Attributes:
        diagnoses: diagnoses of the last epoch.
    """

    def __init__(
        self, log_dir: str | Path, data: np.ndarray | Mapping[str, np.ndarray] | Inference
    ) -> None:
        super().__init__()
        self.inference = Inference.wrap(data)
        self.diagnoses: list[Diagnosis] = []
        self._diagnosis_inputs: dict[str, Any] = {}
        self._summaries = Summaries(log_dir)
        self._kl_file = Path(log_dir, "validation", _KL_FILE)
        self._kl_per_dimension: list[np.ndarray] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Reads the KL divergences that an interrupted run has written."""
        self._kl_per_dimension = _read_rows(self._kl_file, self.model.step)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Clears the codes of the previous epoch."""
        self.inference.clear()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Encodes the data; writes figures, pictures and diagnosis."""
        logs, step = logs or {}, self.model.step
        found = self.inference(self.model)
        gap = permuted_code_gap(found["own"], found["permuted"])
        values = {"latent/active_units": active_units(found["code"]).value}
        if "val_elbo" in logs:
            values["latent/kl_total"] = float(logs["val_kl"])
            for latent in latents_in(logs):
                values[f"latent/kl/{latent}"] = float(logs[f"val_kl_{latent}"])
        values["latent/permuted_code_gap"] = gap.value
        self._summaries.scalars("validation", values, step)
        self._write_posterior(found, step)
        if "kl" in found:
            self._write_kl(found["kl"].mean(axis=0), step)
        self._diagnosis_inputs = {
            "variances": found["code"].var(axis=0),
            "labels": self.model.code_layout.labels,
            "permuted_code_gap": gap,
            "has_posterior": self.model.bottleneck.has_prior,
        }
        self._diagnose(self._last_step(epoch, step))
        self._write_diagnosis(step)
        self._summaries.flush("validation")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Diagnoses again in case training has stopped early, and closes the event files."""
        before = self.diagnoses
        if self._diagnosis_inputs and self._diagnose(self.model.step) != before:
            self._write_diagnosis(self.model.step)
        self._summaries.close()

    def _last_step(self, epoch: int, step: int) -> int:
        """Returns the last step of training, or the current one if that is not known."""
        epochs, steps = self.params.get("epochs"), self.params.get("steps")
        return step + (epochs - epoch - 1) * steps if epochs and steps else step

    def _write_posterior(self, found: dict[str, np.ndarray], step: int) -> None:
        name = "latent/posterior_mean"
        self._summaries.histogram("validation", name, found["code"], step)
        if "log_densities" in found:
            densities = found["log_densities"]
            self._write_information(lambda: information_of_densities(densities), step)
        if "z_log_var" not in found:
            return
        with np.errstate(over="ignore"):  # in a diverged model; the histogram drops infinities
            deviations = np.exp(0.5 * found["z_log_var"])
        self._summaries.histogram("validation", "latent/posterior_std", deviations, step)
        posterior = found["z"], found["code"], found["z_log_var"]
        self._write_information(lambda: mutual_information(*posterior), step)

    def _write_information(self, information: Callable[[], float], step: int) -> None:
        tag = "latent/mutual_information"
        self._summaries.add("validation", lambda: event_protos.scalars({tag: information()}), step)

    def _write_kl(self, kl: np.ndarray, step: int) -> None:
        self._kl_per_dimension.append(kl)
        history = np.stack(self._kl_per_dimension)
        self._summaries.histogram("validation", "latent/kl_per_dimension", kl, step)
        tag = "latent/kl_over_time"
        self._summaries.add(
            "validation",
            lambda: event_protos.image(tag, kl_over_time(history), _KL_OVER_TIME),
            step,
        )
        line = "\t".join([str(step), *(f"{value:.6g}" for value in kl)])
        self._summaries.file(f"validation/{_KL_FILE}", f"{line}\n", append=True)

    def _diagnose(self, last_step: int) -> list[Diagnosis]:
        unfinished = unfinished_warm_ups(self.model, last_step)
        self.diagnoses = diagnose(**self._diagnosis_inputs, unfinished=unfinished)
        return self.diagnoses

    def _write_diagnosis(self, step: int) -> None:
        content = "".join(f"{diagnosis}\n" for diagnosis in self.diagnoses)
        self._summaries.file(f"validation/{_DIAGNOSIS_FILE}", content)
        lines = [f"- **{diagnosis.name}**: {diagnosis.reason}" for diagnosis in self.diagnoses]
        self._summaries.text("validation", "latent/diagnosis", "\n".join(lines), step)


def kl_over_time(values: np.ndarray) -> np.ndarray:
    """Returns a picture of the KL divergence of each dimension, `[epochs, latent]`, nats."""
    epochs, count = values.shape
    return framed(
        over_time(values),
        float(values.max(initial=0.0, where=np.isfinite(values))),
        "nats",
        left=("dimension 0", str(count - 1)),
        below=("epoch 1", str(epochs) if epochs > 1 else ""),
    )


def latents_in(logs: Mapping[str, Any]) -> list[str]:
    """Returns the names of the latents whose own divergences are among the logs of an epoch."""
    start = "val_kl_"
    return [name.removeprefix(start) for name in logs if name.startswith(start)]


def unfinished_warm_ups(model: VAE, last_step: int) -> list[WarmUp]:
    """Returns the warm-ups that would continue after the last step of training."""
    found = []
    for term in model.objective.terms:
        schedule = term.weight
        if not isinstance(schedule, Schedule):
            continue
        ends_at = schedule.settled_at()
        if ends_at is not None and unsettled(schedule, last_step):
            reached, peak = (float(value_at(schedule, at)) for at in (last_step, ends_at))
            if reached < peak:
                found.append(WarmUp(term.label, ends_at, last_step, reached, peak))
    return found


def _read_rows(file: Path, step: int) -> list[np.ndarray]:
    """Returns the rows that an earlier process wrote up to a step; none if one is incomplete."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [np.array(line.split("\t"), np.float64) for line in lines]
    except (OSError, ValueError):
        return []
    by_step = {int(row[0]): row[1:] for row in rows if row[0] <= step}
    return list(by_step.values()) if len({len(row) for row in by_step.values()}) == 1 else []
