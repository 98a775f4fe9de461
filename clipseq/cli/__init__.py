"""The command line: the commands are in `app`; each larger one has a module for its work."""
