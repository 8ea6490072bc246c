"""The simulator: the whole card in one process on virtual time (`apf sim`)."""
