"""Critics: what trains them and what does not, with which noise, and where their figures go."""

import functools
import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from tests.watched import read, scalars
from vae_research import checkpoints
from vae_research.callbacks.gradients import gradient_figures
from vae_research.data import Data
from vae_research.randomness import fold_in
from vae_research.runs.cli.errors import DivergedError
from vae_research.runs.session.fit.gate import FiniteGate
from vae_research.state import saved_variables, state_sha256

IMAGES = (np.random.default_rng(0).random((10, 4, 4, 1)) < 0.4).astype("float32")
BATCH = IMAGES[:6]
LATENT = 2
RATE = 0.1
FOOLING = 0.5  # the weight of what the model wants of the critic
SAME = {"rtol": 1e-6, "atol": 1e-7}  # a product and a sum in float32


@keras.saving.register_keras_serializable(package="test_critics")
class Judge(keras.layers.Layer):
    """Tells codes from samples of the prior."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.hidden = keras.layers.Dense(4, "tanh")
        self.head = keras.layers.Dense(1)

    def call(self, z, z_prior):
        return {
            "of_code": self.head(self.hidden(z))[:, 0],
            "of_prior": self.head(self.hidden(z_prior))[:, 0],
        }


class Telling(vr.LossTerm):
    """The cross-entropy of the judge; not a number at one step."""

    bad_at: int = -1

    def per_example(self, of_code, of_prior, step):
        here = tf.equal(tf.cast(step, tf.int32), self.bad_at)
        value = tf.nn.softplus(of_code) + tf.nn.softplus(-of_prior)
        return value * tf.where(here, np.nan, 1.0)


class Fooling(vr.LossTerm):
    """What the model wants of the judge."""

    def per_example(self, of_code):
        return tf.nn.softplus(-of_code)


class Seen(vr.LossTerm):
    """Calls a function on tensors of the forward pass; its value is zero."""

    function: object

    def per_example(self, inputs, z, z_prior):
        self.function(inputs=inputs, z=z, z_prior=z_prior)
        return 0.0 * z[:, 0]


class Squared(vr.LossTerm):
    """Reads what a network called "own" writes."""

    def per_example(self, own):
        return tf.reduce_sum(tf.square(own), axis=1)


def judge(*terms, optimizer=None, bad_at=-1, **settings):
    optimizer = keras.optimizers.SGD(RATE) if optimizer is None else optimizer
    return vr.Critic(Judge(), [Telling(bad_at=bad_at), *terms], optimizer, **settings)


def reading_z(layer, name="own"):
    return vr.named(layer, name, reads=["z"])


def make(
    *critics, terms=None, optimizer=None, encoder=None, bottleneck=None, called=True, **settings
):
    """A compiled model, with every variable if it has been called."""
    model = vr.VAE(
        encoder or vr.dense_encoder(IMAGES.shape[1:], LATENT, hidden_units=(4,)),
        bottleneck or vr.GaussianBottleneck(LATENT),
        vr.dense_decoder(IMAGES.shape[1:], LATENT, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence(), Fooling(weight=FOOLING)] if terms is None else terms,
        critics=critics,
        **settings,
    )
    model.compile(optimizer or keras.optimizers.SGD(RATE), run_eagerly=True)
    if called:
        model.report(BATCH)
        model.build_optimizer()
    return model


@pytest.fixture(autouse=True)
def _same_initial_weights():
    keras.utils.set_random_seed(7)


def step(model, data=BATCH):
    return model.training_step(tf.constant(data))


def values(variables):
    return [variable.value.numpy() for variable in variables]


def by_hand(model, which, key):
    """Gradients of one of the two losses, written out, by the variables of its owner."""
    with tf.GradientTape() as tape:
        found = model.forward(BATCH, training=True, seed=key)
        logits = found["logits"]
        if which == "model":
            cross_entropy = tf.nn.softplus(logits) - BATCH * logits
            loss = (
                tf.reduce_sum(cross_entropy, [1, 2, 3])
                + tf.reduce_sum(found["kl"], 1)
                + FOOLING * tf.nn.softplus(-found["of_code"])
            )
            variables = model.encoder.trainable_variables + model.decoder.trainable_variables
        else:
            loss = tf.nn.softplus(found["of_code"]) + tf.nn.softplus(-found["of_prior"])
            variables = model.critics[0].layer.trainable_variables
        loss = tf.reduce_mean(loss)
    return variables, tape.gradient(loss, variables)


def moved(variables, gradients):
    return [
        value - RATE * gradient.numpy()
        for value, gradient in zip(values(variables), gradients, strict=True)
    ]


def check_same(variables, wanted):
    for variable, value in zip(variables, wanted, strict=True):
        np.testing.assert_allclose(variable.value.numpy(), value, **SAME, err_msg=variable.path)


# ---------------------------------------------------------------- whose loss trains what


def test_each_loss_trains_its_own_variables_from_gradients_taken_before_any_weight_moves():
    model = make(judge())
    key = model.step_key()
    variables, gradients = by_hand(model, "model", key)
    critics_own, of_critic = by_hand(model, "critic", key)
    wanted, critics_wanted = moved(variables, gradients), moved(critics_own, of_critic)
    step(model)
    check_same(variables, wanted)
    check_same(critics_own, critics_wanted)


def test_the_test_above_would_notice_a_critic_that_moves_first_and_a_joint_loss():
    model = make(judge())
    key = model.step_key()
    variables, gradients = by_hand(model, "model", key)
    critics_own, of_critic = by_hand(model, "critic", key)
    for variable, value in zip(critics_own, moved(critics_own, of_critic), strict=True):
        variable.assign(value)
    _, after = by_hand(model, "model", key)
    differences = [np.abs(a - b).max() for a, b in zip(gradients, after, strict=True)]
    assert max(differences) > 1e-3
    with tf.GradientTape(persistent=True) as tape:
        _, report = model.report(BATCH, training=True, seed=key)
        loss = tf.reduce_mean(report.surrogate)
        of_critic = report.critics["critic"].loss
    assert tf.linalg.global_norm(tape.gradient(loss, critics_own)) > 0.01
    assert tf.linalg.global_norm(tape.gradient(of_critic, variables[:2])) > 0.01


def test_the_model_has_no_variable_of_a_critic():
    model = make(judge())
    own = {id(variable) for variable in model.critics[0].layer.variables}
    assert len(own) == 4
    assert not own & {id(variable) for variable in (*model.variables, *model.trainable_variables)}
    assert model.count_params() == make(terms=[vr.Bernoulli(), vr.KLDivergence()]).count_params()


def test_regularizers_and_add_loss_of_a_critic_count_in_its_own_loss():
    class Adds(keras.layers.Dense):
        def call(self, inputs):
            self.add_loss(tf.constant(3.0))
            return super().call(inputs)

    adds = reading_z(Adds(1, kernel_regularizer=keras.regularizers.L2(0.5)))
    critic = vr.Critic(adds, [Squared(weight=2.0)], "sgd")
    model = make(critic, terms=[vr.Bernoulli(), vr.KLDivergence()])
    for training in (False, True, True):  # and they do not add up from pass to pass
        tensors, report = model.report(BATCH, training=training)
        kernel = adds.network.kernel.numpy()
        square = np.square(tensors["own"].numpy()).sum(axis=1).mean()
        wanted = 2.0 * square + 3.0 + 0.5 * np.square(kernel).sum()
        assert float(report.critics["critic"].loss) == pytest.approx(wanted, rel=1e-6)
        assert "regularization" not in report.values
        np.testing.assert_allclose(
            report.loss, report.values["reconstruction"] + report.values["kl"], rtol=1e-6
        )


def test_a_regularizer_of_the_model_is_not_in_the_loss_of_a_critic():
    heads = vr.named(
        keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4, kernel_regularizer="l2")]),
        *("z_mean", "z_log_var"),
    )
    model = make(judge(), encoder=heads)
    _, report = model.report(BATCH)
    found = report.critics["critic"]
    assert float(report.values["regularization"]) > 0.0
    assert float(found.loss) == pytest.approx(float(found.values["telling"]))


@pytest.mark.slow
def test_an_optimizer_of_a_critic_may_scale_its_loss():
    plain = make(judge())
    keras.utils.set_random_seed(7)
    scaled = make(judge(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(RATE))))
    step(plain), step(scaled)
    check_same(scaled.critics[0].layer.variables, values(plain.critics[0].layer.variables))


def test_a_critic_that_is_frozen_is_not_trained():
    model = make(judge())
    critic = model.critics[0]
    critic.layer.trainable = False
    before = values(critic.layer.variables)
    step(model)
    for one, other in zip(values(critic.layer.variables), before, strict=True):
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------- updates alone, and noise


def seen(model, action):
    """What the critic has seen in each forward pass of an action: tensors, and the weights."""
    log, (critic,) = [], model.critics

    def note(**tensors):
        kernels = {"encoder": model.encoder.weights[0], "critic": critic.layer.hidden.kernel}
        tensors |= {name: kernel.value for name, kernel in kernels.items()}
        log.append({name: tensor.numpy() for name, tensor in tensors.items()})

    terms, critic.terms = critic.terms, (*critic.terms, Seen(function=note))
    action()
    critic.terms = terms
    return log


@pytest.mark.slow
def test_updates_alone_come_first_on_the_same_batch_each_with_noise_of_its_own():
    model = make(judge(steps=3))
    before, key = values(saved_variables(model)), model.step_key()
    for update in (1, 2):
        critics_own, gradients = by_hand(model, "critic", fold_in(key, "critics alone", update))
        for variable, value in zip(critics_own, moved(critics_own, gradients), strict=True):
            variable.assign(value)
    critics_wanted = moved(*by_hand(model, "critic", key))
    variables, gradients = by_hand(model, "model", key)
    wanted = moved(variables, gradients)
    for variable, value in zip(saved_variables(model), before, strict=True):
        variable.assign(value)

    log = seen(model, lambda: step(model))
    assert len(log) == 3
    for found in log:
        np.testing.assert_array_equal(found["inputs"], BATCH)
        np.testing.assert_array_equal(found["encoder"], before[0])  # it moves last
    for name in ("z", "z_prior", "critic"):
        for one, other in itertools.combinations(log, 2):
            assert not np.array_equal(one[name], other[name])
    check_same(critics_own, critics_wanted)
    check_same(variables, wanted)
    assert int(model.critics[0].optimizer.iterations) == 3
    assert int(model.optimizer.iterations) == model.step == 1


def test_each_critic_makes_its_own_number_of_updates():
    often = vr.Critic(reading_z(keras.layers.Dense(1)), [Squared()], "sgd", steps=3, name="often")
    model = make(judge(), often)
    step(model)
    assert [int(critic.optimizer.iterations) for critic in model.critics] == [1, 3]
    assert int(model.optimizer.iterations) == model.step == 1


class Elsewhere(vr.GaussianBottleneck):
    """A prior that is not the standard normal."""

    def sample_prior(self, count, seed):
        return 5.0 + 0.1 * super().sample_prior(count, seed)


@pytest.mark.slow
def test_a_sample_of_the_prior_is_another_one_in_each_step_and_the_same_in_each_evaluation():
    model = make(judge(), bottleneck=Elsewhere(LATENT), num_samples=3)
    log = seen(model, lambda: [step(model), step(model)])
    first, second = (found["z_prior"] for found in log)
    assert first.shape == log[0]["z"].shape == (3 * len(BATCH), LATENT)
    assert np.abs(np.stack([first, second]) - 5.0).max() < 0.6  # 5.8 standard deviations
    assert not np.array_equal(first, second)
    assert len(np.unique(first)) == first.size  # another one for each row
    evaluate = functools.partial(model.evaluate, BATCH, batch_size=len(BATCH), verbose=0)
    once, again = (seen(model, evaluate)[0]["z_prior"] for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_the_prior_is_sampled_with_noise_of_its_own_and_only_for_who_reads_it():
    model = make(judge())
    for variable in model.encoder.trainable_variables:
        variable.assign(tf.zeros_like(variable))  # then z is the noise of the posterior
    (found,) = seen(model, lambda: step(model))
    assert np.abs(found["z_prior"] - found["z"]).min() > 1e-3
    other = vr.Critic(reading_z(keras.layers.Dense(1)), [Squared()], "sgd")
    other = make(other, terms=[vr.Bernoulli(), vr.KLDivergence()])
    assert "z_prior" not in other.forward(BATCH)


# ---------------------------------------------------------------- figures


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A compiled `fit` of two epochs: model, history, lines of metrics.jsonl, tags by split."""
    folder = tmp_path_factory.mktemp("trained")
    keras.utils.set_random_seed(7)
    critic = judge(Fooling(weight=vr.LinearWarmup(peak=0.1, steps=4)), steps=2)
    model = make(critic, called=False)
    model.run_eagerly = False
    callbacks = [
        vr.MetricsFile(folder / "metrics.jsonl"),
        vr.Scalars(folder),
        vr.Gradients(folder, BATCH, every_steps=2),
        vr.Overview(folder, BATCH),
    ]
    options = {"batch_size": 5, "epochs": 2, "verbose": 0, "callbacks": callbacks}
    options["validation_batch_size"] = len(BATCH)
    history = model.fit(IMAGES, validation_data=(BATCH,), **options).history
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tags = {split: scalars(folder / split) for split in SPLITS} | {"run": read(folder / "run")}
    return model, history, lines, tags


