"""What a reward sees: relaxed texts and relaxed images."""
