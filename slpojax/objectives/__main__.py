"""The table of objectives: `python -m slpojax.objectives [NAME | --markdown]`."""

import sys

from slpojax import table

if __name__ == "__main__":
    try:
        sys.stdout.write(table.main(sys.argv[1:]))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
