# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The `uniwetok` command, which answers `--help`, `--version` and wrong arguments without importing torch.

`import uniwetok_hf` registers the Auto classes, and so it imports torch and transformers, which takes seconds. The
parser is in `uniwetok_hf.cli`, and Python executes the `__init__` of a package before it imports a module of the
package. So this module puts the package into `sys.modules` with its `__init__` not yet executed. `uniwetok_hf.cli`
executes it when the command line is parsed and a command is about to run (`load_package`). From then on all is as
after a plain `import uniwetok_hf`.

This is a top-level module because any module of the package would be too late. `python -m uniwetok_hf` is the same
command without the shortcut: Python imports the package before `__main__`.
"""

import importlib.util
import sys


def main() -> int:
    """Runs the command of `sys.argv` and returns the exit code."""
    if "uniwetok_hf" not in sys.modules:
        spec = importlib.util.find_spec("uniwetok_hf")
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    from uniwetok_hf.cli.main import main_of_process

    return main_of_process()


if __name__ == "__main__":
    raise SystemExit(main())
