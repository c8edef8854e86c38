"""`python -m uniwetok_hf` is the `uniwetok` command."""

from .cli.main import main_of_process


raise SystemExit(main_of_process())
