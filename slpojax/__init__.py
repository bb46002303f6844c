"""Preference optimisation in JAX. Nothing is imported here: `slpojax.train` is the program, the rest is its parts."""
