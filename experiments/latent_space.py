"""What the KL loss does to the latent space: an autoencoder beside VAEs of several KL factors.

Idea: an autoencoder can put its codes anywhere; the KL loss keeps them together. With two latent
dimensions the study measures how much of the plane the test images occupy. With sixteen, t-SNE
shows how well the digits separate. The loss is that of many Keras recipes, cross-entropy averaged
over pixels plus a factor times the latent mean; the effective beta of each factor in nats is
printed.

Command: scripts/run experiments/latent_space.py
Time: 30 minutes on 2 cores
Expect: with factor 6.5e-4 (beta 0.51) 95 % of the test images occupy an area of 35 (34 to 38, seeds
0, 1, 2), with the autoencoder one 117 times as large (101 to 117). In 16 dimensions with factor
0.5e-4 (beta 0.0049) the 10 nearest neighbours give the right digit for 96.3 % of them.
"""

import math

import numpy as np

import vae_research as vr
from vae_research import runs

runs.set_defaults(epochs=40, latent_dim=2, binarize="none", importance_samples=10)
runs.define_floats(
    "kl_factors",
    (6.5e-4, 1e-4, 2.6e-3),
    "in front of the latent mean of -(1 + log_var - mean^2 - var); of the first there are as many "
    "models as of the autoencoder",
)
runs.define_integer("repeats", 3, "autoencoders and VAEs of the first factor", minimum=1)
runs.define_integer("wide_latent_dim", 16, "latent dimensions of the model for t-SNE", minimum=2)
runs.define_float("wide_kl_factor", 0.5e-4, "its KL factor")
runs.define_choice("network", "dense", ("dense", "convolutional"), "encoder and decoder")
runs.define_integers("hidden_units", (500,), "units of the dense layers, from the image to z")
runs.define_integer("left_out", 6, "label that is left out of the second bounding box")

AUTOENCODER = "autoencoder"
NEIGHBOURS = 10


def build(config, data):
    """Returns the VAE of `config.kl_factor`, or an autoencoder if that is None."""
    convolutional = config.network == "convolutional"
    encoder = vr.convolutional_encoder if convolutional else vr.dense_encoder
    decoder = vr.convolutional_decoder if convolutional else vr.dense_decoder
    units, pixels = config.hidden_units, math.prod(data.shape)
    sizes = {"latent_dim": config.latent_dim}
    decode = decoder(data.shape, **sizes, hidden_units=units[::-1])
    if config.kl_factor is None:
        encode = encoder(data.shape, **sizes, hidden_units=units, outputs=["z_mean"])
        terms = [vr.Bernoulli(weight=1.0 / pixels)]
        return vr.VAE(
            encode, vr.DeterministicBottleneck(**sizes), decode, terms, seed=config.noise_seed
        )
    encode = encoder(data.shape, **sizes, hidden_units=units)
    terms = vr.pixel_mean_terms(factor=config.kl_factor, pixels=pixels, **sizes)
    return vr.VAE(encode, vr.GaussianBottleneck(**sizes), decode, terms, seed=config.noise_seed)


def check(config, data):
    """Refuses flags and data that this study cannot use."""
    if data.test.labels is None or len(data.test) <= NEIGHBOURS or not data.is_image:
        raise vr.DataError(
            f"{data.name}: this study needs more than {NEIGHBOURS} test images with labels."
        )
    if (data.test.labels == config.left_out).all():
        raise runs.UsageError(f"--left_out={config.left_out} leaves no test image.")
    if config.latent_dim != 2:
        raise runs.UsageError("the plane of this study has --latent_dim=2; see --wide_latent_dim.")
    if config.seed + config.repeats > 2**32:
        raise runs.UsageError(f"--seed={config.seed} leaves no room for {config.repeats} seeds.")
    given = config.as_dict()
    if config.repeats > 1 and None not in (given["init_seed"], given["data_seed"]):
        raise runs.UsageError(
            f"--init_seed and --data_seed leave nothing that differs in --repeats={config.repeats} "
            "autoencoders."
        )
    names = [f"{factor:g}" for factor in config.kl_factors]
    if len(set(names)) < len(names):
        raise runs.UsageError(f"--kl_factors={','.join(names)}: each of them once.")


def run_study(config, data, run_dir):
    """Trains all models, each as its own run, and measures their codes of the test images."""
    factors = [None, *config.kl_factors]
    models = [
        (factor, config.seed + repeat)
        for index, factor in enumerate(factors)
        for repeat in range(config.repeats if index < 2 else 1)
    ]
    planes = {}
    for factor, seed in models:
        run = train(config, data, run_dir, kl_factor=factor, seed=seed)
        planes[factor, seed] = measured(run, run_dir, config)
    wide = train(
        config,
        data,
        run_dir,
        kl_factor=config.wide_kl_factor,
        seed=config.seed,
        latent_dim=config.wide_latent_dim,
    )
    separation = separated(wide, run_dir)
    results = compared(planes)
    return {
        "tables": "\n".join([*tables(planes, results, config), separation_table(separation, wide)]),
        "models": [
            {"kl_factor": factor, "seed": seed} | found for (factor, seed), found in planes.items()
        ],
        "autoencoder_over_vae": results,
        "wide": separation,
    }


def train(config, data, run_dir, **changes):
    """Trains one model as a run below the study; returns the run."""
    config = config.replace(**changes)
    run = runs.train(build, config=config, data=data, run_dir=run_dir / name_of(config))
    if config.verbose and config.kl_factor is not None:
        print(f"KL factor {config.kl_factor:g}: effective beta {beta(run):.3g}", flush=True)
    return run


