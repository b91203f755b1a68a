"""From noise to frames, frame after frame, back into the picture; and figures of what was drawn."""
