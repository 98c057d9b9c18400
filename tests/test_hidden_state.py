"""What a training step remembers is in the state that checkpoints hold, or the run is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research.data import Data
from vae_research.execution import TracedStep
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session.building import traced_step
from vae_research.state import RUNNING_SUMS, hidden_state, training_state

IMAGES = np.random.default_rng(0).random((8, 4, 4, 1)).astype("float32")
DATA = Data.from_arrays(IMAGES, IMAGES, IMAGES)
LATENT = 2


class Noted(vr.LossTerm):
    """A term that calls a function of somebody, in its place of the step."""

    function: object

    def per_example(self, z):
        self.function()
        return 0.0 * z[:, 0]


@keras.saving.register_keras_serializable()
class Judge(keras.layers.Layer):
    """Tells samples of the prior from codes."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.dense = keras.layers.Dense(1)
        self.normalization = keras.layers.BatchNormalization()

    def call(self, z, z_prior, training=False):
        codes = self.normalization(self.dense(z), training=training)
        return {"realness": self.dense(z_prior), "fakeness": codes}


class Telling(vr.LossTerm):
    """The loss of the judge."""

    def per_example(self, realness, fakeness):
        return tf.nn.softplus(-realness[:, 0]) + tf.nn.softplus(fakeness[:, 0])


class Fooling(vr.LossTerm):
    """What the model wants of the judge."""

    def per_example(self, fakeness):
        return tf.nn.softplus(-fakeness[:, 0])


def make(*terms, cls=vr.VAE, kl=1.0, optimizer=None, **settings):
    """A compiled VAE with every variable; dropout and batch normalization have some, too."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(IMAGES.shape[1:], name="inputs")
    features = keras.layers.Dense(4)(keras.layers.Flatten()(inputs))
    features = keras.layers.Dropout(0.2)(keras.layers.BatchNormalization()(features))
    heads = {name: keras.layers.Dense(LATENT)(features) for name in ("z_mean", "z_log_var")}
    model = cls(
        keras.Model(inputs, heads),
        vr.GaussianBottleneck(LATENT),
        vr.dense_decoder(IMAGES.shape[1:], LATENT, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence(weight=kl), *terms],
        **settings,
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), jit_compile=False)
    model.set_steps_per_epoch(2)
    model.report(IMAGES[:2])
    model.build_optimizer()
    return model


@pytest.fixture(scope="module")
def everything():
    """A model with all that may have a state, which nothing here changes."""
    critic = vr.Critic(Judge(), [Telling(weight=vr.KLTarget(target=1.0))], "adam", steps=2)
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, gradient_accumulation_steps=2)
    return make(
        Fooling(weight=0.1),
        kl=vr.PIDControl(target=1.0),
        critics=[critic],
        optimizer=optimizer,
    )


def refused(model):
    step = TracedStep(model.training_step, tf.constant(IMAGES[:4]))
    return hidden_state(model, step.graph, step.operations())


@pytest.mark.slow
def test_all_that_may_have_a_state_is_in_the_list(everything):
    assert refused(everything) == []
    found = training_state(everything)
    assert list(found) == [
        *("model", "optimizer", "step", "controllers", "critic", "critic optimizer"),
        RUNNING_SUMS,
    ]


@pytest.mark.slow
def test_a_step_touches_nothing_but_the_list_and_nearly_all_of_it(everything):
    """Each variable of the list is there because a step may change it."""
    step = TracedStep(everything.training_step, tf.constant(IMAGES[:4]))
    touched = {id(variable.handle) for variable in step.graph.variables}
    untouched = [
        variable.path
        for name, variables in training_state(everything).items()
        for variable in variables
        if id(variable.value.handle) not in touched and name != RUNNING_SUMS
    ]
    assert untouched == []


VARIABLE = tf.Variable(1.0, name="of_somebody")
GENERATOR = tf.random.Generator.from_seed(1, alg="philox")


class WithOwnOptimizer(vr.VAE):
    """A discriminator as it is written without `Critic`: its optimizer is a plain attribute."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.judge = keras.layers.Dense(1)
        self.judge.build([None, LATENT])
        self.__dict__["judges_optimizer"] = keras.optimizers.SGD(0.1, momentum=0.9)
        self.judges_optimizer.build(self.judge.trainable_variables)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.judge(self.encode(data)))
        variables = self.judge.trainable_variables
        self.judges_optimizer.apply_gradients(
            zip(tape.gradient(loss, variables), variables, strict=True)
        )
        return super().train_step(data)


HIDDEN = {
    "a variable that is read": (Noted(function=VARIABLE.read_value), "of_somebody"),
    "a variable that is only assigned": (Noted(function=lambda: VARIABLE.assign(2.0)), "somebody"),
    "tf.random": (Noted(function=lambda: tf.random.normal([2])), "RandomStandardNormal"),
    "a generator": (Noted(function=lambda: GENERATOR.normal([2])), "StateVar"),
    "keras.random": (Noted(function=lambda: keras.random.normal([2])), "seed_generator_state"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HIDDEN)
def test_a_term_with_hidden_state_is_refused_by_name(case):
    term, name = HIDDEN[case]
    (found,) = refused(make(term))
    assert name in found


@pytest.mark.slow
def test_a_variable_in_a_weight_is_refused():
    assert refused(make(kl=lambda step: VARIABLE * 0.5)) == ["the variable 'of_somebody:0'"]


@pytest.mark.slow
def test_an_optimizer_that_is_a_plain_attribute_is_refused():
    found = refused(make(cls=WithOwnOptimizer))
    assert any("momentum" in name for name in found)
    assert any("iteration" in name for name in found)


@pytest.mark.slow
def test_a_run_is_refused_with_the_cure():
    config = type("Config", (), {"batch_size": 4})()
    with pytest.raises(UsageError, match=r"of_somebody.*no checkpoint holds.*Critic"):
        traced_step(make(Noted(function=VARIABLE.read_value)), config, DATA)


class Forgetful(vr.VAE):
    """A step of somebody that does not end as it has to."""

    def train_step(self, data):
        _, report = self.report(data, training=True, seed=self.step_key())
        return {"loss": tf.reduce_mean(report.loss)}


@pytest.mark.slow
def test_a_step_that_is_not_counted_is_refused():
    with pytest.raises(ValueError, match="did not end with"):
        refused(make(cls=Forgetful))
    model = make(cls=Forgetful)
    with pytest.raises(ValueError, match="did not end with"):
        model.fit(IMAGES, batch_size=4, verbose=0)
