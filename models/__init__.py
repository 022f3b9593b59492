"""What a model is, to training and serving alike."""
