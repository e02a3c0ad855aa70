"""A training from its settings to its run directory: rounds, participation, evaluation, logs."""