SPLITS = ("train", "validation")
NAMES = ("critic/loss", "critic/telling", "critic/fooling")


@pytest.mark.slow
def test_figures_of_a_critic_are_in_the_history_and_in_metrics_jsonl(trained):
    model, history, lines, _ = trained
    for name in NAMES:
        for split, prefix in zip(SPLITS, ("", "val_"), strict=True):
            assert history[f"{prefix}{name}"] == [line[f"{split}/{name}"] for line in lines]
            assert len(set(history[f"{prefix}{name}"])) == 2
    found = model.forward(BATCH, seed=model.evaluation_key(0))
    telling = tf.nn.softplus(found["of_code"]) + tf.nn.softplus(-found["of_prior"])
    last = {name: history[f"val_{name}"][-1] for name in NAMES}
    fooling = np.mean(tf.nn.softplus(-found["of_code"]))
    assert last["critic/telling"] == pytest.approx(np.mean(telling), rel=1e-6)
    assert last["critic/fooling"] == pytest.approx(fooling, rel=1e-6)
    assert last["critic/loss"] == pytest.approx(np.mean(telling) + 0.1 * fooling, rel=1e-6)


@pytest.mark.slow
def test_figures_of_a_critic_are_in_tensorboard(trained):
    model, history, lines, tags = trained
    for name in NAMES:
        for split, prefix in zip(SPLITS, ("", "val_"), strict=True):
            assert [step for step, _ in tags[split][name]] == [2, 4]
            assert [value for _, value in tags[split][name]] == pytest.approx(
                history[f"{prefix}{name}"], rel=1e-6
            )
    assert [value for _, value in tags["train"]["critic/learning_rate"]] == [np.float32(RATE)] * 2
    weights = [0.1 * 2 / 4, 0.1]
    assert [value for _, value in tags["train"]["weight/critic/fooling"]] == pytest.approx(weights)
    assert [line["train/weight/critic/fooling"] for line in lines] == pytest.approx(weights)
    text = {tag: str(tags["run"][tag][0][1]) for tag in ("model/terms", "model/summary")}
    assert "| critic/telling | Telling() |" in text["model/terms"]
    assert "Judge" in text["model/summary"]
    step, norm = tags["train"]["gradients/critic"][-1]
    assert step == 4
    assert norm == pytest.approx(float(gradient_figures(model, BATCH)["gradients/critic"]))