def name_of(config):
    kind = AUTOENCODER if config.kl_factor is None else f"factor_{config.kl_factor:g}"
    return f"{kind}_z{config.latent_dim}_seed{config.seed}"


def beta(run):
    return run.model.objective.effective_beta(0)


def measured(run, run_dir, config):
    """Returns the measures of a run's codes; draws codes and decoded plane of the first seed."""
    codes, labels = codes_of(run), run.data.test.labels
    name = name_of(run.config)
    if run.config.seed == config.seed:
        title = titled(run)
        figures = run_dir / "figures"
        vr.save_scatter(figures / f"codes_{name}.png", codes, labels, title=f"{title}: test images")
        low, high = np.quantile(codes, [0.01, 0.99], axis=0)
        picture = vr.decoded_plane(run.model, low, high)
        path = figures / f"plane_{name}.png"
        vr.save_plane(
            path, picture, low, high, title=f"{title}: decoded plane, 1 % to 99 % of the codes"
        )
    others = codes[labels != config.left_out]
    return {
        "effective_beta": None if run.config.kl_factor is None else beta(run),
        "area_95": vr.occupied_area(codes),
        "box": box(codes),
        "box_area": box_area(codes),
        "box_left_out": box(others),
        "box_area_left_out": box_area(others),
        "neighbour_accuracy": vr.neighbour_accuracy(codes, labels, neighbours=NEIGHBOURS),
        "reconstruction": run.summary["test"]["reconstruction"]["value"],
    }


def codes_of(run):
    """Returns the codes of the test images, and writes them for TensorBoard's projector."""
    codes = run.model.encode(run.data.test.prepare()).numpy()
    summaries = vr.Summaries(run.path)
    summaries.vectors("validation", "test_images", codes, run.data.test.labels)
    summaries.close()
    return codes


def titled(run):
    if run.config.kl_factor is None:
        return "Autoencoder"
    return f"VAE, factor {run.config.kl_factor:g} (beta {beta(run):.2g})"


def box(codes):
    """Returns [[smallest, largest], ...] of each latent dimension."""
    return np.stack([codes.min(axis=0), codes.max(axis=0)], axis=1).tolist()


def box_area(codes):
    return math.prod(high - low for low, high in box(codes))


MEASURES = ("area_95", "box_area", "box_area_left_out")


def compared(planes):
    """Returns how many times the room of a VAE the autoencoder of the same seed takes."""
    return [
        {"kl_factor": factor, "seed": seed}
        # A posterior that has collapsed to a point takes no room at all.
        | {name: planes[None, seed][name] / max(found[name], 1e-12) for name in MEASURES}
        for (factor, seed), found in planes.items()
        if factor is not None
    ]


def tables(planes, results, config):
    left_out = config.left_out
    head = ["model", "beta", "seed", "area of 95 %", "box", f"box without {left_out}"]
    head += ["neighbours right", "reconstruction, nats"]
    rows = [
        [
            AUTOENCODER if factor is None else f"factor {factor:g}",
            "" if found["effective_beta"] is None else f"{found['effective_beta']:.3g}",
            str(seed),
            *(f"{found[name]:,.1f}" for name in MEASURES),
            f"{found['neighbour_accuracy']:.1%}",
            f"{found['reconstruction']:.1f}",
        ]
        for (factor, seed), found in planes.items()
    ]
    head_of_ratios = ["autoencoder over VAE", "seeds", "area of 95 %", "box"]
    head_of_ratios += [f"box without {left_out}"]
    ratios = []
    for factor in dict.fromkeys(result["kl_factor"] for result in results):
        found = [result for result in results if result["kl_factor"] == factor]
        cells = [runs.median_and_range([result[name] for result in found], 1) for name in MEASURES]
        ratios.append([f"factor {factor:g}", str(len(found)), *cells])
    return runs.markdown_table(head, rows), runs.markdown_table(head_of_ratios, ratios)


def separated(run, run_dir):
    """Returns how well labels separate in latent space and in its t-SNE picture; draws that."""
    codes, labels = codes_of(run), run.data.test.labels
    picture = vr.t_sne(codes)
    vr.save_scatter(
        run_dir / "figures" / "t_sne.png",
        picture,
        labels,
        title=f"t-SNE of {codes.shape[1]} latent dimensions, {titled(run)}: test images",
        axes=("t-SNE, first axis (no unit)", "t-SNE, second axis (no unit)"),
    )
    return {
        "kl_factor": run.config.kl_factor,
        "effective_beta": beta(run),
        "latent_dim": run.config.latent_dim,
        "neighbour_accuracy": vr.neighbour_accuracy(codes, labels, neighbours=NEIGHBOURS),
        "neighbour_accuracy_t_sne": vr.neighbour_accuracy(picture, labels, neighbours=NEIGHBOURS),
        "neighbour_accuracy_pixels": vr.neighbour_accuracy(
            run.data.test.prepare().reshape(len(codes), -1), labels, neighbours=NEIGHBOURS
        ),
    }


def separation_table(found, run):
    places = {
        f"in {found['latent_dim']} latent dimensions": "neighbour_accuracy",
        "in the t-SNE picture": "neighbour_accuracy_t_sne",
        "in pixels, for comparison": "neighbour_accuracy_pixels",
    }
    return runs.markdown_table(
        [f"{NEIGHBOURS} nearest neighbours right, {titled(run)}", "share"],
        [[place, f"{found[name]:.1%}"] for place, name in places.items()],
    )


if __name__ == "__main__":
    runs.study(run_study, check=check, needs=["matplotlib", "sklearn"])
