"""Stage 9: one HTML page that shows the data, the training and the results."""
