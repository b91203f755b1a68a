"""Adapt a network to the person in one video: cut the video into a dataset, and train on it for minutes."""
