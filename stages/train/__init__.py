"""Stage 6: train a network on shards."""
