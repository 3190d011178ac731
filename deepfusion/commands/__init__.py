"""The commands, one module and one function of its name each; what is slow to import is imported when a command runs."""
