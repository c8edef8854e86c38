"""`python -m uniwetok_hf` is the `uniwetok` command."""

from .cli.main import main


raise SystemExit(main())
