"""`sottovoce pull`: fetch a model, with the optional package huggingface_hub."""

from typing import Any

import click

from .options import option, quiet_option

# Weights that this program reads, descriptions and tokenizers: never code.
_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*.json", "*.gguf")


@click.command()
@click.argument("repository")
@option("--revision", help="A branch, tag or commit; a commit never changes.")
@option("--file", envvar="SOTTOVOCE_PULL_FILE", help="Only this file (a .gguf among several).")
@option("--to", type=click.Path(file_okay=False), help="Directory.  [default: Hugging Face's cache]")
@quiet_option
def pull(repository: str, revision: str | None, file: str | None, to: str | None, quiet: bool) -> None:
    """Fetch REPOSITORY (owner/name) from Hugging Face and print where it is, for `sottovoce serve`.

    Everything else in this program works without a network; this needs `pip install sottovoce[hub]`.
    """
    from .console import Console

    console = Console(quiet)
    console.note(f"fetching {repository} …")
    print(fetch(repository, revision, file, to))


def fetch(repository: str, revision: str | None, name: str | None, to: str | None) -> str:
    """The directory or file. UsageError without the package or for an unknown name, PeerConnectionError
    without a network."""
    from ..errors import PeerConnectionError, UnknownModelError, UsageError

    try:
        hub: Any = __import__("huggingface_hub")
    except ImportError:
        raise UsageError("pull needs the package huggingface_hub; run: pip install sottovoce[hub]") from None
    try:
        if name is not None:
            return str(hub.hf_hub_download(repository, name, revision=revision, local_dir=to))
        return str(
            hub.snapshot_download(repository, revision=revision, local_dir=to, allow_patterns=list(_PATTERNS))
        )
    except OSError as error:
        # Both the hub's own errors and those of the network below are OSErrors; they differ in their names.
        kind = type(error).__name__
        if any(word in kind for word in ("RepositoryNotFound", "RevisionNotFound", "EntryNotFound", "Gated")):
            if "Local" not in kind:
                raise UnknownModelError(
                    f"{repository} ({revision or 'main'}) cannot be fetched: {kind}; check the name,"
                    " or `huggingface-cli login` for models that ask for it"
                ) from None
        raise PeerConnectionError(
            f"{repository} cannot be fetched: no connection to Hugging Face ({kind}), and it is not in"
            " the cache; fetch it on another machine and give its path to `serve`"
        ) from None
    except ValueError as error:
        raise UsageError(f"{repository!r} is no repository (owner/name): {type(error).__name__}") from None
