"""A plan of a run: `python -m slpojax.plan --config=FILE --topology=NAME`; see `slpojax.plan`."""

from slpojax import plan

if __name__ == "__main__":
    plan.main()
