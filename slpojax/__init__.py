"""Preference optimisation in JAX. Nothing is imported here: `slpojax.train` is the program, the rest is its parts."""

import os

# Of XLA's own log the fatal errors alone, unless the caller asks for more (JAX's own choice is 1). Its other errors are
# exceptions as well, or none: about every program that a CPU reads back from `config.compiled` it prints pages on two
# "machine features" that are preferences of its own compiler, and where compilation is slow it asks for a bug report.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
