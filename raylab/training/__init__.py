"""The only rooms that know Ray Train: the loop, its state, and the trainer that spreads it over workers."""
