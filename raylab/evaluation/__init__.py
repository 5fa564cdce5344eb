"""Judging trained models: what they predict for every clip of a split, and figures of that. Knows no Ray."""
