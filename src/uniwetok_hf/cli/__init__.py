"""The `uniwetok` command: one file per sub-command, named after it. Slow imports wait until a command runs."""
