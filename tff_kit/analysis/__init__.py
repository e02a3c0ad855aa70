"""To look at what a training does: clients' updates, and what notebooks begin with."""
