"""One module per command, or per family of commands, imported when a command is called."""
