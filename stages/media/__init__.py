"""Media in and out: video, audio, encoding, faces, model weights."""
