"""A module for each stage of dvc.yaml and each command, what the large ones are made of, what they share."""
