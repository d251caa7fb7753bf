"""`python -m parcontrol.demo`: what `make demo` runs."""

import sys

from parcontrol.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
