"""The command line: parses options, calls a stage, prints. The only package that uses click and Dask."""
