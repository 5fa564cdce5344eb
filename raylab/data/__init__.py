"""Annotation files to clips, clips to frames, frames to batches. Nothing here knows Ray."""
