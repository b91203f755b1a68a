"""Beside stage 1, optional: cut files into clips of one speaking face each, whose sound is in sync."""
