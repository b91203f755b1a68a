"""Figures of what was drawn. Arrays in, numbers out; folders and tables are for the stages."""
