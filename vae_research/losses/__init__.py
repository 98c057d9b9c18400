"""Loss terms. A new one is a subclass of `LossTerm`, in the file of the experiment that needs it."""
