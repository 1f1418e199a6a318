"""Texts: masked and uniform diffusion language models."""
