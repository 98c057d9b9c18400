"""One run from start to end: directory, training, saving and resuming."""
