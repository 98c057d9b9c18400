"""Models whose steps are traced once for many tests.

A step that runs eagerly takes about 0.1 seconds, and tracing one as long as ten of them.
"""

import functools

from vae_research.state import all_variables


def as_new(make):
    """Returns the model that a function makes, always the same one, in the state of a new one.

    Args:
        make: a function without arguments that returns a compiled model of functional networks. Its
            schedules count in steps: how long an epoch was is not undone.
    """
    model, put_back = _made_by(make)
    put_back()
    return model


@functools.cache
def _made_by(make):
    model = make()
    model.build_optimizer()
    return model, way_back(model)


def way_back(model):
    """Returns a function that puts a model back into the state that it has now."""
    state = [(variable, variable.value.numpy()) for variable in all_variables(model)]
    data_epoch = model.data_epoch

    def put_back():
        for variable, value in state:
            variable.assign(value)
        model.data_epoch = data_epoch

    return put_back
