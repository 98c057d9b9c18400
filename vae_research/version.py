"""The version of the package, and the versions of TensorFlow and Keras that it was tested with."""

__version__ = "0.2.0"

# The newest minor versions that all tests have passed with, by the name of the distribution. A run
# and scripts/doctor warn if a newer one is installed.
TESTED = {"tensorflow": "2.21", "keras": "3.15"}
