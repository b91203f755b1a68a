"""What ``stages.fetch`` is made of: who publishes a corpus, how a file comes, how it is unpacked."""
