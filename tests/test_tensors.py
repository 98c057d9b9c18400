"""Named tensors: what is written once, who reads what, and a seed for each reader."""

import warnings
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from vae_research import LossTerm, named
from vae_research.randomness import fold_in
from vae_research.tensors import Tensors, bind, call_module, declared_names

ONE, TWO = tf.constant([[1.0]]), tf.constant([[2.0, 2.0]])


def call(module, tensors, role="decoder", training=False, only_input=None):
    """Returns what a module adds to named tensors."""
    tensors = Tensors(tensors)
    before = set(tensors)
    call_module(role, module, tensors, training=training, only_input=only_input)
    return {name: tensors[name] for name in tensors.keys() - before}


def bound(function, tensors, **settings):
    return {
        name: v.numpy().tolist() for name, v in bind("r", function, tensors, **settings).items()
    }


class Concatenate(keras.layers.Layer):
    """A layer as a user writes it: `call` names what it reads."""

    def call(self, z, labels):
        return {"both": tf.concat([z, labels], axis=-1)}


# Writing.


def test_a_name_is_written_once():
    tensors = Tensors(inputs=ONE, z=ONE)
    with pytest.raises(ValueError, match=r"The decoder writes 'z', which the forward pass has alr"):
        tensors.write("decoder", {"logits": TWO, "z": TWO})
    assert tensors.keys() == {"inputs", "z"}, "nothing of it was written"
    np.testing.assert_array_equal(tensors["z"], ONE)
    tensors.write("decoder", {"logits": TWO})
    np.testing.assert_array_equal(tensors["logits"], TWO)


def test_module_that_overwrites_is_refused_with_all_names_and_the_cure():
    class Overwrite(keras.layers.Layer):
        def call(self, z):
            return {"z": z, "inputs": z}

    with pytest.raises(
        ValueError, match=r"The decoder writes 'inputs', 'z'.*inputs, z\..*named\(n"
    ):
        call(Overwrite(), {"z": ONE, "inputs": ONE})


# Reading: methods of terms.


def test_method_reads_the_tensors_that_its_parameters_name():
    class Term(LossTerm):
        def per_example(self, kl, z):
            return kl[:, 0] + z[:, 0]

    tensors = {"z": ONE, "kl": TWO, "other": ONE}
    assert bound(Term().per_example, tensors) == {"kl": [[2.0, 2.0]], "z": [[1.0]]}
    assert declared_names(Term().per_example) == ["kl", "z"]


def test_rename_reads_another_tensor_under_the_parameter_name():
    assert bound(lambda kl: kl, {"kl": ONE, "kl_top": TWO}, rename={"kl": "kl_top"}) == {
        "kl": [[2.0, 2.0]]
    }


def test_missing_name_lists_what_was_written_in_order_and_the_nearest():
    with pytest.raises(ValueError) as error:
        bind("loss term 'x'", lambda z_men: z_men, {"z_mean": ONE, "inputs": ONE, "kl": ONE})
    assert str(error.value) == (
        "The loss term 'x' reads 'z_men', but the forward pass wrote inputs, kl, z_mean. "
        "Did you mean 'z_mean'?"
    )


def test_missing_name_that_is_near_nothing_has_no_guess():
    with pytest.raises(ValueError) as error:
        bind("decoder", lambda labels: labels, {"z": ONE})
    assert str(error.value) == "The decoder reads 'labels', but the forward pass wrote z."


@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (lambda z, scale=1.0: z, "scale=1.0"),
        (lambda *tensors: tensors, r"\*tensors"),
        (lambda z, **tensors: z, r"\*\*tensors"),
    ],
    ids=["default", "star", "two stars"],
)
def test_signature_that_does_not_name_tensors_is_refused(function, parameter):
    with pytest.raises(TypeError, match=f"has the parameter '{parameter}'"):
        declared_names(function)


def test_reading_passes_values_and_gradients_on_and_leaves_a_plain_dictionary_alone():
    tensors = {"z": ONE}
    first = bind("a", lambda z: z, tensors)["z"]
    assert tensors == {"z": ONE}
    assert tensors["z"] is ONE
    np.testing.assert_array_equal(first, ONE)


def test_gradients_of_many_readers_add_up():
    z = tf.constant([3.0])
    with tf.GradientTape() as tape:
        tape.watch(z)
        tensors = Tensors(z=z)
        # d/dz of z + 2 z + 3 z + 4 z is 10.
        total = sum(k * tensors.tap(f"reader {k}", "z") for k in (1.0, 2.0, 3.0, 4.0))
    np.testing.assert_array_equal(tape.gradient(total, z), [10.0])


