"""What ``stages.edit`` is made of: any video in, its own frames out, and between them a mouth to follow."""
