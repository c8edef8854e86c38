"""`uniwetok train tokenizer|mllm`: trainings as YAML files say."""

import argparse
import dataclasses
from importlib import import_module
from importlib.util import find_spec

from .common import CommandError, add_group, user_errors


# What can be trained: the module, the class of its config, what a finished run has.
TRAININGS = {
    "tokenizer": ("train_uniwetok", "UniWeTokTrainingConfig", "the image tokenizer"),
    "mllm": ("train_mllm", "MLLMTrainingConfig", "the unified language model"),
}
DESCRIPTION = """\
Train {what}, as YAML files say.
Several files are stages, trained one after the other; what is finished is left as it is, and what was interrupted goes
on where it stopped. Under `accelerate launch` (-m uniwetok_hf train {name} ...) it trains on all processes.
"""
EXAMPLES = {
    "tokenizer": [
        "--config emoji_uniwetok_stage1 emoji_uniwetok_stage2 emoji_uniwetok_stage3",
        "--config stage1.yaml --set max_train_steps=100 --set adversarial.weight=0.05 --set prior=null",
    ],
    "mllm": [
        "--config emoji_mllm",
        "--config my_mllm.yaml --set output_dir=runs/second --set seed=1",
        "--config emoji_mllm_draw --lora --set output_dir=runs/adapter",
    ],
}


class _HelpWithFields(argparse.Action):
    """--help, followed by all fields of the config. They are read only when asked for: that takes seconds."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, help="show this help, the configs that ship, and all fields")

    def __call__(self, parser, namespace, values, option_string=None):
        name = parser.prog.split()[-1]
        print(parser.format_help())
        _check_extras()
        from uniwetok_hf.training.config import explain, shipped_configs

        module, config_class, _ = TRAININGS[name]
        print("configs that ship:", ", ".join(shipped_configs()))
        print("\nfields of a config:")
        print("\n".join(explain(getattr(import_module(f"uniwetok_hf.training.{module}"), config_class))))
        parser.exit()


def add_commands(commands) -> None:
    """Adds `train` with a sub-command for each training."""
    kinds = add_group(
        commands,
        "train",
        "Train the image tokenizer or the language model, as YAML files say.\n"
        "An interrupted training goes on where it stopped; needs the extra `train`.",
        [f"tokenizer {EXAMPLES['tokenizer'][0]}", f"mllm {EXAMPLES['mllm'][0]}"],
    )
    for name, (_, _, what) in TRAININGS.items():
        lines = [f"  uniwetok train {name} {example}" for example in EXAMPLES[name]]
        parser = kinds.add_parser(
            name,
            help=what,
            description=DESCRIPTION.format(what=what, name=name),
            epilog="\n".join(["examples:", *lines]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        parser.add_argument("-h", "--help", action=_HelpWithFields)
        parser.add_argument(
            "--config", required=True, nargs="+", metavar="FILE", help="YAML files, or names of configs that ship"
        )
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            type=_assignment,
            metavar="FIELD=VALUE",
            help="change a field of all of them (section.field=value for one in a section); repeat",
        )
        if name == "mllm":
            parser.add_argument(
                "--lora",
                action="store_true",
                help="train adapters in place of the model; the field `lora` says which, and without it the default",
            )
        parser.set_defaults(run=run_train, lora=False)


def _assignment(text: str) -> tuple[str, str]:
    """Argparse type: `field=value`."""
    field, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in field.split(".")):
        raise argparse.ArgumentTypeError(f"must be FIELD=VALUE, got {text!r}")
    return field, value


def _check_extras() -> None:
    if lacking := [name for name in ("datasets", "yaml") if find_spec(name) is None]:
        raise CommandError(f'training needs {" and ".join(lacking)}: pip install "uniwetok-hf[train]"')


def run_train(args: argparse.Namespace) -> None:
    """`uniwetok train`."""
    _check_extras()
    import yaml

    from uniwetok_hf.training.config import find_config, read_config

    module = import_module(f"uniwetok_hf.training.{TRAININGS[args.kind][0]}")
    overrides = {}
    for field, value in args.set:
        with user_errors(yaml.YAMLError, prefix=f"--set {field}={value}: "):
            overrides[field] = yaml.safe_load(value)
    with user_errors(ValueError, OSError, prefix="--config: "):
        paths = [find_config(name) for name in args.config]
    if len(paths) > 1 and "output_dir" in overrides:
        raise CommandError("--set output_dir=... would put several stages into one folder; set it in their files")
    with user_errors(ValueError, OSError, ImportError, FloatingPointError):
        config_class = getattr(module, TRAININGS[args.kind][1])
        configs = [read_config(config_class, path, **overrides) for path in paths]  # all of them, before hours of work
        if args.lora:
            configs = [dataclasses.replace(config, lora=config.lora or module.LoraSettings()) for config in configs]
        for config in configs:
            result = module.finished(config)
            if result is not None and len(configs) > 1:
                print(f"{result} is finished")
                continue
            print(module.train(config))
