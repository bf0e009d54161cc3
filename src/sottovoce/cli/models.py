"""`sottovoce models`: what can be served by name."""

import json

import click

from .options import json_option


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the models that can be served by name, and whether they are installed. Any path works as well."""
    from ..errors import SottovoceError
    from ..models.registry import known_names, resolve

    rows: list[dict[str, str | None]] = []
    for name in known_names():
        try:
            rows.append({"name": name, "path": str(resolve(name)), "note": "ready"})
        except SottovoceError as error:
            rows.append({"name": name, "path": None, "note": str(error)})
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['name']:24} {row['path'] or row['note']}")
    print("A path also works: a Hugging Face directory (safetensors), a .gguf file, a llama2.c .bin file.")
