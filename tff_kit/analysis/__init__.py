"""Tools to look at a training: the clients' updates, and the common parts of the notebooks."""
