"""The command line: commands in `app`, and one module for the work of each larger command."""
