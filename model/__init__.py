"""The audio-conditioned denoiser and its training loop (not written yet; see docs/roadmap.md)."""