def test_all_readers_depend_on_a_tensor_as_it_was_written():
    x = tf.constant([3.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        tensors = Tensors(inputs=x)
        tensors.write("encoder", {"z": 5.0 * x})
        first, last = tensors.tap("first", "z"), tensors.tap("last", "z")
        total = 2.0 * first + 3.0 * last
    assert tensors.written.keys() == {"z"}
    np.testing.assert_array_equal(tape.gradient(total, tensors.written["z"]), [5.0])
    # The mutant, what the dictionary has afterwards, is only what the last reader was given.
    np.testing.assert_array_equal(tape.gradient(total, tensors["z"]), [3.0])


def test_every_tensor_has_at_most_two_consumers_in_a_graph():
    # A gradient that is a sum of three or more has no fixed order of addition.
    @tf.function
    def readers(z):
        tensors = Tensors(z=z)
        return [tensors.tap(f"reader {k}", "z") * 2.0 for k in range(5)]

    graph = readers.get_concrete_function(tf.TensorSpec([3])).graph
    consumers = [len(output.consumers()) for op in graph.get_operations() for output in op.outputs]
    assert max(consumers) == 2
    # The mutant, everybody at the same tensor, has one with five.
    mutant = tf.function(lambda z: [z * float(k) for k in range(5)])
    graph = mutant.get_concrete_function(tf.TensorSpec([3])).graph
    assert len(graph.inputs[0].consumers()) == 5


# Reading: Keras networks of every kind.


def test_functional_model_of_one_input_reads_by_its_name():
    inputs = keras.Input((1,), name="labels")
    network = keras.Model(inputs, {"doubled": keras.layers.Rescaling(2.0)(inputs)})
    assert call(network, {"z": TWO, "labels": ONE}, only_input="z")["doubled"].numpy() == [[2.0]]


def test_functional_model_of_one_unnamed_input_reads_what_its_role_is_for():
    inputs = keras.Input((1,))
    network = keras.Model(inputs, {"doubled": keras.layers.Rescaling(2.0)(inputs)})
    assert call(network, {"z": ONE}, only_input="z")["doubled"].numpy() == [[2.0]]
    with pytest.raises(ValueError, match=r"The module 0 reads 'keras_tensor.*', but the forward"):
        call(network, {"z": ONE}, role="module 0")


def test_input_that_is_called_inputs_is_the_one_of_its_role():
    # `inputs` is what Keras calls the argument of any layer: a decoder's is z all the same.
    inputs = keras.Input((1,), name="inputs")
    network = keras.Model(inputs, {"doubled": keras.layers.Rescaling(2.0)(inputs)})
    assert call(network, {"inputs": TWO, "z": ONE}, only_input="z")["doubled"].numpy() == [[2.0]]


@pytest.mark.parametrize("structure", ["list", "dictionary", "nested"])
def test_functional_model_of_many_inputs_reads_each_by_its_name(structure):
    z, labels = keras.Input((1,), name="z"), keras.Input((2,), name="labels")
    # Neither the order of the inputs nor that of their names is the order of the tensors.
    inputs = {
        "list": [z, labels],
        "dictionary": {"z": z, "labels": labels},
        "nested": [{"q": z}, labels],
    }
    network = keras.Model(inputs[structure], {"both": keras.layers.Concatenate()([z, labels])})
    both = call(network, {"labels": TWO, "inputs": TWO, "z": ONE})["both"]
    assert both.numpy().tolist() == [[1.0, 2.0, 2.0]]


def test_functional_model_that_misses_an_input_says_which():
    z, labels = keras.Input((1,), name="z"), keras.Input((2,), name="labels")
    network = keras.Model([z, labels], {"both": keras.layers.Concatenate()([z, labels])})
    with pytest.raises(
        ValueError, match=r"The decoder reads 'labels', but.* wrote label, z\..*label"
    ):
        call(network, {"z": ONE, "label": TWO}, only_input="z")


def test_sequential_model_reads_what_its_role_is_for():
    network = named(keras.Sequential([keras.layers.Rescaling(3.0)]), "logits")
    assert call(network, {"z": ONE, "inputs": TWO}, only_input="z")["logits"].numpy() == [[3.0]]


def test_subclassed_layer_reads_by_the_parameters_of_call():
    both = call(Concatenate(), {"labels": TWO, "inputs": TWO, "z": ONE}, only_input="z")["both"]
    assert both.numpy().tolist() == [[1.0, 2.0, 2.0]]


def test_subclassed_layer_of_one_parameter_reads_by_name_or_by_role():
    class ByName(keras.layers.Layer):
        def call(self, labels):
            return {"out": labels}

    class ByRole(keras.layers.Layer):
        def call(self, x):
            return {"out": x}

    tensors = {"z": ONE, "labels": TWO}
    assert call(ByName(), tensors, only_input="z")["out"].shape == [1, 2]
    assert call(ByRole(), tensors, only_input="z")["out"].shape == [1, 1]


def test_training_and_optional_parameters_of_a_layer_are_no_tensors():
    seen = []

    class Layer(keras.layers.Layer):
        def call(self, z, factor=2.0, training=False, mask=None):
            seen.append(training)
            return {"out": factor * z}

    for training in (True, False):
        assert call(Layer(), {"z": ONE}, training=training)["out"].numpy() == [[2.0]]
    assert seen == [True, False]


@pytest.mark.parametrize("wrapped", [False, True])
def test_training_reaches_a_dropout_layer(wrapped):
    inputs = keras.Input((400,), name="z")
    dropped = keras.layers.Dropout(0.5, seed=1)(inputs)
    network = keras.Model(inputs, dropped if wrapped else {"out": dropped})
    network = named(network, "out") if wrapped else network
    ones = {"z": tf.ones([1, 400])}
    # Dropout that trains scales what it keeps by 1 / (1 - rate) = 2 and drops the rest.
    assert set(np.unique(call(network, ones, training=True)["out"])) == {0.0, 2.0}
    assert set(np.unique(call(network, ones, training=False)["out"])) == {1.0}


def test_layer_with_keyword_arguments_beside_its_tensor_reads_the_tensor():
    class Keywords(keras.layers.Layer):
        def call(self, inputs, **kwargs):
            return {"out": inputs}

    assert call(Keywords(), {"z": ONE}, only_input="z")["out"].numpy() == [[1.0]]


# Outputs without names, and named().


@pytest.mark.parametrize(
    ("outputs", "count"),
    [(lambda x: x, "1 tensor "), (lambda x: [x, x], "2 tensors "), (lambda x: (x,), "1 tensor ")],
)
def test_outputs_without_names_are_refused_with_the_cure(outputs, count):
    class Nameless(keras.layers.Layer):
        def call(self, z):
            return outputs(z)

    with pytest.raises(
        TypeError, match=rf"The decoder 'nameless.*' returned {count}without.*named\("
    ):
        call(Nameless(), {"z": ONE})


def three_outputs():
    inputs = keras.Input((1,), name="inputs")
    scaled = [keras.layers.Rescaling(k)(inputs) for k in (1.0, 2.0, 3.0)]
    return keras.Model(inputs, scaled, name="three")


def test_named_gives_names_to_a_tuple_in_its_order():
    outputs = call(named(three_outputs(), "a", "b", "c"), {"inputs": ONE}, role="encoder")
    assert {name: float(v[0, 0]) for name, v in outputs.items()} == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_none_drops_an_output_of_a_tuple_and_a_part_of_a_split():
    outputs = call(named(three_outputs(), None, "b", None), {"inputs": ONE})
    assert {name: float(v[0, 0]) for name, v in outputs.items()} == {"b": 2.0}
    split = call(
        named(keras.layers.Rescaling(1.0), None, "right"),
        {"z": [[1.0, 2.0, 3.0, 4.0]]},
        only_input="z",
    )
    assert split.keys() == {"right"}
    np.testing.assert_array_equal(split["right"], [[3.0, 4.0]])


def test_named_splits_a_single_tensor_along_its_last_axis_into_equal_parts():
    values = tf.reshape(tf.range(12.0), [2, 6])
    split = call(
        named(keras.layers.Rescaling(1.0), "m", "v"), {"inputs": values}, only_input="inputs"
    )
    np.testing.assert_array_equal(split["m"], values[:, :3])
    np.testing.assert_array_equal(split["v"], values[:, 3:])


def test_single_name_of_a_single_tensor_is_the_whole_of_it():
    outputs = call(named(keras.layers.Rescaling(1.0), "logits"), {"z": TWO}, only_input="z")
    np.testing.assert_array_equal(outputs["logits"], TWO)


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c", "d")])
def test_wrong_number_of_names_says_both_numbers(names):
    with pytest.raises(
        ValueError, match=rf"'three' returns 3 tensors.*given {len(names)} names.*'a'"
    ):
        call(named(three_outputs(), *names), {"inputs": ONE})


def test_same_name_for_two_outputs_is_refused():
    with pytest.raises(ValueError, match="'a'"):
        call(named(three_outputs(), "a", "a", "c"), {"inputs": ONE})


def test_tensor_that_does_not_split_into_equal_parts_says_so_by_name():
    network = named(keras.layers.Rescaling(1.0, name="odd"), "m", "v")
    with pytest.raises(ValueError, match=r"'odd'.* 'm', 'v'"):
        call(network, {"z": [[1.0, 2.0, 3.0]]}, only_input="z")


def test_named_model_reads_what_the_network_inside_reads():
    z, labels = keras.Input((1,), name="z"), keras.Input((2,), name="labels")
    network = named(keras.Model([z, labels], keras.layers.Concatenate()([z, labels])), "both")
    assert call(network, {"labels": TWO, "z": ONE})["both"].numpy().tolist() == [[1.0, 2.0, 2.0]]

    class Add(keras.layers.Layer):
        def call(self, z, labels):
            return z + labels

    outputs = call(named(Add(), "sum"), {"labels": TWO, "z": ONE, "inputs": TWO})
    assert outputs["sum"].numpy().tolist() == [[3.0, 3.0]]


def test_reads_names_the_inputs_of_a_network_that_does_not():
    class Subtract(keras.layers.Layer):
        def call(self, a, b):
            return a - b

    network = named(Subtract(), "difference", reads=["labels", "z"])
    outputs = call(network, {"z": ONE, "labels": TWO})
    assert outputs["difference"].numpy().tolist() == [[1.0, 1.0]]  # 2 - 1


def test_named_network_without_weights_yet_is_built_by_its_first_call_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(named(keras.layers.Dense(2), "logits"), {"z": ONE}, only_input="z")


def test_network_inside_named_stays_as_it_is_and_its_variables_are_trained():
    dense = keras.layers.Dense(4)
    network = named(dense, "z_mean", "z_log_var")
    assert network.network is dense
    call(network, {"inputs": tf.ones([1, 3])}, role="encoder", only_input="inputs")
    assert network.count_params() == 3 * 4 + 4
    assert len(network.trainable_variables) == 2


def test_named_network_is_saved_and_loaded_with_its_weights(tmp_path):
    inputs = keras.Input((3,), name="inputs")
    inside = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    network = named(inside, "z_mean", None, reads=["inputs"])
    images = tf.constant([[1.0, -2.0, 0.5]])
    before = network(images)
    network.save(tmp_path / "named.keras")
    loaded = keras.models.load_model(tmp_path / "named.keras")
    assert (loaded.outputs_in_order, loaded.reads) == (["z_mean", None], ["inputs"])
    np.testing.assert_array_equal(loaded(images)["z_mean"], before["z_mean"])


# Seeds.


def keys(*readers, seed=(7, 5)):
    tensors = Tensors(seed=tf.constant(seed, tf.int64))
    return [tuple(tensors.tap(reader, "seed").numpy().tolist()) for reader in readers]


def test_each_reader_has_a_key_of_its_own_and_the_same_reader_the_same():
    bottleneck, decoder, term = keys("bottleneck", "decoder", "loss term 'kl'")
    assert len({bottleneck, decoder, term}) == 3
    assert keys("decoder", "bottleneck", "decoder") == [decoder, bottleneck, decoder]


def test_key_of_a_reader_is_that_of_the_step_with_the_purpose_in_the_upper_bits():
    # crc32("bottleneck") from the checksum's definition by way of zlib; its upper 31 bits fill the
    # upper word, so that no run's seed (below 2^32) reaches them and the key stays positive.
    ((first, second),) = keys("bottleneck", seed=(7, 5))
    assert (first & 0xFFFFFFFF, second) == (7, 5)
    assert first >> 32 == zlib.crc32(b"bottleneck") >> 1


@pytest.mark.parametrize("seed", [(0, 0), (2**32 - 1, 2**62)])
def test_keys_of_extreme_seeds_stay_in_range_and_differ(seed):
    readers = [f"module {index}" for index in range(200)]
    found = keys(*readers, seed=seed)
    assert len(set(found)) == 200
    assert all(first >= 0 for first, _ in found)


def test_keys_of_different_runs_or_steps_differ_for_every_reader():
    readers = ["bottleneck", "decoder", "module 0"]
    streams = [keys(*readers, seed=seed) for seed in ((7, 5), (8, 5), (7, 6))]
    assert len({key for stream in streams for key in stream}) == 9


@pytest.mark.slow
def test_fold_in_is_the_same_in_a_compiled_function():
    seed = tf.constant([7, 5], tf.int64)
    for jit_compile in (False, True):
        compiled = tf.function(lambda key: fold_in(key, "a"), jit_compile=jit_compile)
        np.testing.assert_array_equal(compiled(seed), fold_in(seed, "a"))


def test_layers_that_draw_noise_draw_their_own():
    class Noise(keras.layers.Layer):
        def call(self, z, seed):
            return {self.name: z + tf.random.stateless_normal([1000, 1], seed, alg="philox")}

    tensors = Tensors(z=tf.zeros([1000, 1]), seed=tf.constant([7, 5], tf.int64))
    for index, name in enumerate(("one", "two")):
        call_module(f"module {index}", Noise(name=name), tensors, training=False)
    pair = np.corrcoef(tensors["one"][:, 0], tensors["two"][:, 0])[0, 1]
    assert abs(pair) < 4 / np.sqrt(1000)  # the mutant, one key for all, has a correlation of 1
