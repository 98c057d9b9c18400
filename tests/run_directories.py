"""Run directories for tests, written as JSON and not trained."""

import json

from vae_research.runs.session import directory

FLAGS = {"epochs": 3, "batch_size": 16, "precision": "float32", "seed": 0, "kl_weight": 1.0}
FLAGS |= {"run_dir": None, "hidden_units": [8, 4], "latent_dim": 2, "name": None, "note": None}
DATA = {"fingerprint": "f0", "streamed": False, "counts": {"train": 9, "validation": 5, "test": 4}}
DATA |= {"shape": [8, 8, 1], "rescale": "unit", "scaling": "divided by 255", "binarize": "dynamic"}
LIKELIHOOD = {"measure": "probability of targets", "note": None}
EVALUATION = {"importance_samples": 5, "seed": 0, "dequantize_draws": 2}


def write_run(path, test=None, /, *, status="done", epochs=3, curve=(), **changes):
    """Writes a run directory; the figures are of the test set, `curve` of validation ELBOs."""
    path.mkdir(parents=True)
    flags = FLAGS | {name: changes.pop(name) for name in FLAGS if name in changes}
    config = {
        "experiment": "vae_mnist",
        "file": "vae_mnist.py",
        "flags": flags | changes.pop("more", {}),
        "data": DATA | changes.pop("data", {}),
        "versions": {"vae_research": "0.1"},
        "terms": {"kl": changes.pop("kl", "KLDivergence()")},
        "likelihood": LIKELIHOOD | changes.pop("likelihood", {}),
    }
    config |= {name: changes.pop(name) for name in ("experiment",) if name in changes}
    directory.write_config(path, config)
    if sha256 := changes.pop("source", None):
        (path / "source").mkdir()
        directory.write_json(path / "source/source.json", {"sha256": sha256})
    curve = curve or [-110.0 + epoch for epoch in range(epochs)]
    records = [
        {"epoch": at, "step": 10 * at, "validation/loss": -elbo, "validation/elbo": elbo}
        | {"validation/kl": 20.0 + at, "validation/reconstruction": -elbo - 20.0 - at}
        for at, elbo in enumerate(curve, 1)
    ]
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    (path / "metrics.jsonl").write_text(lines)
    if status == "diverged":
        found = {"epoch": epochs + 1, "step": 10, "causes": ["kl"]}
        directory.write_json(path / "nonfinite.json", found)
    if status == "done":
        test = {"negative_log_likelihood": 98.0} | (test or {})
        summary = {
            "status": "done",
            "epochs": epochs,
            "steps": 10 * epochs,
            "seconds": changes.pop("seconds", 60.0),
            "notes": changes.pop("notes", ["a note"]),
            "evaluation": EVALUATION | changes.pop("evaluation", {}),
            "units": dict.fromkeys(test, "nats") | changes.pop("units", {}),
            "test": {
                name: {"value": value, "standard_error": 0.25, "count": 4}
                for name, value in test.items()
            },
        }
        directory.write_json(path / "summary.json", summary)
    assert not changes
    return path


def figure(kl_weight, seed):
    """A test figure that a seed moves by several nats, and a setting by tenths."""
    of_seed = [0.0, 3.0, -2.0, 1.0][seed]
    return 98.0 + of_seed + 0.4 * kl_weight + [0.02, -0.01, 0.03, 0.0][seed] * kl_weight**2


def write_sweep(folder):
    """Writes three settings with four seeds each, and a run that is not finished."""
    for kl_weight in (0.5, 1.0, 2.0):
        for seed in (3, 0, 1, 2):
            run_dir = folder / f"kl_weight={kl_weight:g},seed={seed}"
            test = {"negative_log_likelihood": figure(kl_weight, seed), "elbo": -105.0 - kl_weight}
            write_run(run_dir, test, kl_weight=kl_weight, seed=seed, seconds=60.0 + seed)
    write_run(folder / "last", status="running", epochs=2, kl_weight=2.0, seed=9)
    return folder
