"""The KL loss at the four places of a Keras model that the reference text compares."""