def test_the_norm_of_a_gradient_is_that_of_the_critics_loss_by_its_variables():
    model = make(judge())
    _, gradients = by_hand(model, "critic", model.evaluation_key(0))
    found = gradient_figures(model, tf.constant(BATCH))
    wanted = float(tf.linalg.global_norm(gradients))
    assert float(found["gradients/critic"]) == pytest.approx(wanted, rel=1e-5)
    _, gradients = by_hand(model, "model", model.evaluation_key(0))
    wanted = float(tf.linalg.global_norm(gradients))
    assert float(found["gradients/total"]) == pytest.approx(wanted, rel=1e-5)


def test_a_loss_of_three_terms_is_no_chain_of_additions():
    """TensorFlow would make one AddN of it, whose order depends on what is freed first."""
    model = make(judge(Fooling(), Seen(function=lambda **tensors: None)))

    def losses(images):
        _, report = model.report(images)
        return report.loss, report.critics["critic"].loss

    graph = tf.function(losses, autograph=False).get_concrete_function(BATCH).graph
    sums = [op for op in graph.get_operations() if op.type in ("Add", "AddV2", "AddN")]
    small = [op.outputs[0] for op in sums if op.outputs[0].shape.rank in (0, 1)]
    numbers = [total for total in small if total.dtype.is_floating]  # and no seeds
    assert [total.name for total in numbers if any(p.op in sums for p in total.op.inputs)] == []


