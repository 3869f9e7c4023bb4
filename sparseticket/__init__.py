"""Find lottery tickets in pre-trained models, train and transfer them, run them fast, and ship them."""

__version__ = "0.1.0"
