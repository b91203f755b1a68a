"""Stage 8: score generated clips beside the ground truth and baselines."""
