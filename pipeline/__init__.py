"""The command line: parses, calls a stage, prints. The only package that knows click and Dask."""