# ---------------------------------------------------------------- what is refused


def a_layer():
    return reading_z(keras.layers.Dense(1))


REFUSED = {
    "no terms": (lambda: vr.Critic(a_layer(), []), "'critic' has no loss terms"),
    "likelihood": (lambda: vr.Critic(a_layer(), [vr.Bernoulli()]), "Bernoulli.*cannot be a term"),
    "no term": (lambda: vr.Critic(a_layer(), [abs]), "abs.*cannot be a term.*Subclass LossTerm"),
    "two of a name": (lambda: vr.Critic(a_layer(), [Squared(), Squared()]), "called 'squared'"),
    "no layer": (lambda: vr.Critic(abs, [Squared()]), "is a Keras layer or model, got.*abs"),
    "no name": (lambda: vr.Critic(a_layer(), [Squared()], name="a/b"), "'a/b' cannot be the name"),
    "no steps": (lambda: vr.Critic(a_layer(), [Squared()], steps=0), "steps must be.*got 0"),
    "no critic": (lambda: make(a_layer()), "is not a Critic"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_critic_is_refused(case):
    function, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        function()


# Groups of the training state, and first parts of tags.
@pytest.mark.parametrize(
    "name", ["model", "optimizer", "step", "controllers", "weight", "contribution", "terms"]
)
def test_names_that_logs_and_checkpoints_use_are_refused(name):
    with pytest.raises(ValueError, match=f"may not be called '{name}'"):
        judge(name=name)


def test_critics_that_are_not_apart_are_refused():
    layer, optimizer = a_layer(), keras.optimizers.SGD(RATE)
    first = vr.Critic(layer, [Squared()], optimizer, name="first")
    with pytest.raises(ValueError, match="the same name, 'first'"):
        make(first, vr.Critic(a_layer(), [Squared()], name="first"))
    with pytest.raises(ValueError, match="the same layer"):
        make(first, vr.Critic(layer, [Squared()], name="second"))
    with pytest.raises(ValueError, match="first and second have the same optimizer object"):
        make(first, vr.Critic(a_layer(), [Squared()], optimizer, name="second"))
    with pytest.raises(ValueError, match="model and first have the same optimizer object"):
        make(first, optimizer=optimizer, terms=[vr.Bernoulli(), vr.KLDivergence()])


def test_a_critic_that_has_a_layer_of_another_is_refused():
    shared = keras.layers.Dense(LATENT)
    shared.build([None, LATENT])
    one = vr.Critic(reading_z(shared), [Squared()], "sgd", name="one")
    inside = reading_z(keras.Sequential([shared, keras.layers.Dense(1)]), "inside")
    other = vr.Critic(inside, [Squared(rename={"own": "inside"})], "sgd", name="other")
    terms = [vr.Bernoulli(), vr.KLDivergence()]
    with pytest.raises(ValueError, match=r"one and other both train .*kernel"):
        make(one, other, terms=terms)
    encoder = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(LATENT), shared, keras.layers.Dense(2 * LATENT)]
    )
    with pytest.raises(ValueError, match=r"model and one both train .*kernel"):
        make(one, encoder=vr.named(encoder, "z_mean", "z_log_var"), terms=terms)


