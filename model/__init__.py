"""The audio-conditioned denoising network and its training, in PyTorch."""
