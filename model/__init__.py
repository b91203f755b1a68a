"""The audio-conditioned denoiser. Knows tensors and noise levels; nothing of files, frames or steps."""
