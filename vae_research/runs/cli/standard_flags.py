"""The flags of every experiment. Importing this module defines none."""

from __future__ import annotations

from absl import flags

from vae_research.arguments import LARGEST_SEED
from vae_research.runs.cli.definitions import (
    STANDARD,
    define_auto_integer,
    define_boolean,
    define_choice,
    define_devices,
    define_float,
    define_integer,
    define_line,
    define_range,
    define_string,
    defined,
    sections,
)

flags.disclaim_key_flags()

# What a person calls a run; without one of them, a run that is resumed keeps its own.
LABELS = ("name", "note")
LEARNING_RATE_SCHEDULES = ("constant", "cosine", "steps")


def define_standard_flags() -> None:
    """Defines the flags that every experiment has."""
    if STANDARD in defined:
        return
    sections.append("The run")
    define_string(
        "run_dir", None, "directory of the run; default runs/EXPERIMENT/DATE-TIME", may_change=True
    )
    define_line(
        "name",
        None,
        "name of the run in scripts/compare and in TensorBoard's HParams; it stays when the "
        "run is resumed, and with another one a complete run is renamed; default: none",
        may_change=True,
    )
    define_line(
        "note",
        None,
        "a remark, which is shown and kept as --name is; default: none",
        may_change=True,
    )
    define_choice(
        "resume",
        "auto",
        ("auto", "never", "must", "changed", "scratch"),
        "auto: resume an unfinished run in --run_dir, otherwise start a new one; never: fail if "
        "--run_dir holds a run; must: fail if there is nothing to resume; changed: as auto, also "
        "if the experiment or this package has been edited since, the run is then not bit-exact; "
        "scratch: as auto, also if the checkpoints of an unfinished run are gone: it starts again",
        may_change=True,
    )
    define_boolean(
        "dry_run",
        False,
        "check flags, run directory, data, model, its training step, callbacks and disk as a run "
        "does before it trains, say what it would do, and end; nothing is written",
        may_change=True,
    )
    define_integer(
        "seed",
        0,
        "seed of all that is random in a run; the next three flags, of its parts, are the same "
        "unless they are given",
        maximum=LARGEST_SEED,
    )
    for name, what in (
        ("init_seed", "initial weights, and of Keras layers that draw by themselves (Dropout)"),
        ("data_seed", "the order of the training data, their binarisation and augmentation"),
        ("noise_seed", "the noise in training and validation, such as the samples of z"),
    ):
        define_integer(name, None, f"seed of {what}; default: --seed", maximum=LARGEST_SEED)
    define_integer(
        "verbose",
        1,
        "0: print nothing; 1: a line per epoch, and a progress bar in a terminal; 2: lines only",
        maximum=2,
        may_change=True,
    )
    define_boolean("debug", False, "print the traceback of an error", may_change=True)
    sections.append("Data")
    define_string(
        "dataset",
        "mnist",
        "mnist, fashion_mnist, sprites, sprites_32, sprites_colour, a .npz, .npy, .mat or .h5 "
        "file, or a folder of idx files, of .amat or .mat files, or of images",
    )
    define_string(
        "correlated_factors",
        None,
        "two factors of the training and validation sprites that are correlated, and sigma, for "
        "example scale,x,0.2 (Träuble et al. 2021); default: all are independent",
    )
    define_choice(
        "data_kind",
        None,
        ("images", "series", "table"),
        "what the rows of an array file are: images, series [time, features], or plain arrays; "
        "default: what the shape says, which is asked about if it may be either",
    )
    define_integer(
        "image_size",
        None,
        "side, in pixels, to which the images of a folder are resized; default: not resized",
        minimum=1,
    )
    define_choice(
        "channels",
        None,
        ("1", "3"),
        "channels to which the images of a folder are converted: 1 is grey, 3 is RGB; default: not "
        "converted",
    )
    define_integer(
        "bad_images", 0, "number of damaged images that may be left out of a folder of images"
    )
    define_string(
        "background",
        None,
        "colour behind the transparent images of a folder: white, black, #rrggbb; default: "
        "transparent images are refused",
    )
    define_boolean(
        "stream",
        None,
        "read rows of an .npy file or of a folder of images when steps need them; default: only if "
        "they do not fit in memory",
    )
    define_choice(
        "rescale",
        None,
        ("none", "unit", "standardize"),
        "scaling of the values: unit maps them to [0, 1], standardize to mean 0 and variance 1; "
        "default: unit for integer images and bytes (divided by 1, 15, 255, 4095 or 65535, the "
        "smallest that no value exceeds), none for other data",
    )
    define_choice(
        "binarize",
        None,
        ("none", "threshold", "static", "dynamic"),
        "how pixels become 0 or 1: by a threshold of 0.5, by one random draw (static), or by a new "
        "random draw in every epoch (dynamic); held-out images always get the same draw; default: "
        "dynamic for mnist and fashion_mnist unless they are dequantised, none for other data",
    )
    define_choice(
        "dequantize",
        None,
        ("none", "uniform"),
        "uniform adds noise from [-1/2, 1/2) to integers, drawn again in every epoch, so that a "
        "density of them has a bound (Theis et al. 2016); held-out data always get the same draw; "
        "default: none",
    )
    sections.append("Model and training")
    define_integer("latent_dim", 20, "number of latent dimensions", minimum=1)
    define_integer("epochs", 10, "passes over the training data", minimum=1, may_change=True)
    define_integer(
        "batch_size",
        128,
        "examples in a training step; the default is reduced to the training examples there are",
        minimum=1,
    )
    define_float("learning_rate", 1e-3, "learning rate of Adam", above=0.0)
    define_choice(
        "learning_rate_schedule",
        "constant",
        LEARNING_RATE_SCHEDULES,
        "constant; cosine: falls to 0 at the end of the last epoch along half a cosine; steps: a "
        "tenth of it after half of the epochs, and a hundredth after three quarters",
    )
    define_integer(
        "early_stopping",
        0,
        "epochs without a better validation ELBO (or bound, if the model is trained with an "
        "importance-weighted one) after which training ends; they are counted from the epoch in "
        "which all schedules have settled; 0: never",
        may_change=True,
    )
    define_float(
        "ema",
        0.0,
        "momentum of exponential moving averages of the weights, below 1, for example 0.999; "
        "validation, test figures and saved networks then use the averages; 0: no averages",
        maximum=0.999999,
    )
    define_choice(
        "on_nonfinite",
        "stop",
        ("stop", "skip"),
        "what to do if a step makes anything NaN or infinite: stop undoes the step and ends the "
        "run, skip undoes it and continues",
        may_change=True,
    )
    sections.append("Test figures")
    define_integer(
        "importance_samples",
        200,
        "samples of z per test image in the importance-weighted estimate of the NLL",
        minimum=1,
        may_change=True,
    )
    define_integer(
        "evaluation_seed",
        0,
        "seed of the noise in the test figures; runs with the same one can be compared image by "
        "image, whatever their --seed",
        minimum=0,
        maximum=2**32 - 1,
        may_change=True,
    )
    define_integer(
        "dequantize_draws",
        2,
        "draws of noise over which the bits per dimension of a density of integers are a mean; "
        "each takes as long as the other test figures",
        minimum=1,
        may_change=True,
    )
    define_auto_integer(
        "evaluation_rows",
        "test images times samples that are decoded at once, which limits the memory needed and "
        "changes no sample; default auto, which is also the most: as many as have about two "
        "million pixels",
        may_change=True,
    )
    define_boolean(
        "disentanglement",
        False,
        "compare codes with the known factors of the data: scores (MIG, DCI and others) among the "
        "test figures, curves, a heat map and traversals; needs scikit-learn",
        may_change=True,
    )
    define_string(
        "disentanglement_metrics",
        None,
        "some of its scores of the test data, separated by commas: mig, sap, factor_vae_score, "
        "beta_vae_score, modularity_explicitness, infomec, dci (a minute); default: all",
        may_change=True,
    )
    define_integer(
        "disentanglement_every_epochs",
        1,
        "epochs between the points of its curves",
        minimum=1,
        may_change=True,
    )
    define_integer(
        "disentanglement_examples",
        10_000,
        "validation and test examples that it encodes and compares, at most",
        minimum=20,
        may_change=True,
    )
    sections.append("What is computed how")
    define_devices(
        "device",
        "auto",
        ("auto", "cpu", "gpu"),
        ("cpu", "gpu"),
        "where to compute; auto: on a GPU if there is one; gpu:N is the first N GPUs, cpu:N are N "
        "devices that share the processor, for a --strategy",
        may_change=True,
    )
    define_choice(
        "strategy",
        "none",
        ("none", "mirrored", "multiworker"),
        "how replicas share each batch; mirrored: one on each device of this machine; multiworker: "
        "those of all machines in TF_CONFIG. Results agree with those of one device to rounding",
        may_change=True,
    )
    define_float(
        "worker_timeout",
        300.0,
        "seconds in which all workers of --strategy=multiworker must have started",
        above=0.0,
        may_change=True,
    )
    define_auto_integer(
        "threads",
        "processor cores to compute with, at most; default: all. Another number may change the "
        "last bits of results",
        may_change=True,
    )
    define_choice(
        "precision",
        "float32",
        ("float32", "mixed_bfloat16"),
        "number format of the networks' arithmetic, a dtype policy of Keras",
    )
    define_choice(
        "jit",
        "auto",
        ("auto", "on", "off"),
        "compile with XLA; auto: if XLA can compile the model, but no convolutions on a CPU, which "
        "would be slower",
        may_change=True,
    )
    define_auto_integer(
        "steps_per_call",
        "optimizer steps in one compiled call, a divisor of --log_every_steps and of "
        "--checkpoint_steps; default auto: about half a second of steps",
        may_change=True,
    )
    define_boolean(
        "run_eagerly", False, "run each step uncompiled in Python, for a debugger", may_change=True
    )
    sections.append("TensorBoard")
    define_boolean(
        "tensorboard",
        True,
        "write event files; metrics.jsonl is written in any case",
        may_change=True,
    )
    define_integer(
        "log_every_steps",
        0,
        "steps between training figures in TensorBoard; 0: once per epoch",
        may_change=True,
    )
    define_integer(
        "gradients_every_steps",
        500,
        "steps between measurements of the gradient norm of each loss term, on one fixed batch, "
        "for TensorBoard; 0: never",
        may_change=True,
    )
    define_range(
        "profile_steps",
        None,
        "first and last optimizer step of a profile for TensorBoard; default: no profile",
        may_change=True,
    )
    sections.append("Checkpoints")
    define_float(
        "checkpoint_minutes",
        0.5,
        "minutes between checkpoints, or 100 times the duration of the last save if that is "
        "longer; 0: not by time. The end of a run is always saved",
        may_change=True,
    )
    define_integer(
        "checkpoint_epochs", 0, "epochs between checkpoints; 0: not by epoch", may_change=True
    )
    define_integer(
        "checkpoint_steps",
        0,
        "optimizer steps between checkpoints; 0: not by step",
        may_change=True,
    )


def standard_names() -> set[str]:
    """Returns the names of the standard flags."""
    define_standard_flags()
    return set(defined[STANDARD])
