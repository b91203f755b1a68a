"""Figures of what was drawn. Each knows arrays; nothing of networks or files."""
