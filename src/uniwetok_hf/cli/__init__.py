"""The `uniwetok` command: one file a group of sub-commands. What is slow to import is imported when a command runs."""
