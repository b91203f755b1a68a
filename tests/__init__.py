import os

# As `pipeline` does (pipeline.main), before PyTorch is imported: tests share the cores with each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
