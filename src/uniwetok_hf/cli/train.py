"""`uniwetok train tokenizer|mllm|class-to-image`: trainings that YAML files configure."""

import argparse
import contextlib
import dataclasses
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from uniwetok_hf.signals import Stopped

from .common import CommandError, add_group, load_package, user_errors


# What can be trained: the module of the trainer, the class of its config, and what it trains.
TRAINERS = {
    "tokenizer": ("train_uniwetok", "UniWeTokTrainingConfig", "the image tokenizer"),
    "mllm": ("train_mllm", "MLLMTrainingConfig", "the unified language model"),
    "class-to-image": ("train_class_to_image", "ClassToImageTrainingConfig", "the class-to-image model"),
}
DESCRIPTION = """\
Train {what} with the settings of YAML files.
Several files are stages, trained one after the other: finished stages are skipped, and an interrupted one is resumed.
Under `accelerate launch` (-m uniwetok_hf train {name} ...) it trains on all processes.
"""
EXAMPLES = {
    "tokenizer": [
        "--config small_uniwetok",
        "--config stage1.yaml stage2.yaml stage3.yaml",
        "--config stage1.yaml --set max_train_steps=100 --set adversarial.weight=0.05 --set prior=null",
    ],
    "mllm": [
        "--config small_mllm",
        "--config my_mllm.yaml --set output_dir=runs/second --set seed=1",
        "--config small_lora --set output_dir=runs/adapter",
    ],
    "class-to-image": [
        "--config small_class_to_image",
        "--config imagenet_b --set output_dir=runs/b --set gradient_accumulation_steps=2",
    ],
}


MOVED = (  # names that begin with emoji_, shipped at 84bac22
    "the recipe of the embedded model is examples/emoji of the repository, where LOG.md names the commit of the "
    "configs that are gone; emoji_mllm_lora is now small_lora"
)


class _HelpWithFields(argparse.Action):
    """--help, followed by all fields of the config. The fields need the trainer, whose import takes seconds."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, help="show this help, the shipped configs, and all fields")

    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.format_help(), flush=True)
        load_package()
        _, config_class = _import_trainer(parser.prog.split()[-1])
        from uniwetok_hf.training.config import explain, shipped_configs

        print("shipped configs:", ", ".join(shipped_configs()))
        print("\nfields of a config:")
        print("\n".join(explain(config_class)))
        parser.exit()


def add_commands(commands) -> None:
    """Adds `train` with a sub-command for each trainer."""
    kinds = add_group(
        commands,
        "train",
        "Train the image tokenizer, the language model or the class-to-image model with the settings of YAML files.\n"
        "An interrupted training is resumed by the same command; needs the extra `train`.",
        [f"tokenizer {EXAMPLES['tokenizer'][0]}", f"mllm {EXAMPLES['mllm'][0]}"],
    )
    for name, (_, _, what) in TRAINERS.items():
        examples = [f"  uniwetok train {name} {example}" for example in EXAMPLES[name]]
        parser = kinds.add_parser(
            name,
            help=what,
            description=DESCRIPTION.format(what=what, name=name),
            epilog="\n".join(["examples:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        parser.add_argument("-h", "--help", action=_HelpWithFields)
        parser.add_argument(
            "--config", required=True, nargs="+", metavar="FILE", help="YAML files, or names of shipped configs"
        )
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            type=_assignment,
            metavar="FIELD=VALUE",
            help="override a field of all configs (section.field=value for one in a section); repeat",
        )
        if name == "mllm":
            parser.add_argument(
                "--lora",
                action="store_true",
                help="train adapters instead of the model, as the field `lora` says, by default with its defaults",
            )
        parser.set_defaults(run=run_train, parser=parser, lora=False)


def _assignment(text: str) -> tuple[str, str]:
    """Argparse type: `field=value`."""
    field, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in field.split(".")):
        raise argparse.ArgumentTypeError(f"must be FIELD=VALUE, got {text!r}")
    return field, value


def _import_trainer(name: str) -> tuple:
    """The module of a trainer and the class of its config."""
    if lacking := [package for package in ("datasets", "yaml") if find_spec(package) is None]:
        raise CommandError(f'training needs {" and ".join(lacking)}: pip install "uniwetok-hf[train]"')
    module_name, class_name, _ = TRAINERS[name]
    module = import_module(f"uniwetok_hf.training.{module_name}")
    return module, getattr(module, class_name)


def read_training_config(kind: str, path: Path, overrides: dict):
    """The config of a file; an error says where a config has moved, or which training the file is for."""
    from uniwetok_hf.training.config import ConfigError, read_config

    try:
        return read_config(_import_trainer(kind)[1], path, **overrides)
    except ConfigError as error:
        if "`base` emoji_" in str(error):
            raise ConfigError(f"{error} As to emoji_*: {MOVED}.") from None
        for other in TRAINERS:
            with contextlib.suppress(ValueError):
                if other != kind and read_config(_import_trainer(other)[1], path):
                    raise CommandError(f"{path} is a config of `uniwetok train {other}`") from None
        raise


def run_train(args: argparse.Namespace) -> None:
    """`uniwetok train`."""
    module, _ = _import_trainer(args.kind)
    from uniwetok_hf.training.config import find_config, parse_yaml
    from uniwetok_hf.training.run import forget_stage
    from uniwetok_hf.training.stage import finished

    overrides = {}
    for field, value in args.set:
        with user_errors():
            overrides[field] = parse_yaml(value, f"--set {field}={value}")
    with user_errors(ValueError, OSError, prefix="--config: "):
        for name in args.config:
            if name.startswith("emoji_") and not Path(name).exists():
                raise CommandError(f"--config {name}: {MOVED}")
        paths = [find_config(name) for name in args.config]
    if len(paths) > 1 and "output_dir" in overrides:
        raise CommandError("--set output_dir=... would put several stages into one folder; set it in their files")
    with user_errors(ValueError, OSError, ImportError, FloatingPointError):
        configs = [
            read_training_config(args.kind, path, overrides) for path in paths
        ]  # all of them, before hours of work
        if args.lora:
            from uniwetok_hf.training.lora import LoraSettings

            configs = [dataclasses.replace(config, lora=config.lora or LoraSettings()) for config in configs]
        if len({config.process_timeout_minutes for config in configs}) > 1:
            raise CommandError("stages of one command have one `process_timeout_minutes`: processes meet but once")
        for config in configs:
            result = finished(config)
            if result is not None and len(configs) > 1:
                print(f"{result} is finished")
                continue
            try:
                print(module.train(config))
                if config is not configs[-1]:
                    forget_stage()
            except Stopped:
                if config is not configs[-1] or (result := finished(config)) is None:
                    raise
                print(result)  # the signal came when nothing was left to stop
