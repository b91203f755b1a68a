"""Sampling: from noise to a frame, frame after frame, and the crop back into the full frame."""
