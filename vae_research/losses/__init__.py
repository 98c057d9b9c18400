"""Loss terms. A new one subclasses `LossTerm`, in the file of the experiment that needs it."""
