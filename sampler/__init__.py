"""From noise to frames, frame after frame, and the metrics (not written yet; see docs/roadmap.md)."""
