"""Images: masked models of the tokens of a VQ model."""