# ---------------------------------------------------------------- saved, undone, continued


def with_slots(bad_at=-1):
    """A model whose two optimizers have slots."""
    critic = judge(optimizer=keras.optimizers.Adam(0.01), bad_at=bad_at, steps=2)
    return make(critic, optimizer=keras.optimizers.SGD(RATE, momentum=0.9))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model after one step as a file of Keras and as a checkpoint; and its hashes after both."""
    folder = tmp_path_factory.mktemp("saved")
    model = with_slots()
    step(model)
    model.save(folder / "model.keras")
    checkpoint = checkpoints.save(folder, model, epoch=0, position=1)
    hashes = [state_sha256(model)]
    step(model)
    return folder / "model.keras", checkpoint, [*hashes, state_sha256(model)]


def check_continues(model, hashes):
    assert int(model.critics[0].optimizer.iterations) == 2
    assert state_sha256(model) == hashes[0]
    step(model)
    assert state_sha256(model) == hashes[1]


@pytest.mark.slow
def test_load_model_restores_a_critic_and_training_continues(saved):
    file, _, hashes = saved
    model = keras.models.load_model(file)
    model.run_eagerly = True
    (ours,), (theirs,) = with_slots().critics, model.critics
    assert (theirs.name, theirs.steps, theirs.terms) == (ours.name, ours.steps, ours.terms)
    theirs, ours = (critic.optimizer.get_config() | {"name": ""} for critic in (theirs, ours))
    assert theirs == ours
    check_continues(model, hashes)


@pytest.mark.slow
def test_a_checkpoint_restores_a_critic_and_training_continues(saved):
    _, checkpoint, hashes = saved
    model = with_slots()
    assert state_sha256(model) != hashes[0]
    model.load_checkpoint(checkpoint)
    check_continues(model, hashes)


@pytest.mark.slow
def test_a_checkpoint_with_a_critic_is_refused_by_a_model_without_it(saved):
    with pytest.raises(checkpoints.CheckpointError):
        make(terms=[vr.Bernoulli(), vr.KLDivergence()]).load_checkpoint(saved[1])


@pytest.mark.slow
def test_a_value_of_a_critic_that_is_not_finite_undoes_both_optimizers(tmp_path):
    model = with_slots(bad_at=1)
    step(model)
    before = values(saved_variables(model))
    batches = Data.from_arrays(IMAGES, BATCH, BATCH).train.on_device(5, seed=0)
    model.guard = FiniteGate(model, batches, tmp_path)
    message = r"term 'critic/telling'.* not finite in epoch 1, step 2"
    with pytest.raises(DivergedError, match=message):
        model.fit(batches, verbose=0)
    for variable, value in zip(saved_variables(model), before, strict=True):
        np.testing.assert_array_equal(variable.value.numpy(), value, err_msg=variable.path)
