"""Reaching a Ray cluster and knowing what it can give."""
