"""Functions that return Keras encoders and decoders, made of layers of Keras alone."""
