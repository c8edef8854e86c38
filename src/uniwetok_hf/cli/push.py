"""`uniwetok push`: a folder with a model, a pipeline or an adapter to the Hub."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from uniwetok_hf.files import whole_file

from .common import CommandError, add_command, hub_bars, one_line, user_errors
from .loading import EMBEDDED, check_pipeline, check_weights, describe_checkpoint, find_checkpoint


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
            "runs/my_mllm/pipeline org/name",
            "runs/my_mllm/pipeline org/name --private --results results --datasets org/pictures",
            "runs/my_tokenizer/model org/tokenizer --revision stage-3",
            "runs/my_style/adapter org/my-style",
        ],
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="what a training, `uniwetok convert` or save_pretrained wrote"
    )
    parser.add_argument("repository", metavar="ORG/NAME", help="repository on the Hub, created when it does not exist")
    parser.add_argument("--private", action="store_true", help="create it as a private repository")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, created when it does not exist (default: main)")
    parser.add_argument(
        "--include-code",
        action="store_true",
        help="also write the branch `with-code`, which loads where this package is not installed",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        metavar="DIR",
        help="results of `uniwetok evaluate`, for the card (or a folder of such folders)",
    )
    parser.add_argument("--card", metavar="FILE", help="write the card to this file and push nothing")
    parser.add_argument("--license", metavar="NAME", help="of the weights (default: apache-2.0)")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="training sets, by their names on the Hub")


def run_push(args: argparse.Namespace) -> None:
    """`uniwetok push`. Everything that can be wrong here is checked before anything is sent."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from uniwetok_hf.cards import card_to_push
    from uniwetok_hf.hub import push_code, upload

    if not Path(args.folder).is_dir() and args.folder != EMBEDDED:
        raise CommandError(f"{args.folder} is no folder")
    with user_errors(HFValidationError):
        validate_repo_id(args.repository)
    is_adapter = (Path(args.folder) / "adapter_config.json").is_file()
    folder, name, filled_in = (adapter_source if is_adapter else model_source)(args)
    given = {"license": args.license, "datasets": args.datasets, "eval_results": args.results}
    given = [field for field, value in given.items() if value]

    def card_for(repository: str, published: Path | None = None):
        """The folder's own README.md, or that on the Hub, or one that is filled in."""
        readme = folder / "README.md"
        with user_errors():
            return card_to_push(filled_in(repository), readme if readme.is_file() else published, given)

    card = card_for(args.repository)
    if args.card:
        write_card(card, Path(args.card))
        return print(args.card)
    with hub_errors(args.repository), hub_bars():
        api, repository = create_repository(args)
        card = card_for(repository, published_card(api, repository, args.revision))
        message = f"Upload {name} with uniwetok-hf"
        commit = upload(folder, repository, card=card, revision=args.revision, commit_message=message)
        if args.include_code:
            push_code(repository, revision=commit.oid)
    print(commit.commit_url)


def model_source(args: argparse.Namespace) -> tuple[Path, str, Callable]:
    """The folder of a model or a pipeline, its name, and the function that fills in its card for a repository.

    Raises:
        CommandError: when the folder is no whole checkpoint.
    """
    from uniwetok_hf.cards import describe_training, model_card

    checkpoint = find_checkpoint(args.folder)
    check_weights(checkpoint.model_folder)
    if checkpoint.kind in ("pipeline", "classes"):
        check_pipeline(checkpoint)
    model = describe_checkpoint(checkpoint)

    def filled_in(repository: str):
        options = {"license": args.license or "apache-2.0", "datasets": args.datasets, "results": args.results}
        return model_card(model, repository, training=describe_training(checkpoint.folder), **options)

    return checkpoint.folder, checkpoint.name, filled_in


def adapter_source(args: argparse.Namespace) -> tuple[Path, str, Callable]:
    """As [`model_source`], for the folder of an adapter."""
    from uniwetok_hf.adapters import load_peft
    from uniwetok_hf.cards import adapter_card

    if given := [option for option in ("include_code", "results") if getattr(args, option)]:
        raise CommandError(f"{args.folder} is an adapter, which takes no --{given[0].replace('_', '-')}")
    folder = Path(args.folder)
    with user_errors(ImportError, TypeError, KeyError):
        config = load_peft().PeftConfig.from_pretrained(folder)
    return folder, folder.resolve().name, lambda name: adapter_card(config, name, args.license, args.datasets)


def create_repository(args: argparse.Namespace) -> tuple:
    """The client of the Hub, and the whole name of the repository, which is created when it does not exist.

    Raises:
        CommandError: for `--private` when it exists as a public one.
    """
    from uniwetok_hf.hub import hub_api

    api = hub_api()
    user = api.whoami()["name"]
    name = args.repository if "/" in args.repository else f"{user}/{args.repository}"
    name = api.create_repo(name, private=args.private or None, exist_ok=True).repo_id
    if args.private and not api.model_info(name).private:
        raise CommandError(f"{name} is there already and is public: make it private on the Hub, or drop --private")
    return api, name


def write_card(card, path: Path) -> None:
    """Writes a card under a temporary name, which is then renamed to `path`."""
    if path.is_dir():
        raise CommandError(f"--card {path} is a folder, not a file")
    with whole_file(path) as temporary:
        card.save(temporary)


def published_card(api, name: str, revision: str | None) -> Path | None:
    """The card that a repository has, of the branch or else of `main`."""
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    for branch in dict.fromkeys((revision, None)):
        with contextlib.suppress(RemoteEntryNotFoundError, RevisionNotFoundError):
            return Path(api.hf_hub_download(name, "README.md", revision=branch))
    return None


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turns refusals of the Hub and broken connections into one line that says what to do."""
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
