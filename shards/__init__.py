"""What a sample is, how it is written, found again and checked. Imports nothing of ours."""
