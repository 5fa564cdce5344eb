"""Handcrafted features of videos: noise, DCT bands, sharpness, block boundaries, and what the container says."""
