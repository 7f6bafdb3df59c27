"""The rows of `make bench`: each measures the store and what it is compared with in the same run, in turns."""
