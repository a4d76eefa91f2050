"""Distil any image classifier on the Hugging Face Hub into a DeiT."""

from importlib.metadata import version

__version__ = version("hf_deit")
