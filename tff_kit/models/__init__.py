"""What clients train: Keras models."""
