"""Media input and output: video, audio, encoding, faces, crops and model weights."""
