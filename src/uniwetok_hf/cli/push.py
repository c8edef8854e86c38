"""`uniwetok push`: a folder with a model or a pipeline to the Hub."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from .common import CommandError, add_command, hub_bars, one_line, user_errors
from .loading import EMBEDDED, Checkpoint, check_pipeline, check_weights, describe_checkpoint, find_checkpoint


LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "push",
        run_push,
        "Put a pipeline, an image tokenizer, a language model or an adapter on the Hub, with a model card.\n"
        "All files of the folder go in one commit; its own README.md stays, completed by metadata that it lacks.",
        [
            "runs/emoji_mllm/pipeline org/name",
            "runs/emoji_mllm/pipeline org/name --private --results results --datasets org/emoji",
            "runs/emoji_uniwetok_stage3/model org/tokenizer --revision stage-3",
            "runs/my_style/adapter org/my-style",
        ],
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="what a training, `uniwetok convert` or save_pretrained wrote"
    )
    parser.add_argument("repository", metavar="ORG/NAME", help="repository on the Hub, made when it isn't there")
    parser.add_argument("--private", action="store_true", help="make it a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made when it isn't there (default: main)")
    parser.add_argument(
        "--include-code",
        action="store_true",
        help="also write the branch `with-code`, which loads where this package is not installed",
    )
    parser.add_argument(
        "--results", nargs="+", metavar="DIR", help="results of `uniwetok evaluate`, for the card (as `results/emoji`)"
    )
    parser.add_argument(
        "--card", metavar="FILE", help="write the card there and send nothing: to read it, or to go on writing it"
    )
    parser.add_argument("--license", metavar="NAME", help="of the weights (default: apache-2.0)")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="training sets, as the Hub calls them")


def run_push(args: argparse.Namespace) -> None:
    """`uniwetok push`."""
    from uniwetok_hf.hub import upload
    from uniwetok_hf.remote_code import push_code

    if not Path(args.folder).is_dir() and args.folder != EMBEDDED:
        raise CommandError(f"{args.folder} is no folder")
    if (Path(args.folder) / "adapter_config.json").is_file():
        return push_adapter(args)
    checkpoint = find_checkpoint(args.folder, ("pipeline", "vision", "mllm"))
    check_weights(checkpoint.model_folder)
    if checkpoint.kind == "pipeline":
        check_pipeline(checkpoint)
    check_name(args.repository)
    model = describe_checkpoint(checkpoint)
    # What is wrong is told before anything is sent.
    card = make_card(model, checkpoint, args.repository, None, args)
    if args.card:
        write_card(card, Path(args.card))
        return print(args.card)
    with hub_errors(args.repository), hub_bars():
        api, name = made_repository(args)
        card = make_card(model, checkpoint, name, published_card(api, name, args.revision), args)
        commit = upload(
            checkpoint.folder,
            name,
            card=card,
            revision=args.revision,
            commit_message=f"Upload {checkpoint.name} with uniwetok-hf",
        )
        if args.include_code:
            push_code(name, revision=commit.oid)
    print(commit.commit_url)


def check_name(repository: str) -> None:
    """Raises a `CommandError` for what can't be the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    with user_errors(HFValidationError):
        validate_repo_id(repository)


def made_repository(args: argparse.Namespace) -> tuple:
    """The Hub's client, and the whole name of the repository, which is made when it isn't there.

    Raises:
        CommandError: when it was to be private and is there as a public one.
    """
    from uniwetok_hf.hub import hub_api

    api = hub_api()
    user = api.whoami()["name"]
    name = args.repository if "/" in args.repository else f"{user}/{args.repository}"
    name = api.create_repo(name, private=args.private or None, exist_ok=True).repo_id
    if args.private and not api.model_info(name).private:
        raise CommandError(f"{name} is there already and is public: make it private on the Hub, or drop --private")
    return api, name


def push_adapter(args: argparse.Namespace) -> None:
    """An adapter, with a card as that of a model."""
    from uniwetok_hf.adapters import load_peft
    from uniwetok_hf.cards import adapter_card
    from uniwetok_hf.hub import upload

    if given := [f"--{name}" for name in ("include_code", "results") if getattr(args, name)]:
        raise CommandError(f"{args.folder} is an adapter, which takes no {given[0].replace('_', '-')}")
    check_name(args.repository)
    folder = Path(args.folder)
    with user_errors(ImportError, TypeError, KeyError):
        config = load_peft().PeftConfig.from_pretrained(folder)

    def card_for(name: str, published: Path | None):
        filled_in = adapter_card(config, name, args.license, args.datasets)
        return own_or_filled_in(filled_in, folder, published, {"license": args.license, "datasets": args.datasets})

    card = card_for(args.repository, None)
    if args.card:
        write_card(card, Path(args.card))
        return print(args.card)
    with hub_errors(args.repository), hub_bars():
        api, name = made_repository(args)
        card = card_for(name, published_card(api, name, args.revision))
        message = f"Upload {folder.resolve().name} with uniwetok-hf"
        commit = upload(folder, name, card=card, revision=args.revision, commit_message=message)
    print(commit.commit_url)


def make_card(model, checkpoint: Checkpoint, name: str, published: Path | None, args: argparse.Namespace):
    """The card of `model`: the folder's own README.md, or that on the Hub, or one filled in from all that is known.

    Raises:
        CommandError: when results, the record of the training or the card's metadata can't be read.
    """
    from uniwetok_hf.cards import describe_training, model_card

    given = {"license": args.license, "datasets": args.datasets, "eval_results": args.results}
    with user_errors():
        filled_in = model_card(
            model,
            name,
            license=args.license or "apache-2.0",
            datasets=args.datasets,
            results=args.results,
            training=describe_training(checkpoint.folder),
        )
    return own_or_filled_in(filled_in, checkpoint.folder, published, given)


def own_or_filled_in(filled_in, folder: Path, published: Path | None, given: Mapping[str, object]):
    """The card of the folder, or the `published` one, or the one that is `filled_in`; `given` are the options that set
    fields of it."""
    from uniwetok_hf.cards import card_to_push

    readme = folder / "README.md"
    with user_errors():
        return card_to_push(
            filled_in,
            readme if readme.is_file() else published,
            [field for field, value in given.items() if value],
        )


def write_card(card, path: Path) -> None:
    """Writes a card under a temporary name, which is then that of `path`."""
    if path.is_dir():
        raise CommandError(f"--card {path} is a folder, not a file")
    temporary = path.with_name(f".{path.name}.tmp")
    card.save(temporary)
    temporary.replace(path)


def published_card(api, name: str, revision: str | None) -> Path | None:
    """The card that a repository has, of the branch or else of `main`."""
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    for branch in dict.fromkeys((revision, None)):
        with contextlib.suppress(RemoteEntryNotFoundError, RevisionNotFoundError):
            return Path(api.hf_hub_download(name, "README.md", revision=branch))
    return None


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """What the Hub refuses, and what happens on the way there, as one line that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise CommandError(f"pushing to {name} needs a token of yours: {LOG_IN}") from error
    except OfflineModeIsEnabled as error:
        raise CommandError("HF_HUB_OFFLINE is set: nothing can be pushed") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise CommandError(f"the Hub does not know your token: {LOG_IN}") from error
        if status in (403, 404):
            raise CommandError(f"your token may not write to {name}: {one_line(error)}") from error
        raise CommandError(f"the Hub refused {name}: {one_line(error)}") from error
    except (HTTPError, RuntimeError) as error:
        why = one_line(error.__cause__ or error)
        raise CommandError(f"the connection to the Hub failed ({why}): the same command goes on from there") from error
