"""What runs within `fit`: the gate against non-finite steps, saves, callbacks and their states."""
