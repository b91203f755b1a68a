"""Metrics of generated frames. Functions take arrays and return numbers; they read and write no files."""
