"""The only rooms that know Ray Tune and Optuna: search-space files to finished sweeps."""
