"""What every experiment starts from: all keys with their defaults. `slpojax/defaults.py` lists and explains them."""

from slpojax.defaults import get_config

__all__ = ["get_config"]
