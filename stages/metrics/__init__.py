"""Metrics of mouths and frames. Functions take arrays and return numbers; ``mouth_finder`` keeps a cache."""
