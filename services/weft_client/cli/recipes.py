"""`weft recipes`."""

from typing import Annotated

import typer

from weft_client.cli.output import print_fields, print_json, stdout
from weft_client.cli.session import JsonFlag
from weft_clt.recipes import RECIPES, Recipe, RunSize, find_recipe

_SIZE_FIELDS = frozenset(RunSize.__dataclass_fields__)


def recipes(
    name: Annotated[str, typer.Argument(help="Show this one, with its settings at 16,384 features.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List the published recipes that `weft runs create --recipe NAME` and `weft plan --recipe NAME` know."""
    if name:
        _show(find_recipe(name), as_json=as_json)
    elif as_json:
        print_json({"recipes": [_document(recipe) for recipe in RECIPES.values()]})
    else:
        for recipe in RECIPES.values():
            stdout().print(f"{recipe.name:<20}{recipe.summary}", soft_wrap=True, highlight=False)


def _document(recipe: Recipe) -> dict[str, object]:
    texts = ("name", "summary", "source", "input_hook", "deviations")
    size = RunSize("datasets/DATASET", num_features=1 << 14, num_steps=10_000)
    settings = {field: value for field, value in recipe.make(size).to_spec().items() if field not in _SIZE_FIELDS}
    return {text: getattr(recipe, text) for text in texts} | {"spec": settings}


def _show(recipe: Recipe, *, as_json: bool) -> None:
    document = _document(recipe)
    if as_json:
        print_json(document)
        return
    settings = document.pop("spec")
    assert isinstance(settings, dict)
    rows = [(text.replace("_", " "), str(value) or "any") for text, value in document.items()]
    print_fields(rows + [(field, str(value)) for field, value in settings.items() if value])
